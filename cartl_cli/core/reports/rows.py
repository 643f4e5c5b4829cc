"""From results to a report: means over seeds, paired tests, what the paper has beside it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from cartl_cli.core.errors import CartlError, UsageError
from cartl_cli.core.evaluation.confusion import Confusion
from cartl_cli.core.registry.transfer_methods import ADDITIONS, looks, symbols
from cartl_cli.core.reports.collection import LeftOut
from cartl_cli.core.reports.provenance import Conditions, Result, TrainingSetting
from cartl_cli.core.runs.results import headline
from cartl_cli.core.statistics import Difference, Spread, holm, spread


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seeds alone, at one eps: a line of a table.

    ``pgd`` is what PGD on the cross-entropy alone leaves, ``robust`` the worst of all attacks;
    ``incomplete`` names the runs whose checks say that a stronger attack was found. ``answered``:
    how the images were answered, clean and at this eps, all seeds together; nothing where a run
    does not tell.
    """

    setting: TrainingSetting
    conditions: Conditions
    eps: float
    results: tuple[Result, ...]
    clean: Spread
    pgd: Spread | None
    robust: Spread
    incomplete: tuple[str, ...]
    answered: tuple[Confusion, ...]

    @property
    def seeds(self) -> tuple[str, ...]:
        """The seed of each run."""
        return tuple(result.seed for result in self.results)


@dataclass(frozen=True)
class Paired:
    """Two runs image by image, clean (``eps`` None) or at one eps: ours minus the baseline's.

    ``p`` is McNemar's, ``p_holm`` the same adjusted for every comparison of the report.
    """

    ours: Result
    theirs: Result
    eps: float | None
    difference: Difference
    p_holm: float


def rows_of(results: Iterable[Result]) -> tuple[list[Row], list[LeftOut]]:
    """Results gathered over seeds, in the order of their settings; a seed counts once in a row."""
    gathered: dict[tuple[TrainingSetting, Conditions], dict[str, Result]] = {}
    repeats = []
    for result in results:
        row = gathered.setdefault((result.setting, result.conditions), {})
        first = row.setdefault(result.seed, result)
        if first is not result:
            reason = f"same settings, seed and images as {first.run.name!r}; counted once"
            repeats.append(LeftOut(result.run.name, reason, fault=False))
    rows = [
        _row(setting, conditions, number, sorted(by_seed.values(), key=lambda one: one.order))
        for (setting, conditions), by_seed in gathered.items()
        for number in range(len(conditions.eps))
    ]
    return sorted(rows, key=_order), repeats


def _row(
    setting: TrainingSetting, conditions: Conditions, number: int, results: list[Result]
) -> Row:
    n = conditions.n
    found = [result.numbers.by_eps[number] for result in results]
    alone = [value for one in found if (value := one.alone("pgd")) is not None]
    return Row(
        setting=setting,
        conditions=conditions,
        eps=conditions.eps[number],
        results=tuple(results),
        clean=spread([result.numbers.clean_accuracy for result in results], n),
        pgd=spread(alone, n) if len(alone) == len(results) else None,
        robust=spread([one.robust_accuracy for one in found], n),
        incomplete=tuple(
            result.run.name for result in results if headline(result.numbers.trust) != "ok"
        ),
        answered=_together(results, number),
    )


def _together(results: Sequence[Result], number: int) -> tuple[Confusion, ...]:
    """The answers of all seeds, clean and at an eps: shares of a class are means over seeds."""
    if not all(result.answered for result in results):
        return ()
    classes = results[0].conditions.classes
    return tuple(
        Confusion(classes, sum((one.answered[place].counts for one in results), Counter()))
        for place in (0, 1 + number)
    )


def methods() -> list[str]:
    """What the methods are called, in the order of a report."""
    return [look.label for look in looks()]


def _order(row: Row) -> tuple[object, ...]:
    setting, conditions = row.setting, row.conditions
    return (
        (setting.source_data, setting.target_data or "", conditions.data, setting.arch),
        methods().index(setting.method),
        setting.k,
        *(setting.number(name) or 0 for name in symbols()),
        (-setting.fraction, setting.freeze_bn or ""),
        setting.others,
        (conditions.norm, row.eps, conditions.pgd_steps, conditions.n),
        repr(conditions),
    )


def _number(name: str, row: Row) -> float:
    return row.setting.number(name) or 0


