"""From the names of attacks and sweeps to results, and what was left out of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from cartl_cli.core.config import Kind, TransferConfig
from cartl_cli.core.errors import RunError
from cartl_cli.core.evaluation.confusion import confusions
from cartl_cli.core.reports.provenance import Result, conditions_of, setting_of
from cartl_cli.core.runs.manifest import Run, SourceRecord
from cartl_cli.core.runs.reader import MANIFEST, find_run, place, read_run, state
from cartl_cli.core.runs.results import headline
from cartl_cli.core.sweeps.points import read_sweep, sweep_path


@dataclass(frozen=True)
class LeftOut:
    """A run that is in no average, and why; ``fault``: because something is wrong with it."""

    name: str
    reason: str
    fault: bool


@dataclass(frozen=True)
class Found:
    """What was asked for: results, what was left out, and the paper's table of a sweep."""

    results: tuple[Result, ...]
    left_out: tuple[LeftOut, ...]
    table: str | None


def find_results(selectors: Sequence[str], runs_dir: Path) -> Found:
    """The results of the named attacks and sweeps; of all attacks in ``runs_dir`` if none is.

    Raises UsageError for a name that means nothing, RunError where there is no attack at all.
    """
    folders, left_out, table = _folders(selectors, runs_dir)
    runs: dict[Path, Run] = {}
    attacks = []
    for folder in folders:
        try:
            run = runs[folder] = read_run(folder)
        except RunError as error:
            left_out.append(LeftOut(folder.name, str(error), fault=True))
            continue
        if run.manifest.kind == "attack":
            attacks.append(run)
    results, seen = [], set()
    for run in sorted(attacks, key=lambda run: (run.manifest.number, run.name)):
        if run.manifest.id in seen:
            continue
        seen.add(run.manifest.id)
        found = _result(run, runs)
        if isinstance(found, LeftOut):
            left_out.append(found)
        else:
            try:
                found = replace(found, answered=confusions(run))
            except RunError as error:
                reason = f"not counted class by class: {error}"
                left_out.append(LeftOut(run.name, reason, fault=False))
            results.append(found)
    if not results and not left_out:
        raise RunError(f"no attacks in {place(runs_dir)}; run cartl attack first")
    return Found(tuple(results), tuple(left_out), table)


def _folders(
    selectors: Sequence[str], runs_dir: Path
) -> tuple[list[Path], list[LeftOut], str | None]:
    """Run folders, each once; what is none; the table of the paper that a sweep repeats."""
    if not selectors:
        entries = sorted(runs_dir.iterdir()) if runs_dir.is_dir() else []
        return [entry for entry in entries if os.path.lexists(entry / MANIFEST)], [], None
    folders: dict[Path, None] = {}
    left_out: list[LeftOut] = []
    tables = set()
    for selector in selectors:
        if (path := _sweep_file(selector, runs_dir)) is not None:
            sweep = read_sweep(path)
            tables.add(sweep.table)
            for point in sweep.points:
                folder = path.parent.parent / point.run
                if (folder / MANIFEST).exists():
                    folders[folder] = None
                elif point.kind == "attack":
                    left_out.append(LeftOut(point.run, "not run yet", fault=False))
            continue
        folder = Path(os.path.expanduser(selector))
        if "/" in selector and os.path.lexists(folder) and not os.path.lexists(folder / MANIFEST):
            left_out.append(LeftOut(selector, "is not a run", fault=True))
        elif (runs_dir / selector).is_dir():
            folders[runs_dir / selector] = None
        elif folder.is_dir():
            folders[folder] = None
        else:
            folders[find_run(selector, runs_dir, "RUN", get_args(Kind)).folder] = None
    alone = {folder.resolve(): folder for folder in reversed(folders)}
    return list(reversed(alone.values())), left_out, tables.pop() if len(tables) == 1 else None


def _sweep_file(selector: str, runs_dir: Path) -> Path | None:
    if selector.isdecimal() or (runs_dir / selector / MANIFEST).exists():
        return None
    for path in (sweep_path(runs_dir, selector), Path(os.path.expanduser(selector))):
        if path.suffix == ".json" and path.is_file():
            return path
    return None


def _result(run: Run, runs: dict[Path, Run]) -> Result | LeftOut:
    """One attack, or why it cannot be told; ``runs`` has the runs that were read."""
    if run.manifest.status != "completed":
        return LeftOut(run.name, f"incomplete: {state(run)}", fault=False)
    try:
        checks = run.attack_results.trust
        if headline(checks) == "invalid":
            failed = [check.id for check in checks if check.verdict == "fail"]
            return LeftOut(run.name, f"INVALID: {', '.join(failed)} failed", fault=False)
        check_possible(run)
        return _joined(run, runs)
    except RunError as error:
        return LeftOut(run.name, str(error), fault=True)


def check_possible(run: Run) -> None:
    """Refuse numbers that no attack can have found. Raises RunError."""
    config, results = run.attack, run.attack_results
    if not {"eps", "norm"} <= config.model_fields_set:
        raise RunError(f"no eps and norm recorded in run {run.name!r}")
    if tuple(found.eps for found in results.by_eps) != config.eps:
        raise RunError(f"results of run {run.name!r} are not of the eps of its settings")
    for found in results.by_eps:
        parts = [added.alone for added in found.added if added.alone is not None]
        for accuracy in (results.clean_accuracy, found.robust_accuracy, *parts):
            count = accuracy * results.n
            if accuracy > results.clean_accuracy or abs(count - round(count)) >= 1e-3:
                raise RunError(
                    f"impossible value in run {run.name!r}: accuracy {accuracy:g} of "
                    f"{results.n} images, {results.clean_accuracy:g} when clean"
                )
        if any(not added.fell <= added.attacked <= results.n for added in found.added):
            raise RunError(f"impossible value in run {run.name!r}: more fell than were attacked")


def _joined(run: Run, runs: dict[Path, Run]) -> Result:
    origin = run.source
    attacked = _beside(run, run.attack.run, origin, runs)
    if attacked is None:
        raise RunError(f"the run that it attacked is gone: {origin.run!r}")
    if attacked.manifest.weights is None or attacked.manifest.weights.sha256 != origin.sha256:
        raise RunError(f"stale attack result: run {attacked.name!r} has other weights now")
    trainings: tuple[Run, ...] = (attacked,)
    if (record := attacked.manifest.source) is not None:
        assert isinstance(attacked.manifest.config, TransferConfig)
        source = _beside(attacked, attacked.manifest.config.source, record, runs)
        weights = source.manifest.weights if source else None
        if source is not None and weights is not None and weights.sha256 == record.sha256:
            trainings = (source, attacked)
    seeds = list(dict.fromkeys(str(training.making.seed) for training in trainings))
    return Result(run, trainings, setting_of(trainings), conditions_of(run), "/".join(seeds))


def _beside(run: Run, selector: str, taken: SourceRecord, runs: dict[Path, Run]) -> Run | None:
    """The run whose model another took: beside it, or where its settings say.

    Of two that have its name, the one that has the weights that were taken.
    """
    found = None
    beside = run.folder.parent / taken.run
    above = run.folder.parent.parent / taken.run  # of a shorter training, kept inside its run
    for folder in (beside, above, Path(os.path.expanduser(selector or taken.run))):
        if folder not in runs and os.path.lexists(folder / MANIFEST):
            runs[folder] = read_run(folder)
        if folder in runs:
            weights = runs[folder].manifest.weights
            if weights is not None and weights.sha256 == taken.sha256:
                return runs[folder]
            found = found or runs[folder]
    return found
