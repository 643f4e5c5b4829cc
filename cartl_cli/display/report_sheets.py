"""A report as sheets of plain text, which each format then writes in its own way.

Nothing here is escaped: names come from manifests, and each format escapes at its own sink.
Accuracies become percent here.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.registry.transfer_methods import symbols
from cartl_cli.core.reports.collection import LeftOut
from cartl_cli.core.reports.equal_accuracy import Gain, Outside
from cartl_cli.core.reports.paper import Beside, PublishedRow
from cartl_cli.core.reports.rows import Paired, Row
from cartl_cli.core.statistics import Spread
from cartl_cli.display.report_differences import (
    EVERYWHERE,
    Parts,
    data_pair,
    in_words,
    lettered,
    said_once,
    short,
    told_apart,
    word,
)
from cartl_cli.display.terminal import printable

NONE = "–"


@dataclass(frozen=True)
class Report:
    """All that a report says; ``baseline`` is that of the paired tests and of the gains."""

    rows: tuple[Row, ...]
    paired: tuple[Paired, ...]
    gains: tuple[Gain | Outside, ...]
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


Column = tuple[str, bool, Sequence[Cell]]
"""Head, whether numbers, the cell of each line."""


def sheets_of(report: Report) -> list[Sheet]:
    """What there is to show, in order; the sheet of results always."""
    sheets = [results_sheet(report.rows)]
    if any(row.answered for row in report.rows):
        sheets.append(class_sheet(report.rows))
    if report.baseline is not None and report.paired:
        sheets.append(paired_sheet(report.paired, report.baseline, report.rows))
    if report.baseline is not None and report.gains:
        sheets.append(gains_sheet(report.gains, report.baseline))
    if report.paper is not None:
        tables = list(dict.fromkeys(one.published.table for one in report.paper))
        for name in tables:
            lines = [one for one in report.paper if one.published.table == name]
            title = f"Beside {name.replace('table', 'Table ')} of the paper"
            sheets.append(paper_sheet(lines, title))
        if not tables:
            sheets.append(paper_sheet([], "Beside the paper"))
    if report.left_out:
        runs = tuple(
            (Cell(short(one.name)), Cell(printable(one.reason))) for one in report.left_out
        )
        sheets.append(Sheet("Runs left out", ("run", "why"), (False, False), runs, ()))
    return sheets


def percent(accuracy: Spread | None) -> Cell:
    """``88.5 ± 1.2`` over its interval; no ± from one seed."""
    if accuracy is None:
        return Cell(NONE)
    spread = "" if accuracy.sd is None else f" ± {100 * accuracy.sd:.1f}"
    interval = f"{100 * accuracy.low:.1f}–{100 * accuracy.high:.1f}"
    return Cell(f"{100 * accuracy.mean:.1f}{spread}", interval, accuracy.mean)


def _worst(row: Row) -> Cell:
    cell = percent(row.robust)
    return Cell(f"{cell.text} †" if row.incomplete else cell.text, cell.small, cell.value)


def _seeds(row: Row) -> Cell:
    """``0–4`` for five in a row."""
    seeds = row.seeds
    numbers = [int(seed) for seed in seeds if seed.isdecimal()]
    if 2 < len(seeds) == len(numbers) and numbers == [*range(numbers[0], numbers[0] + len(seeds))]:
        return Cell(f"{seeds[0]}–{seeds[-1]}", value=len(seeds))
    return Cell(short(", ".join(seeds)), value=len(seeds))


def _sheet(
    title: str, columns: Sequence[Column], always: Collection[str], notes: Sequence[str]
) -> Sheet:
    """A sheet of the columns named in ``always`` and of those whose lines differ."""
    shown = [one for one in columns if one[0] in always or len(set(one[2])) > 1]
    heads, numeric, cells = zip(*shown, strict=True)
    return Sheet(title, heads, numeric, tuple(zip(*cells, strict=True)), tuple(notes))


def results_sheet(rows: Sequence[Row]) -> Sheet:
    """A line for each row. What is the same in all of them, or in a method's, is said below."""
    told = told_apart(rows)
    own = [", ".join(one.values()) for one in told.settings]
    columns: list[Column] = [
        ("data", False, [Cell(data_pair(row)) for row in rows]),
        ("method", False, [*map(Cell, (row.setting.method for row in rows), own)]),
        ("k", True, [Cell(str(row.setting.k), value=row.setting.k) for row in rows]),
        ("eps", True, [Cell(shown_pixels(row.eps), value=row.eps) for row in rows]),
        ("key", False, [Cell(key) for key in told.keys]),
        ("clean %", True, [percent(row.clean) for row in rows]),
        ("PGD %", True, [percent(row.pgd) for row in rows]),
        ("worst %", True, [_worst(row) for row in rows]),
        ("seeds", True, [_seeds(row) for row in rows]),
    ]
    always = {"method", "clean %", "worst %", "seeds"}
    if any(row.pgd for row in rows):
        always.add("PGD %")
    return _sheet("Results", columns, always, (*told.notes, *_notes(rows)))


