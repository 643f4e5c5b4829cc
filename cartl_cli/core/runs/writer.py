"""The writing of a run: beginning, going on, ending; one process at a time, status always true."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from cartl_cli.core import storage
from cartl_cli.core.data.downloads import Place
from cartl_cli.core.errors import (
    CartlError,
    DivergedError,
    InUseError,
    RunError,
    StoppedError,
    UsageError,
)
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs import weights
from cartl_cli.core.runs.command_line import resuming
from cartl_cli.core.runs.manifest import Manifest, Run
from cartl_cli.core.runs.metrics import METRICS
from cartl_cli.core.runs.parsing import parse_manifest
from cartl_cli.core.runs.reader import MANIFEST, free_name, next_number, read_run, same_runs, state
from cartl_cli.core.runs.recorded import read_recorded
from cartl_cli.core.runs.results import AttackResults, ImportResults, TrainingResults
from cartl_cli.core.runs.seal import sealed
from cartl_cli.core.runtime.ranks import ALONE, Ranks, is_lost

WEIGHTS = "model.safetensors"
OUTCOMES = "outcomes.safetensors"
UNSAID = {"processes": "1", "compile": "no"}  # versions in a manifest that does not say
SPARE = 3  # checkpoints that must fit on the disk before a run begins


@dataclass(frozen=True)
class Session:
    """Where a command keeps its run and its data, and whom it tells.

    ``resume`` is the run to go on with.
    """

    runs_dir: Path
    name: str | None
    place: Place
    say: Callable[[str], None]
    resume: Run | None = None
    ranks: Ranks = ALONE


def check_place(session: Session) -> None:
    """Make sure a run can be written, before any work; creates ``runs_dir``.

    Raises UsageError for a path that cannot be a folder or a name that is taken, StorageError
    where the system refuses. Of many processes only the first looks.
    """
    if session.ranks.rank > 0:
        return
    runs_dir = session.runs_dir
    shown = f"--runs-dir: {str(runs_dir)!r}"
    try:
        if runs_dir.is_symlink() and not runs_dir.exists():
            raise UsageError(f"{shown} is a link that points nowhere")
        if runs_dir.exists() and not runs_dir.is_dir():
            raise UsageError(f"{shown} is a file, not a folder; give another --runs-dir")
        if not runs_dir.exists() and not runs_dir.parent.is_dir():
            raise UsageError(f"{shown}: parent folder missing; create {str(runs_dir.parent)!r}")
    except OSError as error:  # a name too long, a loop of links
        raise UsageError(f"{shown}: {error.strerror}") from None
    storage.make_folder(runs_dir)
    with storage.locked(runs_dir, wait=True):
        storage.sweep(runs_dir)
    if kind := storage.unreliable_locks(runs_dir):
        session.say(
            f"warning: {runs_dir} is on {kind}, where locks are unreliable: never write "
            "one run from two machines"
        )
    if session.resume is None and session.name is not None:
        _check_free(runs_dir, session.name)


@contextmanager
def written(session: Session, draft: Manifest, checkpoint_size: int) -> Iterator[Run]:
    """A run folder that is this process's to write: a new one, or the one to go on with.

    It is marked ``running`` and locked; on an error the manifest records how it ended. Raises
    StorageError without ``SPARE`` times ``checkpoint_size`` bytes of free disk, UsageError if the
    name is taken, RunError if the run to go on with is another than ``draft`` describes. Of many
    processes the first does all this, and the others learn what it began.
    """
    ranks = session.ranks
    if ranks.rank > 0:
        begun, folder = ranks.text(""), Path(ranks.text(""))
        run = Run(folder, parse_manifest(json.loads(begun), folder))
        with _together(run, ranks):
            yield run
        return
    storage.check_space(session.runs_dir, SPARE * checkpoint_size)
    with ExitStack() as held:
        if session.resume is None:
            run = _begin(session, draft, held)
        else:
            held.enter_context(storage.locked(session.resume.folder))
            run = _go_on(session, read_run(session.resume.folder), draft)
        if ranks.size > 1:
            ranks.text(_text(run.manifest).decode())
            ranks.text(str(run.folder))
        held.enter_context(_together(run, ranks))
        try:
            yield run
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            if isinstance(error, CartlError):
                status = error.status
            with suppress(CartlError):  # the first error is the one to tell
                _write(run, status=status)
            raise
        with suppress(CartlError):
            _tidy(read_run(run.folder))


@contextmanager
def _together(run: Run, ranks: Ranks) -> Iterator[None]:
    """Where all processes stop at the same step, none leaves before the run says so.

    Raises CartlError where another process has ended.
    """
    try:
        yield
    except (StoppedError, DivergedError):
        ranks.wait()
        raise
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise CartlError(
            f"one of {ranks.size} processes has ended; go on with: {resuming(run)}"
        ) from None


def _begin(session: Session, draft: Manifest, held: ExitStack) -> Run:
    runs_dir = session.runs_dir
    for other in same_runs(runs_dir, draft):
        if other.manifest.status != "completed":
            session.say(f"note: run {other.name} has the same settings; {state(other)}")
    with storage.locked(runs_dir, wait=True):
        manifest = draft.model_copy(update={"number": next_number(runs_dir)})
        name = session.name or f"{manifest.number:03d}-{manifest.kind}"
        _check_free(runs_dir, name)
        folder = runs_dir / name
        storage.commit_folder(folder, {MANIFEST: _text(manifest)})
        held.enter_context(storage.locked(folder))
    return Run(folder, manifest)


def _go_on(session: Session, stored: Run, draft: Manifest) -> Run:
    ours, theirs = stored.manifest, draft
    before, here = UNSAID | ours.versions, UNSAID | theirs.versions
    if ours.data.fingerprint != theirs.data.fingerprint:
        raise RunError(f"the data changed since run {stored.name!r} began; start a new run")
    if (ours.source and ours.source.sha256) != (theirs.source and theirs.source.sha256):
        raise RunError(
            f"run {stored.name!r} was started from another source model; start a new run"
        )
    if ours.model != theirs.model or ours.k != theirs.k:
        raise RunError(f"run {stored.name!r} has another model; start a new run")
    other = [
        f"{name} {before.get(name, '?')} → {found}"
        for name, found in here.items()
        if before.get(name) != found
    ]
    if other:
        session.say(f"note: not bit-exact here: {', '.join(other)}")
    if ours.weights is not None:
        _keep_shorter(session, stored, ours.weights)
    storage.sweep(stored.folder)
    nothing = dict.fromkeys(("weights", "outcomes", "adversarial", "results"))
    return _write(stored, status="running", config=draft.config, **nothing)


def _keep_shorter(session: Session, finished: Run, record: storage.FileRecord) -> None:
    """Put a finished run that is to be trained longer in a folder of its own, inside its folder.

    So its model stays, whatever comes of the longer training.
    """
    epochs, metrics = finished.training.epochs, finished.folder / METRICS
    try:
        data = read_recorded(finished.folder, record)
    except RunError as error:  # the longer training gives new ones
        session.say(f"warning: the model after epoch {epochs} cannot be kept: {error}")
        return
    files = {MANIFEST: _text(finished.manifest), WEIGHTS: data}
    if metrics.exists():
        files[METRICS] = metrics.read_bytes()
    kept = finished.folder / free_name(finished.folder, f"epochs-{epochs}")
    storage.commit_folder(kept, files)
    session.say(f"the model after epoch {epochs} stays: {kept}")


def _check_free(runs_dir: Path, name: str) -> None:
    """Refuse a name that is none, or the folder of a run that is there.

    Raises UsageError or, while the run is in use, InUseError.
    """
    if not re.fullmatch(storage.NAME, name) or re.fullmatch(storage.TEMPORARY, name):
        raise UsageError(
            f"--name: {name!r} is not a run name; use letters, digits, '.', '_' and '-', and "
            "--runs-dir for another folder"
        )
    if name.isdecimal():
        raise UsageError(f"--name: {name!r} would be taken for the number of a run; add a letter")
    folder = runs_dir / name
    if not os.path.lexists(folder):
        return
    with suppress(RunError):
        existing = read_run(folder)
        if storage.is_locked(folder):
            raise InUseError(f"run {folder.name!r} is in use by another cartl process")
        raise UsageError(
            f"--name: {str(folder)!r} already holds a run, {state(existing)}; for a new run give "
            "another --name"
        )
    raise UsageError(f"--name: {str(folder)!r} already exists; give another --name")


def write_metrics(run: Run, lines: bytes) -> None:
    """Write the lines so far, one for each epoch."""
    storage.write_whole(run.folder / METRICS, lines)


def finish_model(run: Run, model: BlockModel, results: TrainingResults | ImportResults) -> Run:
    """Write the weights, then the manifest that names them and says ``completed``."""
    data = weights.to_bytes(model.state_dict())
    storage.write_whole(run.folder / WEIGHTS, data)
    record = storage.describe(WEIGHTS, data)
    read_recorded(run.folder, record)
    return _write(run, status="completed", weights=record, results=results)


def finish_attack(
    run: Run,
    outcomes: dict[str, torch.Tensor],
    results: AttackResults,
    adversarial: storage.FileRecord | None = None,
) -> Run:
    """Write the per-image outcomes, then the manifest that names them and ``adversarial``."""
    data = weights.to_bytes(outcomes)
    storage.write_whole(run.folder / OUTCOMES, data)
    record = storage.describe(OUTCOMES, data)
    return _write(
        run, status="completed", outcomes=record, adversarial=adversarial, results=results
    )


def tidy(run: Run) -> None:
    """Remove what a finished run does not need and its last process could not remove."""
    with suppress(CartlError), storage.locked(run.folder):
        _tidy(run)


def _tidy(run: Run) -> None:
    storage.sweep(run.folder)
    if run.manifest.kind == "attack" and run.manifest.status == "completed":
        for folder in run.folder.glob("ckpt-*"):
            storage.remove_folder(folder)


def _write(run: Run, **changes: object) -> Run:
    """The run with some fields of its manifest replaced, in memory and on the disk."""
    changed = Run(run.folder, sealed(run.manifest.model_copy(update=changes)))
    storage.write_whole(run.folder / MANIFEST, _text(changed.manifest))
    return changed


def _text(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()
