"""``cartl report``."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from cartl_cli.commands.options import AsJson, RunsDir
from cartl_cli.commands.panels import panelled
from cartl_cli.core import storage
from cartl_cli.core.config.values import parse_list
from cartl_cli.core.errors import CartlError, UsageError
from cartl_cli.core.reports.one_model import one_named
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import attacks_on
from cartl_cli.core.runtime.requirements import check_matplotlib

if TYPE_CHECKING:
    from cartl_cli.core.reports.paper import TableName
    from cartl_cli.display.report_sheets import Report

ENDINGS = {
    "table": "txt",
    "markdown": "md",
    "latex": "tex",
    "csv": "csv",
    "json": "json",
    "html": "html",
}
PICTURES = ("tradeoff", "k", "fraction")


@panelled
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Attacks or sweeps: names, numbers or paths (default: every attack); or one "
            "model, for its page with --format html.",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format", help=f"{', '.join(ENDINGS)}; several, as a,b, go with --out.", metavar="A,B"
        ),
    ] = "table",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files: report.html, …")
    ] = None,
    plot: Annotated[
        str,
        typer.Option(
            "--plot",
            help="Pictures, as a,b, into --out: tradeoff, k, fraction.",
            metavar="A,B",
            show_default=False,
        ),
    ] = "",
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", help="A method or run to test the others against, image by image."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="paper: its numbers beside these.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--table", help="With --against: table1 to table4 (default: the sweep's, else all)."
        ),
    ] = None,
    sort_by: Annotated[
        str | None, typer.Option("--sort-by", help="A column, such as clean, pgd, robust or k.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over the files of an older report.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tables, plots and tests from any attacks."""
    wanted = ["json"] if as_json else _listed("--format", formats, tuple(ENDINGS))
    pictures = _listed("--plot", plot, PICTURES)
    _check(wanted, pictures, out, against, table)
    files = {name: f"report.{ENDINGS[name]}" for name in wanted}
    if out is not None:
        made = [f"{name}.{ending}" for name in pictures for ending in ("png", "svg", "pdf")]
        _check_place(out, [*files.values(), *made], force)
    if (model := one_named(runs or [], runs_dir)) is not None:
        _check_alone(model, runs_dir, wanted, [*pictures, baseline, against, sort_by])
        from cartl_cli.commands.model_page import model_page

        _give({files["html"]: model_page(model, runs_dir).encode()}, out)
        return
    found = _reported(runs or [], runs_dir, baseline, against, table, sort_by)
    if wanted == ["table"] and out is None:
        from cartl_cli.display.report_formats import show

        show(found)
    else:
        contents = {file: _written(found, name).encode() for name, file in files.items()}
        _give(contents | _drawn(found, pictures), out)
    _tell_left_out(found, shown=wanted == ["table"] and out is None)


def _give(contents: dict[str, bytes], out: Path | None) -> None:
    """Write files into a folder, or without one the only one on stdout."""
    if out is None:
        print(next(iter(contents.values())).decode(), end="")
        return
    from cartl_cli.display.terminal import say

    storage.make_folder(out)
    for file, content in contents.items():
        storage.write_whole(out / file, content)
    say(f"written {', '.join(contents)} into {out}")


def _drawn(found: "Report", pictures: list[str]) -> dict[str, bytes]:
    """The pictures that were asked for, by the names of their files."""
    if not pictures:
        return {}
    from cartl_cli.display.report_plots import curves

    return curves(found.rows, pictures)


def _tell_left_out(found: "Report", shown: bool) -> None:
    """Say which runs are in no line, unless it is ``shown``. Raises CartlError for faults."""
    from cartl_cli.display.terminal import printable, say

    for one in found.left_out if not shown else ():
        say(f"left out: {one.name}: {one.reason}")
    faults = [one for one in found.left_out if one.fault]
    if faults:
        first = printable(f"{faults[0].name}: {faults[0].reason}")
        plural = "s" if len(faults) > 1 else ""
        raise CartlError(f"{len(faults)} run{plural} skipped, such as {first}")


