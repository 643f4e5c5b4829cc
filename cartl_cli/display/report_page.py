"""A report as one HTML page that needs nothing else: no network, no other file."""

import base64
from collections.abc import Mapping
from html import escape
from importlib import resources

from cartl_cli.core.reports.rows import Row
from cartl_cli.core.runs.command_line import command_of
from cartl_cli.display.report_differences import Parts, data_pair, short, told_apart
from cartl_cli.display.report_sheets import Cell, Report, Sheet, sheets_of
from cartl_cli.display.terminal import printable

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(report: Report, plots: Mapping[str, bytes], notes: tuple[str, ...] = ()) -> str:
    """The tables, to be sorted by a click; the ``plots``, SVG by title; every command."""
    first, *rest = sheets_of(report)
    seeds = len({seed for row in report.rows for seed in row.seeds})
    about = (
        f"Clean accuracy is that on the images as they are, robust accuracy what is left of it "
        f"under attack. {len(report.rows)} line{'s' * (len(report.rows) != 1)}, one for each "
        f"setting and attack; {seeds} seed{'s' * (seeds != 1)}. A click on a head sorts by it."
    )
    settings = told_apart(report.rows).settings
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<title>cartl report</title>",
            f"<style>\n{_asset('report.css')}</style>\n</head>\n<body>",
            f"<h1>Clean and robust accuracy</h1>\n<p>{_text(about)}</p>",
            _sheet(first),
            *(_plot(title, svg) for title, svg in plots.items()),
            *(f'<p class="note">{_text(note)}</p>' for note in notes),
            *map(_sheet, rest),
            "<h2>The commands that made each line</h2>",
            *map(_commands, report.rows, settings),
            f"<script>\n{_asset('report.js')}</script>\n</body>\n</html>\n",
        ]
    )


def _asset(name: str) -> str:
    return (resources.files("cartl_cli") / "data" / name).read_text(encoding="utf-8")


def _text(text: str) -> str:
    return escape(printable(text))


def _sheet(sheet: Sheet) -> str:
    heads = "".join(
        f'<th scope="col"{_right(right)}><button type="button">{_text(head)}</button></th>'
        for head, right in zip(sheet.heads, sheet.numeric, strict=True)
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row, sheet.numeric))}</tr>" for row in sheet.rows)
    notes = "\n".join(f'<p class="note">{_text(note)}</p>' for note in sheet.notes)
    return (
        f"<h2>{_text(sheet.title)}</h2>\n"
        f'<div class="wide" role="region" tabindex="0" aria-label="{_text(sheet.title)}">'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n{notes}"
    )


def _cell(cell: Cell, right: bool) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    small = f"<small>{_text(cell.small)}</small>" if cell.small else ""
    return f"<td{_right(right)}{value}>{_text(cell.text)}{small}</td>"


def _right(right: bool) -> str:
    return ' class="right"' if right else ""


def _plot(title: str, svg: bytes) -> str:
    content = base64.b64encode(svg).decode()
    return (
        f'<figure><h2>{_text(title)}</h2>\n<img alt="{_text(title)}" '
        f'src="data:image/svg+xml;base64,{content}"></figure>'
    )


def _commands(row: Row, settings: Parts) -> str:
    runs = {
        run.folder: run for result in row.results for run in (*result.trainings, result.run)
    }.values()
    lines = "\n".join(_text(command_of(run)) for run in runs)
    names = ", ".join(short(result.run.name) for result in row.results)
    words = (row.setting.method, f"k {row.setting.k}", *settings.values(), data_pair(row))
    title = f"{', '.join(words)}: {names}"
    return f"<details><summary>{_text(title)}</summary><pre>{lines}</pre></details>"
