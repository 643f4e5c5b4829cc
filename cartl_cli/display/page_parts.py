"""The parts of a page that needs nothing else: no network, no other file."""

import base64
from collections.abc import Iterable
from html import escape
from importlib import resources

from cartl_cli.display.report_sheets import Cell, Sheet
from cartl_cli.display.terminal import printable

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are HTML; nothing in it is fetched."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>",
            f"<style>\n{_asset('report.css')}</style>\n</head>\n<body>",
            *parts,
            f"<script>\n{_asset('report.js')}</script>\n</body>\n</html>\n",
        ]
    )


def _asset(name: str) -> str:
    return (resources.files("cartl_cli") / "data" / name).read_text(encoding="utf-8")


def text(content: str) -> str:
    """Any text, with nothing in it taken for HTML."""
    return escape(printable(content))


def heading(title: str, level: int = 2) -> str:
    """The title of a section."""
    return f"<h{level}>{text(title)}</h{level}>"


def note(content: str) -> str:
    """A sentence in small print."""
    return f'<p class="note">{text(content)}</p>'


def folded(summary: str, content: str) -> str:
    """HTML that is seen after a click on its summary."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def commands(lines: Iterable[str]) -> str:
    """Lines to be copied."""
    joined = "\n".join(map(text, lines))
    return f"<pre>{joined}</pre>"


def numbered(lines: Iterable[str]) -> str:
    """Steps, one after the other."""
    return f"<ol>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ol>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Words, and beside each what is so called."""
    rows = "\n".join(f"<dt>{text(word)}</dt><dd>{text(fact)}</dd>" for word, fact in pairs)
    return f"<dl>\n{rows}\n</dl>"


def sheet_html(sheet: Sheet, level: int = 2) -> str:
    """A table under its title, with its notes; the notes alone where it has no rows."""
    shown = [table(sheet)] if sheet.rows else []
    return "\n".join([heading(sheet.title, level), *shown, *map(note, sheet.notes)])


def table(sheet: Sheet) -> str:
    """The table alone, sorted by a click on a head."""
    heads = "".join(
        f'<th scope="col"{_right(right)}><button type="button">{text(head)}</button></th>'
        for head, right in zip(sheet.heads, sheet.numeric, strict=True)
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row, sheet.numeric))}</tr>" for row in sheet.rows)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{text(sheet.title)}">'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _cell(cell: Cell, right: bool) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    small = f"<small>{text(cell.small)}</small>" if cell.small else ""
    return f"<td{_right(right)}{value}>{text(cell.text)}{small}</td>"


def _right(right: bool) -> str:
    return ' class="right"' if right else ""


def plot(title: str, svg: bytes, level: int = 2) -> str:
    """A picture under its title."""
    return f"<figure>{heading(title, level)}\n{picture(title, svg, 'svg+xml')}</figure>"


def picture(alt: str, content: bytes, kind: str) -> str:
    """A picture whose bytes stand in the page; ``kind``: ``png`` or ``svg+xml``."""
    coded = base64.b64encode(content).decode()
    return f'<img alt="{text(alt)}" src="data:image/{kind};base64,{coded}">'
