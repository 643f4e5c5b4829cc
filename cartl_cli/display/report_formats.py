"""A report as text for a terminal, a README, a paper, a spreadsheet, a program.

Each function escapes what its reader would act on.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console, Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from cartl_cli.core.evaluation.confusion import by_class
from cartl_cli.core.registry.transfer_methods import symbols
from cartl_cli.core.reports.equal_accuracy import Gain, Outside
from cartl_cli.core.reports.rows import Row
from cartl_cli.core.runs.command_line import command_of
from cartl_cli.core.statistics import Spread
from cartl_cli.display.report_sheets import Cell, Report, Sheet, sheets_of
from cartl_cli.display.tables import WIDTH, cell, stdout
from cartl_cli.display.terminal import printable
from cartl_cli.display.widths import lines, widths

GAP = 2  # columns between two columns


def rich_table(sheet: Sheet, width: int) -> Group:
    """The sheet for a terminal of so many columns, its notes below; as lines where it is too wide.

    A line is ``heading: value``, small print in brackets.
    """
    notes = [*map(cell, sheet.notes)]
    columns = [
        (head, right, [text for one in cells for text in (one.text, one.small)])
        for head, right, *cells in zip(sheet.heads, sheet.numeric, *sheet.rows, strict=True)
    ]
    wide = widths(columns, width - GAP * len(columns))
    if wide is None:
        rows = [[cell(_in_line(one)) for one in row] for row in sheet.rows]
        return lines([*map(cell, sheet.heads)], rows, [cell(sheet.title)], notes)
    table = Table(
        title=cell(sheet.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for (head, right, _), room in zip(columns, wide, strict=True):
        justify: JustifyMethod = "right" if right else "left"
        table.add_column(cell(head), justify=justify, overflow="fold", width=room)
    for row in sheet.rows:
        parts = [[text for text in (one.text, one.small) if text] for one in row]
        table.add_row(*map(_lines, parts))
    return Group(table, *notes, "")


def _in_line(one: Cell) -> str:
    return f"{one.text} ({one.small})" if one.small else one.text


def _lines(parts: Sequence[str]) -> Text:
    text = cell(parts[0] if parts else "")
    for part in parts[1:]:
        text = text.append("\n").append(printable(part), style="dim")
    return text


def show(report: Report) -> None:
    """Print the tables on stdout."""
    _print(report, stdout())


def plain(report: Report) -> str:
    """The same as text."""
    out = io.StringIO()
    _print(report, Console(file=out, width=WIDTH, highlight=False))
    return out.getvalue()


def _print(report: Report, console: Console) -> None:
    for sheet in sheets_of(report):
        console.print(rich_table(sheet, console.width))


def markdown(report: Report) -> str:
    """Tables of GitHub's Markdown."""
    parts = []
    for sheet in sheets_of(report):
        marks = ["---:" if right else "---" for right in sheet.numeric]
        lines = [f"## {_markdown(sheet.title)}", "", _line(map(_markdown, sheet.heads))]
        lines.append(_line(marks))
        for row in sheet.rows:
            lines.append(_line(_markdown(_in_line(one)) for one in row))
        lines += ["", *(f"{_markdown(note)}  " for note in sheet.notes)]
        parts.append("\n".join(lines).rstrip() + "\n")
    return "\n".join(parts)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is: no table cell, code, emphasis, link or HTML begins."""
    shown = printable(text)
    shown = "".join(f"\\{one}" if one in "\\`*_[]|~#!" else one for one in shown)
    shown = shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return shown.replace("://", "&#58;//").replace("@", "&#64;").replace("www.", "www&#46;")


def as_csv(report: Report) -> str:
    """The results, a line each; accuracies are fractions. Text never begins a formula."""
    out = io.StringIO()
    records = [_flat(record(row)) for row in report.rows]
    heads = list(dict.fromkeys(name for one in records for name in one)) or ["method"]
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            if name != "settings":
                found |= {f"{name}_{part}": one for part, one in _flat(value).items()}
        elif name not in ("commands", "classes"):
            found[name] = _csv(value)
    return found


def _csv(value: Any) -> Any:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def as_json(report: Report) -> str:
    """Everything, names whole; accuracies are fractions."""
    value = {
        "results": [record(row) for row in report.rows],
        "baseline": report.baseline,
        "paired": [
            {
                "run": one.ours.run.name,
                "baseline": one.theirs.run.name,
                "eps": one.eps,
                **asdict(one.difference),
                "p_holm": one.p_holm,
            }
            for one in report.paired
        ],
        "gains": [
            {
                "runs": [result.run.name for result in one.ours.results],
                "eps": one.ours.eps,
                "clean": one.ours.clean.mean,
                "robust": one.ours.robust.mean,
                "baseline_robust": one.theirs,
                "points": one.value,
                "low": one.low,
                "high": one.high,
            }
            for one in report.gains
            if isinstance(one, Gain)
        ],
        "no_gain": [
            {
                "runs": [result.run.name for result in one.ours.results],
                "eps": one.ours.eps,
                "clean": one.ours.clean.mean,
                "baseline_clean": [row.clean.mean for row in one.curve],
            }
            for one in report.gains
            if isinstance(one, Outside)
        ],
        "paper": report.paper
        and [
            {
                **one.published.model_dump(),
                "ours": one.ours
                and {
                    "runs": [result.run.name for result in one.ours.results],
                    "clean": one.ours.clean.mean,
                    "robust": one.ours.pgd and one.ours.pgd.mean,
                    "differs": one.differs,
                },
            }
            for one in report.paper
        ],
        "left_out": [asdict(one) for one in report.left_out],
    }
    return json.dumps(value, allow_nan=False, indent=1) + "\n"


def record(row: Row) -> dict[str, Any]:
    """A row as values by name."""
    setting, conditions = asdict(row.setting), asdict(row.conditions)
    others, signs = dict(setting.pop("others")), symbols()
    del setting["numbers"]
    first = {name: setting.pop(name) for name in ("method", "k")}
    numbers = {name: row.setting.number(name) for name in sorted(signs, key=lambda one: signs[one])}
    data = conditions.pop("data")
    tried = conditions.pop("eps")
    return {
        **first,
        **numbers,
        **setting,
        "measured_on": data,
        **conditions,
        "eps_tried": tried,
        "eps": row.eps,
        "clean": _numbers(row.clean),
        "pgd": _numbers(row.pgd),
        "robust": _numbers(row.robust),
        "by_class": by_class(row.answered),
        "seeds": row.seeds,
        "runs": [result.run.name for result in row.results],
        "attacked": [result.attacked for result in row.results],
        "created": [result.run.manifest.created for result in row.results],
        "incomplete": row.incomplete,
        "settings": others,
        "commands": [
            command_of(run) for result in row.results for run in (*result.trainings, result.run)
        ],
    }


def _numbers(accuracy: Spread | None) -> dict[str, Any]:
    if accuracy is None:
        return {"mean": None, "sd": None, "low": None, "high": None, "values": []}
    return asdict(accuracy)
