"""Run folders: one config → one run → one folder with a manifest and what the run made.

runs/001-pretrain/
manifest.json         config, model, data, results, versions, sha256 of the weights
model.safetensors     plain weights; normalization is the model's first layer
metrics.jsonl         one line an epoch
ckpt-000120/          the whole state after step 120 (``checkpoints``)
.lock                 held by the process that writes the run

An attack is a run too: ``003-attack/`` has ``outcomes.safetensors``, one verdict an image.
Reading them loads no torch; ``weights`` does.
"""

import difflib
import itertools
import os
import re
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from cartl_cli import __version__
from cartl_cli.core import storage
from cartl_cli.core.config import CONFIGS, ImportConfig, Kind
from cartl_cli.core.config.values import ADDRESS, PACKAGED
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.runs.command_line import resuming
from cartl_cli.core.runs.manifest import Manifest, Run
from cartl_cli.core.runs.parsing import parse_manifest, read_json
from cartl_cli.core.runs.results import AttackResults
from cartl_cli.core.storage import FileRecord

MANIFEST = "manifest.json"


def read_run(folder: Path) -> Run:
    """Read and validate a run folder's manifest. Raises RunError with the reason if it is bad."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise RunError(f"{str(folder)!r} is not a cartl run (no {MANIFEST})")
    manifest = parse_manifest(read_json(path, "manifest"), path)
    return Run(folder, manifest)


def state(run: Run) -> str:
    """How a run stands, in words for a message, and how to go on with it."""
    status = run.manifest.status
    if storage.is_locked(run.folder):
        return "being written now; wait for it"
    if status in ("completed", "diverged"):
        return status
    ended = "crashed" if status == "running" else status
    return f"{ended}; go on with: {resuming(run)}"


def list_runs(runs_dir: Path) -> list[Run]:
    """The readable runs under ``runs_dir``, oldest first."""
    runs = []
    folders = sorted(runs_dir.iterdir()) if runs_dir.is_dir() else []
    for folder in folders:
        if not re.fullmatch(storage.TEMPORARY, folder.name):
            with suppress(RunError):
                runs.append(read_run(folder))
    return sorted(runs, key=lambda run: run.manifest.number)


def attacks_on(run: Run, also: Path | None = None) -> tuple[Run, ...]:
    """The finished attacks on exactly a run's weights, beside it and in ``also``, newest first."""
    places = {place.resolve(): place for place in (run.folder.parent, also) if place is not None}
    return tuple(
        other
        for place in places.values()
        for other in reversed(list_runs(place))
        if isinstance(other.manifest.results, AttackResults)
        and other.manifest.status == "completed"
        and _took(other, run)
    )


def source_beside(run: Run) -> Run | None:
    """The run beside it whose model a run started from, unless it has other weights now."""
    return next((other for other in list_runs(run.folder.parent) if _took(run, other)), None)


def _took(run: Run, other: Run) -> bool:
    """Whether a run took the model of the other, with the weights that it has now."""
    record, weights = run.manifest.source, other.manifest.weights
    return bool(record and weights and (record.run, record.sha256) == (other.name, weights.sha256))


def same_runs(runs_dir: Path, draft: Manifest) -> list[Run]:
    """The runs of the same kind with the same settings, on the same data and source model."""

    def key(manifest: Manifest) -> tuple[object, ...]:
        source = manifest.source.sha256 if manifest.source else None
        return manifest.kind, manifest.config, manifest.data.fingerprint, source

    return [run for run in list_runs(runs_dir) if key(run.manifest) == key(draft)]


def next_number(runs_dir: Path) -> int:
    """One more than any run here has, or any folder whose name is like that of a run."""
    numbers = [run.manifest.number for run in list_runs(runs_dir)]
    for folder in runs_dir.iterdir():
        if match := re.fullmatch(rf"(\d{{3,9}})-({'|'.join(CONFIGS)})", folder.name):
            numbers.append(int(match[1]))
    return max(numbers, default=0) + 1


def free_name(place: Path, name: str) -> str:
    """The name, or if a folder has it the first of ``name-2``, ``name-3``, … that is free."""
    names = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
    return next(one for one in names if not os.path.lexists(place / one))


def find_run(selector: str, runs_dir: Path, flag: str, kinds: tuple[Kind, ...]) -> Run:
    """The run that a name, number, path, or the address of what was imported means.

    Raises UsageError if there is none or it is of another kind, RunError if it is damaged.
    """
    if selector.endswith((".pt", ".pth", ".ckpt", ".pkl")):
        raise UsageError(
            f"{flag}: {selector!r} is a pickle file; pickle can run code and is never loaded; "
            "give a run folder"
        )
    run = _look_up(selector, runs_dir, flag)
    kind = run.manifest.kind
    if kind in kinds:
        return run
    if kind == "attack" and run.manifest.source is not None:
        attacked = run.manifest.source.run
        raise UsageError(f"{flag}: {run.name!r} is an attack result; its run is {attacked!r}")
    raise UsageError(f"{flag}: {run.name!r} is a {kind} run, not {' or '.join(kinds)}")