SORTS: dict[str, Callable[[Row], float | str]] = {
    "method": lambda row: methods().index(row.setting.method),
    "k": lambda row: row.setting.k,
    **{one.column: partial(_number, name) for name, one in ADDITIONS.items()},
    "lambda": lambda row: row.setting.fdm_lambda or 0,
    "fraction": lambda row: row.setting.fraction,
    "data": lambda row: f"{row.setting.source_data} {row.setting.target_data}",
    "eps": lambda row: row.eps,
    "n": lambda row: row.conditions.n,
    "clean": lambda row: -row.clean.mean,
    "pgd": lambda row: -row.pgd.mean if row.pgd else 1,
    "robust": lambda row: -row.robust.mean,
}
"""What rows can be sorted by; accuracies fall, by their exact values."""


def sorted_rows(rows: Sequence[Row], column: str) -> list[Row]:
    """The rows by one of their columns. Raises UsageError where there is none of that name."""
    if column not in SORTS:
        raise UsageError(f"--sort-by: no column {column!r}; have {', '.join(SORTS)}")
    return sorted(rows, key=SORTS[column])


def paired_with(rows: Sequence[Row], baseline: str) -> tuple[list[Paired], list[LeftOut]]:
    """Each run against its baseline image by image, p values adjusted (Holm) over all of them.

    ``baseline`` is a method, whose run of the same seed, images, attack and data each run meets,
    at the same k where there are several, or the name or number of one run, which meets all.
    Raises UsageError if it is neither.
    """
    from cartl_cli.core.evaluation.comparison import compare

    theirs_of = _baselines(rows, baseline)
    tests: list[tuple[Result, Result, float | None, Difference]] = []
    impossible: list[LeftOut] = []
    every = {id(result): (row, result) for row in rows for result in row.results}
    for row, ours in every.values():
        theirs = theirs_of(row, ours)
        if ours.run.manifest.outcomes is None:
            theirs = "its outcomes image by image are not there"
        if isinstance(theirs, str):
            impossible.append(LeftOut(ours.run.name, f"no paired test: {theirs}", fault=False))
        elif theirs is not ours:
            try:
                found = compare(ours.run, theirs.run)
            except CartlError as error:
                reason = f"no paired test: {str(error).removeprefix('--compare: ')}"
                impossible.append(LeftOut(ours.run.name, reason, fault=False))
            else:
                tests += [(ours, theirs, eps, difference) for eps, difference in found.items()]
    adjusted = holm([difference.p for *_, difference in tests])
    pairs = zip(tests, adjusted, strict=True)
    return [Paired(*test, p_holm=p) for test, p in pairs], impossible


def _baselines(rows: Sequence[Row], baseline: str) -> Callable[[Row, Result], Result | str]:
    by_method = {name.lower(): name for name in methods()}
    if (method := by_method.get(baseline.lower())) is not None:
        candidates: dict[object, list[Row]] = {}
        for row in rows:
            if row.setting.method == method:
                candidates.setdefault(meeting(row), []).append(row)
        if not candidates:
            raise UsageError(f"--baseline: no {method} among the results")
        return lambda row, ours: (
            ours
            if row.setting.method == method
            else _baseline_of(row, ours, candidates.get(meeting(row), []))
        )
    named = {
        result.run.name: result
        for row in rows
        for result in row.results
        if baseline in (result.run.name, result.attacked, str(result.run.manifest.number))
    }
    if len(named) != 1:
        which = f"several: {', '.join(sorted(named))}; name one" if named else "neither"
        raise UsageError(
            f"--baseline: a method ({', '.join(methods())}) or one of the reported attacks; "
            f"{baseline!r} is {which}"
        )
    (theirs,) = named.values()
    return lambda row, ours: theirs


def meeting(row: Row) -> tuple[object, ...]:
    """What a row and its baseline must have in common."""
    return row.conditions, row.eps, row.setting.source_data, row.setting.arch


def _baseline_of(row: Row, ours: Result, candidates: Sequence[Row]) -> Result | str:
    """The run of the baseline method that one meets, or why there is none."""
    alike = list(candidates)
    for field in ("k", "fraction", "fdm_lambda", "freeze_bn"):
        wanted = getattr(row.setting, field)
        alike = [one for one in alike if getattr(one.setting, field) == wanted] or alike
    if not alike:
        return "no baseline on the same images"
    if len(alike) > 1:
        method = alike[0].setting.method
        return (
            f"{len(alike)} lines of {method} are alike in k, fraction, λ FDM and freeze-bn; "
            "choose a run with --baseline RUN"
        )
    found = [other for other in alike[0].results if other.seed == ours.seed]
    return found[0] if found else f"the baseline has no seed {ours.seed}"