def _check_alone(model: Run, runs_dir: Path, wanted: list[str], others: list[str | None]) -> None:
    """Refuse what does not go with the page of one model. Raises UsageError."""
    if wanted == ["html"] and not any(others):
        return
    attacks = ", ".join(attack.name for attack in attacks_on(model, runs_dir)) or "none yet"
    raise UsageError(
        f"RUN: {model.name!r} is a model; for its page give --format html --out FOLDER, and "
        f"nothing more; tables are made of attacks, those on it: {attacks}"
    )


def _listed(flag: str, text: str, known: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(parse_list(text)))  # type: ignore[call-overload]
    for name in names:
        if name not in known:
            raise UsageError(f"{flag}: no {name!r}; choose from {', '.join(known)}")
    return names


def _check(
    wanted: list[str], pictures: list[str], out: Path | None, against: str | None, table: str | None
) -> None:
    """Refuse options that do not go together. Raises UsageError."""
    if not wanted:
        raise UsageError(f"--format: choose from {', '.join(ENDINGS)}")
    if out is None and len(wanted) > 1:
        raise UsageError("--format: several formats need --out FOLDER")
    if out is None and wanted == ["html"] and sys.stdout.isatty():
        raise UsageError("--format: a page is no text for a terminal; add --out FOLDER")
    if out is None and pictures:
        raise UsageError("--plot: needs --out FOLDER to put pictures in")
    if pictures:
        check_matplotlib()
    if against not in (None, "paper"):
        raise UsageError(f"--against: choose paper, got {against!r}")
    if table is not None and against is None:
        raise UsageError("--table: goes with --against paper")
    if table is not None and table not in (names := _tables()):
        raise UsageError(f"--table: choose {', '.join(names)}, got {table!r}")


def _tables() -> "tuple[TableName, ...]":
    from cartl_cli.core.reports.paper import TableName

    return get_args(TableName)


def _check_place(out: Path, files: list[str], force: bool) -> None:
    """Refuse to write where something else is. Raises UsageError."""
    if str(out) == "-" or out.suffix.lstrip(".") in (*ENDINGS.values(), "md", "htm", "pdf", "png"):
        raise UsageError(f"--out: {str(out)!r} must be a folder; the files get their own names")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {str(out)!r} is no folder")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out: parent folder missing; create {str(out.absolute().parent)!r}")
    for folder in (out.resolve(), *out.resolve().parents):
        if (folder / "manifest.json").exists():
            raise UsageError(f"--out: would change run {folder.name!r}; give another folder")
    there = [name for name in files if os.path.lexists(out / name)]
    if there and not force:
        raise UsageError(f"--out: {str(out / there[0])!r} exists; --force to write over it")


def _reported(
    runs: list[str],
    runs_dir: Path,
    baseline: str | None,
    against: str | None,
    table: str | None,
    sort_by: str | None,
) -> "Report":
    from cartl_cli.core.reports.collection import find_results
    from cartl_cli.core.reports.equal_accuracy import gains
    from cartl_cli.core.reports.paper import beside_paper
    from cartl_cli.core.reports.rows import paired_with, rows_of, sorted_rows
    from cartl_cli.display.report_sheets import Report

    found = find_results(runs, runs_dir)
    rows, repeats = rows_of(found.results)
    if sort_by is not None:
        rows = sorted_rows(rows, sort_by)
    paired, untested = paired_with(rows, baseline) if baseline is not None else ([], [])
    gained = gains(rows, baseline) if baseline is not None else []
    named = table or found.table
    chosen = next((name for name in _tables() if name == named), None)
    paper = tuple(beside_paper(rows, chosen)) if against else None
    left_out = (*found.left_out, *repeats, *untested)
    return Report(tuple(rows), tuple(paired), tuple(gained), baseline, paper, left_out)


def _written(found: "Report", name: str) -> str:
    """The report in one format."""
    from cartl_cli.display import report_formats
    from cartl_cli.display.report_latex import latex

    if name == "html":
        return _page(found)
    write = {
        "table": report_formats.plain,
        "markdown": report_formats.markdown,
        "latex": latex,
        "csv": report_formats.as_csv,
        "json": report_formats.as_json,
    }[name]
    return write(found)


def _page(found: "Report") -> str:
    """The page, with pictures if matplotlib is there."""
    from cartl_cli.display.report_page import page

    try:
        from cartl_cli.display.report_plots import fitting
    except ImportError:
        return page(found, {}, ("No pictures without matplotlib: pip install 'cartl[plot]'.",))
    return page(found, fitting(found.rows))