def imports_of(address: str, runs_dir: Path) -> list[Run]:
    """The finished imports of what is published under an address, oldest first."""
    return [
        run
        for run in list_runs(runs_dir)
        if isinstance(run.manifest.config, ImportConfig)
        and run.manifest.config.checkpoint == address
        and run.manifest.status == "completed"
    ]


def _look_up(selector: str, runs_dir: Path, flag: str) -> Run:
    if ADDRESS.fullmatch(selector):
        if imported := imports_of(selector, runs_dir):
            return imported[-1]
        raise UsageError(f"{flag}: no import of {selector} yet; run: cartl import {selector}")
    if selector.isdecimal():
        runs = [run for run in list_runs(runs_dir) if run.manifest.number == int(selector)]
        if len(runs) > 1:
            names = ", ".join(run.name for run in runs)
            raise UsageError(f"{flag}: run {selector} found twice: {names}; give a name")
        if runs:
            return runs[0]
    nameless = selector.rstrip("/") in (".", "..")  # the folder one is in, or the one above
    path = Path(os.path.abspath(selector) if nameless else os.path.expanduser(selector))
    for folder in (path,) if nameless else (runs_dir / selector, path):
        if folder.is_dir():
            return read_run(folder)
    known = [run.name for run in list_runs(runs_dir)]
    names = ", ".join(known) or "none"
    with_cartl = [PACKAGED] if flag == "--source" else []
    packaged = f"; {PACKAGED} comes with cartl" if with_cartl else ""
    close = difflib.get_close_matches(selector, [*known, *with_cartl], n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    raise UsageError(
        f"{flag}: no such run: {selector!r}{meant}; runs in {str(runs_dir)!r}: {names}{packaged}"
    )


def newest_run(
    runs_dir: Path,
    kinds: tuple[Kind, ...],
    flag: str,
    passed_over: Collection[str] = (),
    fits: Callable[[Run], bool] | None = None,
) -> Run:
    """The finished run with the highest number that ``fits``, else the one with the highest.

    None of those ``passed_over``, which sweeps made. ``flag`` is what names one. Raises UsageError
    if there is none.
    """
    finished = [
        run
        for run in reversed(list_runs(runs_dir))
        if run.manifest.kind in kinds and run.manifest.status == "completed"
    ]
    if unasked := [run for run in finished if run.name not in passed_over]:
        return next(filter(fits, unasked), unasked[0])
    what = f"finished {' or '.join(kinds)} run"
    if finished:
        raise UsageError(
            f"{flag}: every {what} in {str(runs_dir)!r} is of a sweep, and none of those is taken "
            f"unasked; give {flag} NAME, such as {finished[0].name}"
        )
    packaged = (
        f", or give --source {PACKAGED}, which comes with cartl" if flag == "--source" else ""
    )
    raise UsageError(f"no {what} in {place(runs_dir)}; run cartl pretrain first{packaged}")


def place(runs_dir: Path) -> str:
    """The folder of runs for a message, which says if there is none."""
    return repr(str(runs_dir)) + ("" if runs_dir.is_dir() else ", which is no folder")


def finished_weights(run: Run) -> FileRecord:
    """The record of the weights of a finished training. Raises RunError if it is not finished."""
    manifest = run.manifest
    if manifest.status != "completed" or manifest.weights is None:
        raise RunError(f"run {run.name!r} is not complete: {state(run)}")
    return manifest.weights


def selector_of(run: Run, runs_dir: Path) -> str:
    """What a config keeps of a run: its name in ``runs_dir``, else its path."""
    inside = run.folder.resolve().parent == runs_dir.resolve()
    return run.folder.name if inside else homely(run.folder)


def homely(path: Path) -> str:
    """The absolute path with the home directory as ``~``: it can be read from any folder and
    names no user.
    """
    absolute, home = path.resolve(), Path(os.path.expanduser("~")).resolve()
    if len(home.parts) > 1 and absolute.is_relative_to(home):
        return str("~" / absolute.relative_to(home))
    return str(absolute)


def remarks(run: Run) -> list[str]:
    """What a user should know about a run before its model is used."""
    import torch

    found = []
    for name, here in (("cartl", __version__), ("torch", torch.__version__)):
        there = run.manifest.versions.get(name, "?")
        if there != here:
            found.append(f"note: run {run.name} was made with {name} {there}, here is {here}")
    if run.folder.stat().st_mode & stat.S_IWOTH:
        found.append(f"warning: every user of this machine may write {run.folder}")
    return found
