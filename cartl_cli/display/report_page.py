"""A report as one HTML page that needs nothing else: no network, no other file."""

from collections.abc import Mapping

from cartl_cli.core.reports.rows import Row
from cartl_cli.core.runs.command_line import command_of
from cartl_cli.display.page_parts import (
    commands,
    document,
    folded,
    heading,
    note,
    plot,
    sheet_html,
    text,
)
from cartl_cli.display.report_differences import Parts, data_pair, short, told_apart
from cartl_cli.display.report_sheets import Report, sheets_of


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
    return document(
        "cartl report",
        [
            f"<h1>Clean and robust accuracy</h1>\n<p>{text(about)}</p>",
            sheet_html(first),
            *(plot(title, svg) for title, svg in plots.items()),
            *map(note, notes),
            *map(sheet_html, rest),
            heading("The commands that made each line"),
            *map(_commands, report.rows, settings),
        ],
    )


def _commands(row: Row, settings: Parts) -> str:
    runs = {
        run.folder: run for result in row.results for run in (*result.trainings, result.run)
    }.values()
    names = ", ".join(short(result.run.name) for result in row.results)
    words = (row.setting.method, f"k {row.setting.k}", *settings.values(), data_pair(row))
    title = f"{', '.join(words)}: {names}"
    return folded(title, commands(map(command_of, runs)))