def _notes(rows: Sequence[Row]) -> list[str]:
    """How to read the numbers."""
    if not rows:
        return []
    several = any(len(row.results) > 1 for row in rows)
    interval = "95 % interval from the choice of images"
    notes = [
        f"With each accuracy: {interval}, of one model with the mean accuracy; "
        "± is the standard deviation over seeds."
        if several
        else f"With each accuracy: {interval}."
    ]
    if any(len(row.results) == 1 for row in rows):
        notes.append("A line without ± has one seed, which says nothing about other trainings.")
    if any(row.pgd for row in rows):
        notes.append("PGD: what it leaves by itself, on the cross-entropy.")
        if any(row.pgd is None for row in rows):
            notes.append(f"{NONE}: it was not run, or on images that others had left.")
    else:
        notes.append("PGD by itself, on the cross-entropy, was not measured.")
    notes.append("worst: what all attacks leave, image by image; an upper bound.")
    if any(row.incomplete for row in rows):
        notes.append("†: a check found the attack incomplete; a stronger one would leave less.")
    return notes


def class_sheet(rows: Sequence[Row]) -> Sheet:
    """Of each row the mean of the classes, and the class of the lowest accuracy."""
    lines = []
    for row, (method, *more) in zip(rows, in_words(rows), strict=True):
        numbers = [Cell(NONE)] * 4
        if row.answered:
            numbers = [_share(one.balanced_accuracy) for one in row.answered]
            numbers += [_share(one.accuracy(one.worst), short(one.worst)) for one in row.answered]
        lines.append((Cell(method, ", ".join(more)), *numbers))
    notes = [
        "mean: of the accuracies of all classes, the balanced accuracy.",
        "least: the accuracy of the worst class, whose name is below; of several seeds, the class "
        "whose mean over them is the lowest.",
    ]
    if not all(row.answered for row in rows):
        notes.append(f"{NONE}: an attack that did not keep its answers.")
    return Sheet(
        "Class by class",
        ("method", "mean clean %", "mean worst %", "least clean %", "least worst %"),
        (False, True, True, True, True),
        tuple(lines),
        tuple(notes),
    )


def _share(accuracy: float, small: str = "") -> Cell:
    return Cell(f"{100 * accuracy:.1f}", small, accuracy)


def paired_sheet(paired: Sequence[Paired], baseline: str, rows: Sequence[Row]) -> Sheet:
    """A line for each comparison of two runs on the same images; ``rows`` are all of the report."""
    named = names_of(rows)
    lines = []
    for one in paired:
        found = one.difference
        same = found.b == found.c == 0
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
        lines.append(
            (
                named[one.ours.run.name],
                named[one.theirs.run.name],
                Cell("clean" if one.eps is None else shown_pixels(one.eps)),
                Cell(str(found.b), value=found.b),
                Cell(str(found.c), value=found.c),
                Cell(f"{100 * found.value:+.1f}", interval, found.value),
                Cell("identical on all images" if same else f"{found.p:.3g}", value=found.p),
                Cell(f"{one.p_holm:.3g}", value=one.p_holm),
            )
        )
    return Sheet(
        f"Paired tests against {short(baseline)}, image by image",
        ("run", "baseline", "eps", "only run", "only baseline", "points", "p", "p (Holm)"),
        (False, False, False, True, True, True, True, True),
        tuple(lines),
        (
            "only run, only baseline: images that only that one of the two gets right.",
            "points: accuracy of the run minus that of the baseline, its 95 % interval below "
            "(Tango 1998).",
            f"p: exact McNemar test; p (Holm): adjusted for all {len(lines)} comparisons.",
        ),
    )


def names_of(rows: Sequence[Row]) -> dict[str, Cell]:
    """Each attack in the words of the table, by its name, which is told where two would be alike.

    The seed is told where the rows have several.
    """
    seeds = {seed for row in rows for seed in row.seeds}
    words: dict[str, tuple[str, ...]] = {}
    for row, (method, *more) in zip(rows, in_words(rows, ("attack eps",)), strict=True):
        for result in row.results:
            seed = [f"seed {result.seed}"] if len(seeds) > 1 else []
            words[result.run.name] = (method, *more, *seed)
    count = Counter(words.values())
    return {
        name: Cell(told[0], short(", ".join((*told[1:], *([name] if count[told] > 1 else [])))))
        for name, told in words.items()
    }


