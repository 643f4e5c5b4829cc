"""A report as sheets of plain text, which each format then writes in its own way.

Nothing here is escaped: names come from manifests, and each format escapes at its own sink.
Accuracies become percent here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cartl_cli.core.finding import LeftOut
from cartl_cli.core.paper import Beside
from cartl_cli.core.reporting import Paired, Row
from cartl_cli.core.statistics import Spread
from cartl_cli.core.values import shown_pixels
from cartl_cli.display.text import printable

LONGEST = 60  # characters of a name in a table
NONE = "–"


@dataclass(frozen=True)
class Report:
    """All that a report says; ``baseline`` is that of the paired tests."""

    rows: tuple[Row, ...]
    paired: tuple[Paired, ...]
    baseline: str | None
    paper: tuple[Beside, ...] | None
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Cell:
    """Text, its second line in small print; ``value`` is what to sort by, if not the text."""

    text: str
    small: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Sheet:
    """A table under a title, with notes below. ``numeric`` columns are aligned to the right."""

    title: str
    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]


def sheets_of(report: Report) -> list[Sheet]:
    """What there is to show, in order; the sheet of results always."""
    sheets = [results_sheet(report.rows)]
    if report.baseline is not None and report.paired:
        sheets.append(paired_sheet(report.paired, report.baseline))
    if report.paper is not None:
        sheets.append(paper_sheet(report.paper))
    if report.left_out:
        sheets.append(left_out_sheet(report.left_out))
    return sheets


def short(text: str) -> str:
    """A name without control characters, no longer than a table can hold."""
    whole = printable(text)
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1]}…"


def percent(accuracy: Spread | None) -> Cell:
    """``88.5 ± 1.2`` over its interval; no ± from one seed."""
    if accuracy is None:
        return Cell(NONE)
    spread = "" if accuracy.sd is None else f" ± {100 * accuracy.sd:.1f}"
    interval = f"{100 * accuracy.low:.1f}–{100 * accuracy.high:.1f}"
    return Cell(f"{100 * accuracy.mean:.1f}{spread}", interval, accuracy.mean)


def number(value: float | None) -> Cell:
    """A setting that is a number, if the method has it."""
    return Cell(NONE) if value is None else Cell(f"{value:g}", value=value)


def data_pair(row: Row) -> str:
    """``source → target``, of a source run its data alone."""
    setting = row.setting
    target = [] if setting.target_data is None else [short(setting.target_data)]
    return " → ".join([short(setting.source_data), *target])


def attack_words(row: Row) -> str:
    """Which attacks with which budget, but for eps."""
    found = row.conditions
    queries = f", {found.queries} queries" if "square" in found.attacks else ""
    step = "" if found.step_size is None else f", step {found.step_size:.3g}"
    more = "" if len(found.eps) == 1 else f", up from eps {shown_pixels(found.eps[0])}"
    norm = "ℓ∞" if found.norm == "linf" else "ℓ₂"
    return (
        f"{norm} {', '.join(found.attacks)}, {found.pgd_steps} steps{step}, "
        f"{found.restarts} restart{'s' * (found.restarts > 1)}{queries}{more}"
    )


def images_words(row: Row) -> str:
    """Which images the accuracies are of."""
    found = row.conditions
    subset = "" if found.subset is None else f", subset drawn by seed {found.subset[1]}"
    return f"{found.measured} of {short(found.data)}{subset} ({found.fingerprint[:8]})"


def varied(rows: Sequence[Row]) -> list[str]:
    """The settings without a column of their own in which the rows differ."""
    settings = [dict(row.setting.others) for row in rows]
    names = list(dict.fromkeys(name for one in settings for name in one))
    # a setting that a method does not have makes no difference between methods
    values = {name: {one[name] for one in settings if name in one} for name in names}
    return [name for name in names if len(values[name]) > 1]


COLUMNS: tuple[tuple[str, bool, Callable[[Row], Cell]], ...] = (
    ("data", False, lambda row: Cell(data_pair(row))),
    ("arch", False, lambda row: Cell(short(row.setting.arch))),
    ("method", False, lambda row: Cell(row.setting.method)),
    ("k", True, lambda row: number(row.setting.k)),
    ("β", True, lambda row: number(row.setting.neft_beta)),
    ("λ FDM", True, lambda row: number(row.setting.fdm_lambda)),
    ("λ LwF", True, lambda row: number(row.setting.lwf_lambda)),
    ("fraction", True, lambda row: number(row.setting.fraction)),
    ("freeze_bn", False, lambda row: Cell(row.setting.freeze_bn or NONE)),
    ("attack", False, lambda row: Cell(attack_words(row))),
    ("images", False, lambda row: Cell(images_words(row))),
    ("n", True, lambda row: number(row.conditions.n)),
    ("eps", True, lambda row: Cell(shown_pixels(row.eps), value=row.eps)),
)
ALWAYS = {"method"}
MEASURED: tuple[tuple[str, Callable[[Row], Cell]], ...] = (
    ("clean %", lambda row: percent(row.clean)),
    ("PGD %", lambda row: percent(row.pgd)),
    ("worst %", lambda row: _worst(row)),
    ("seeds", lambda row: Cell(short(", ".join(row.seeds)), value=len(row.results))),
)


def _worst(row: Row) -> Cell:
    cell = percent(row.robust)
    return Cell(f"{cell.text} †" if row.incomplete else cell.text, cell.small, cell.value)


def results_sheet(rows: Sequence[Row]) -> Sheet:
    """A line for each row. What is the same in all of them is said once, below."""
    columns = list(COLUMNS)
    if names := varied(rows):
        columns.append(("other settings", False, lambda row: _others(row, names)))
    made = {head: [cell(row) for row in rows] for head, _, cell in columns}
    numeric = {head: right for head, right, _ in columns}
    shown = [head for head in made if head in ALWAYS or len(set(made[head])) > 1]
    same = [f"{head} {made[head][0].text}" for head in made if rows and head not in shown]
    made |= {head: [cell(row) for row in rows] for head, cell in MEASURED}
    heads = (*shown, *(head for head, _ in MEASURED))
    return Sheet(
        "Results",
        heads,
        tuple(numeric.get(head, True) for head in heads),
        tuple(zip(*(made[head] for head in heads), strict=True)),
        tuple(_notes(rows, same)),
    )


def _others(row: Row, names: Sequence[str]) -> Cell:
    settings = dict(row.setting.others)
    return Cell(
        "; ".join(f"{name} {short(settings[name])}" for name in names if name in settings) or NONE
    )


def _notes(rows: Sequence[Row], same: Sequence[str]) -> list[str]:
    if not rows:
        return []
    notes = [f"In every line: {'; '.join(part for part in same if NONE not in part)}."]
    several = any(len(row.results) > 1 for row in rows)
    if several:
        notes.append("± is the standard deviation over seeds.")
    if any(len(row.results) == 1 for row in rows):
        notes.append("A line without ± has one seed, which says nothing about other trainings.")
    notes.append(
        "Below each accuracy its 95 % interval from the choice of images"
        + (", of one model with the mean accuracy." if several else ".")
    )
    notes.append(
        "PGD: on the cross-entropy, alone; worst: of all attacks, image by image. Both are upper "
        "bounds."
    )
    if any(row.pgd is None for row in rows):
        notes.append(f"{NONE} under PGD: it was not run, or on images that others had left.")
    if any(row.incomplete for row in rows):
        notes.append("† a check found the attack incomplete: a stronger one would leave less.")
    return notes


def paired_sheet(paired: Sequence[Paired], baseline: str) -> Sheet:
    """A line for each comparison of two runs on the same images."""
    rows = []
    for one in paired:
        found = one.difference
        same = found.b == found.c == 0
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
        rows.append(
            (
                Cell(short(one.ours.attacked)),
                Cell(short(one.theirs.attacked)),
                Cell("clean" if one.eps is None else shown_pixels(one.eps)),
                Cell(str(found.b), value=found.b),
                Cell(str(found.c), value=found.c),
                Cell(f"{100 * found.value:+.1f}", interval, found.value),
                Cell("identical on all images" if same else f"{found.p:.3g}", value=found.p),
                Cell(f"{one.p_holm:.3g}", value=one.p_holm),
            )
        )
    return Sheet(
        f"Image by image against {short(baseline)}",
        ("attacked run", "baseline", "eps", "only it", "only base", "points", "p", "p (Holm)"),
        (False, False, False, True, True, True, True, True),
        tuple(rows),
        (
            "Images that only one of the two gets right. Points: accuracy of the run minus that of "
            "the baseline, its 95 % interval below (Tango 1998).",
            f"p: exact McNemar test; p (Holm): adjusted for all {len(rows)} comparisons.",
        ),
    )


def paper_sheet(lines: Sequence[Beside]) -> Sheet:
    """A line for each published number, ours beside it."""
    rows = []
    for one in lines:
        said, ours = one.published, one.ours
        clean = ours.clean if ours else None
        pgd = ours.pgd if ours else None
        details = (
            f"{said.source_data} → {said.target_data}",
            f"k {said.k}",
            "" if said.fdm_lambda is None else f"λ {said.fdm_lambda:g}",
            "" if said.neft_beta is None else f"β {said.neft_beta:g}",
            "" if said.freeze_bn is None else f"freeze_bn {said.freeze_bn}",
        )
        differs = "not run" if ours is None else "; ".join(one.differs) or "nothing"
        rows.append(
            (
                Cell(said.table.replace("table", "")),
                Cell(said.method, ", ".join(part for part in details if part)),
                Cell(f"{100 * said.clean:.2f}", value=said.clean),
                percent(clean),
                _points(clean, said.clean),
                Cell(f"{100 * said.robust:.2f}", value=said.robust),
                percent(pgd),
                _points(pgd, said.robust),
                Cell(differs),
            )
        )
    nothing = "No line of its tables has these data sets, method, k, λ, β and batch norm."
    return Sheet(
        "Beside the paper",
        (
            *("table", "setting", "paper clean", "clean %", "points"),
            *("paper PGD", "PGD %", "points", "differs"),
        ),
        (False, False, True, True, True, True, True, True, False),
        tuple(rows),
        (
            "Paper: Chen et al., ICML 2021; PGD-100, ℓ∞, eps 8/255, full test set. Points: ours "
            "minus the paper's.",
            "The paper counts the last iterate of PGD, here any wrong iterate counts.",
            *(() if rows else (nothing,)),
        ),
    )


def _points(ours: Spread | None, theirs: float) -> Cell:
    if ours is None:
        return Cell(NONE)
    return Cell(f"{100 * (ours.mean - theirs):+.1f}", value=ours.mean - theirs)


def left_out_sheet(left_out: Sequence[LeftOut]) -> Sheet:
    """A line for each run that is in no average, or in no test."""
    rows = tuple((Cell(short(one.name)), Cell(printable(one.reason))) for one in left_out)
    return Sheet("Left out", ("run", "why"), (False, False), rows, ())