def gains_sheet(gains: Sequence[Gain | Outside], baseline: str) -> Sheet:
    """A line for each row of another method, beside the baseline's curve or outside it."""
    told = told_apart([one.ours for one in gains])
    ours = [one.ours for one in gains]
    beside = [_gained(one) if isinstance(one, Gain) else _outside(one) for one in gains]
    theirs, points, between = zip(*beside, strict=True)
    own = [", ".join(settings.values()) for settings in told.settings]
    methods = [Cell(row.setting.method, small) for row, small in zip(ours, own, strict=True)]
    columns: list[Column] = [
        ("method", False, methods),
        ("k", True, [Cell(str(row.setting.k), value=row.setting.k) for row in ours]),
        ("data", False, [Cell(data_pair(row)) for row in ours]),
        ("eps", True, [Cell(shown_pixels(row.eps), value=row.eps) for row in ours]),
        ("clean %", True, [percent(row.clean) for row in ours]),
        ("worst %", True, [percent(row.robust) for row in ours]),
        (f"{baseline} there", True, theirs),
        ("points", True, points),
        ("between its k", False, between),
    ]
    notes = [
        f"{baseline} there: its worst %, on the line between its two rows with the next lower "
        "and the next higher clean accuracy.",
        "points: the gain, its 95 % interval below, as if each row had images of its own; the "
        "choice of images moves clean and worst %.",
    ]
    if any(isinstance(one, Outside) for one in gains):
        notes.append(
            f"{NONE}: left out, as no two lines of {baseline} enclose its clean accuracy; outside: "
            "what they reach, in %."
        )
    apart = ("data", "eps")  # told where lines differ in them
    always = [head for head, _, _ in columns if head not in apart]
    return _sheet(f"At the same clean accuracy as {baseline}", columns, always, notes)


def _gained(gain: Gain) -> tuple[Cell, Cell, Cell]:
    """What the baseline has there, the gain, and between which k."""
    low, high = gain.between
    interval = f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
    return (
        Cell(f"{100 * gain.theirs:.1f}", value=gain.theirs),
        Cell(f"{100 * gain.value:+.1f}", interval, gain.value),
        Cell(f"{low.setting.k}, {high.setting.k}"),
    )


def _outside(one: Outside) -> tuple[Cell, Cell, Cell]:
    """The same of a row without a gain: why it has none."""
    ends = [f"{100 * row.clean.mean:.1f}" for row in one.curve]
    reason = f"outside {ends[0]}–{ends[-1]}" if len(ends) > 1 else f"it has {len(ends)} there"
    return Cell(NONE), Cell(NONE), Cell(reason)


def paper_sheet(lines: Sequence[Beside], title: str) -> Sheet:
    """A line for each published number of a table, ours beside it."""
    said = [one.published for one in lines]
    clean = [one.ours.clean if one.ours else None for one in lines]
    pgd = [one.ours.pgd if one.ours else None for one in lines]
    settings, shared = said_once([*map(_stated, said)], ([EVERYWHERE] * len(lines),))
    own = [", ".join(one[name] for name in one if name not in OWN_COLUMN) for one in settings]
    letters, explained = lettered(["; ".join(one.differs) for one in lines])
    keys = [
        (letter or "same") if one.ours else "not run"
        for one, letter in zip(lines, letters, strict=True)
    ]
    columns: list[Column] = [
        ("data", False, [Cell(f"{one.source_data} → {one.target_data}") for one in said]),
        ("method", False, [*map(Cell, (one.method for one in said), own)]),
        ("k", True, [Cell(str(one.k or "all"), value=one.k) for one in said]),
        ("paper clean", True, [Cell(f"{100 * one.clean:.2f}", value=one.clean) for one in said]),
        ("clean %", True, [*map(percent, clean)]),
        ("diff", True, [_points(a, b.clean) for a, b in zip(clean, said, strict=True)]),
        ("paper PGD", True, [Cell(f"{100 * one.robust:.2f}", value=one.robust) for one in said]),
        ("PGD %", True, [*map(percent, pgd)]),
        ("diff", True, [_points(a, b.robust) for a, b in zip(pgd, said, strict=True)]),
        ("key", False, [*map(Cell, keys)]),
    ]
    always = {head for head, *_ in columns} - set(OWN_COLUMN)
    notes = [
        "Paper: Chen et al., ICML 2021; PGD-100, ℓ∞, eps 8/255, full test set. diff: ours minus "
        "the paper's, in points.",
        "The paper counts the last iterate of PGD, here any wrong iterate counts.",
    ]
    if shared:
        notes.append(f"{EVERYWHERE}: {'; '.join(text for *_, text in shared)}.")
    if any(one.ours and not one.differs for one in lines):
        notes.append("Key same: as in the paper, as far as its table and text say.")
    if not lines:
        notes.append("No line of its tables has these data sets, method, k, λ, β and batch norm.")
    return _sheet(title, columns, always, (*notes, *explained))


OWN_COLUMN = ("data", "k")


def _stated(line: PublishedRow) -> Parts:
    """What a published line says of itself, but for its method."""
    found = {"data": f"{line.source_data} → {line.target_data}", "k": f"k {line.k or 'all'}"}
    for name, symbol in symbols().items():
        if (value := getattr(line, name, None)) is not None:
            found[symbol] = f"{symbol} {value:g}"
    return found | (
        {"freeze_bn": f"{word('freeze_bn')} {line.freeze_bn}"} if line.freeze_bn else {}
    )


def _points(ours: Spread | None, theirs: float) -> Cell:
    if ours is None:
        return Cell(NONE)
    return Cell(f"{100 * (ours.mean - theirs):+.1f}", value=ours.mean - theirs)
