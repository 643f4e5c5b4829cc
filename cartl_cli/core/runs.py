"""Run folders: one config → one run → one folder with a manifest and what the run made.

runs/001-pretrain/
manifest.json         config, model, data, results, versions, sha256 of the weights
model.safetensors     plain weights; normalization is the model's first layer
metrics.jsonl         one line an epoch
ckpt-000120/          the whole state after step 120 (``checkpoints``)
.lock                 held by the process that writes the run

An attack is a run too: ``003-attack/`` has ``outcomes.safetensors``, one verdict an image.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from cartl_cli import __version__
from cartl_cli.core import storage, tensors
from cartl_cli.core.architectures import parse_architecture
from cartl_cli.core.checkpoints import prune, resuming
from cartl_cli.core.errors import CartlError, InUseError, RunError, UsageError
from cartl_cli.core.manifest import (
    AttackResults,
    Kind,
    Manifest,
    Run,
    TrainingResults,
    parse_manifest,
)
from cartl_cli.core.models import build_model
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.surgery import make_convex

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
OUTCOMES = "outcomes.safetensors"
SPARE = 3  # checkpoints that must fit on the disk before a run begins


@dataclass(frozen=True)
class Session:
    """Where a command keeps its run and whom it tells; ``resume`` is the run to go on with."""

    runs_dir: Path
    name: str | None
    cache_dir: Path | None
    say: Callable[[str], None]
    resume: Run | None = None


# Beginning, going on, ending


def check_place(session: Session) -> None:
    """Make sure a run can be written, before any work; creates ``runs_dir``.

    Raises UsageError for a path that cannot be a folder or a name that is taken, StorageError
    where the system refuses.
    """
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
        _check_free(runs_dir / session.name)


@contextmanager
def written(session: Session, draft: Manifest, checkpoint_size: int) -> Iterator[Run]:
    """A run folder that is this process's to write: a new one, or the one to go on with.

    It is marked ``running`` and locked; on an error the manifest records how it ended. Raises
    StorageError without ``SPARE`` times ``checkpoint_size`` bytes of free disk, UsageError if the
    name is taken, RunError if the run to go on with is another than ``draft`` describes.
    """
    storage.check_space(session.runs_dir, SPARE * checkpoint_size)
    with ExitStack() as held:
        if session.resume is None:
            run = _begin(session, draft, held)
        else:
            held.enter_context(storage.locked(session.resume.folder))
            run = _go_on(session, read_run(session.resume.folder), draft)
        try:
            yield run
            _tidy(read_run(run.folder))
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            if isinstance(error, CartlError):
                status = error.status
            with suppress(CartlError):  # the first error is the one to tell
                _write(run, status=status)
            raise


def _begin(session: Session, draft: Manifest, held: ExitStack) -> Run:
    runs_dir = session.runs_dir
    for other in same_runs(runs_dir, draft):
        if other.manifest.status != "completed":
            session.say(f"note: run {other.name} has the same settings; {state(other)}")
    with storage.locked(runs_dir, wait=True):
        manifest = draft.model_copy(update={"number": _next_number(runs_dir)})
        folder = runs_dir / (session.name or f"{manifest.number:03d}-{manifest.kind}")
        _check_free(folder)
        storage.commit_folder(folder, {MANIFEST: _text(manifest)})
        held.enter_context(storage.locked(folder))
    return Run(folder, manifest)


def _go_on(session: Session, stored: Run, draft: Manifest) -> Run:
    ours, theirs = stored.manifest, draft
    if ours.data.fingerprint != theirs.data.fingerprint:
        raise RunError(f"the data changed since run {stored.name!r} began; start a new run")
    if (ours.source and ours.source.sha256) != (theirs.source and theirs.source.sha256):
        raise RunError(
            f"run {stored.name!r} was started from another source model; start a new run"
        )
    if ours.model != theirs.model or ours.k != theirs.k:
        raise RunError(f"run {stored.name!r} has another model; start a new run")
    other = [
        f"{name} {ours.versions.get(name, '?')} → {found}"
        for name, found in theirs.versions.items()
        if ours.versions.get(name) != found
    ]
    if other:
        session.say(f"note: not bit-exact here: {', '.join(other)}")
    storage.sweep(stored.folder)
    return _write(
        stored, status="running", config=draft.config, weights=None, outcomes=None, results=None
    )


def _check_free(folder: Path) -> None:
    """Refuse a run folder that is already there. Raises UsageError or, while in use, InUseError."""
    if not re.fullmatch(storage.NAME, folder.name) or re.fullmatch(storage.TEMPORARY, folder.name):
        raise UsageError(
            f"--name: {folder.name!r} is not a run name; use letters, digits, '.', '_' and '-'"
        )
    if not storage.exists(folder):
        return
    with suppress(RunError):
        existing = read_run(folder)
        if storage.is_locked(folder):
            raise InUseError(f"run {folder.name!r} is in use by another cartl process")
        raise UsageError(
            f"--name: {str(folder)!r} already holds a run, {state(existing)}; give another --name"
        )
    raise UsageError(f"--name: {str(folder)!r} already exists; give another --name")


def finish_training(run: Run, model: BlockModel, results: TrainingResults, last_step: int) -> Run:
    """Write the weights, then the manifest that names them and says ``completed``."""
    data = tensors.to_bytes(model.state_dict())
    storage.write_whole(run.folder / WEIGHTS, data)
    weights = storage.describe(WEIGHTS, data)
    tensors.read_recorded(run.folder, weights)
    prune(run, last_step)
    return _write(run, status="completed", weights=weights, results=results)


def finish_attack(run: Run, outcomes: dict[str, torch.Tensor], results: AttackResults) -> Run:
    """Write the per-image outcomes, then the manifest that names them."""
    data = tensors.to_bytes(outcomes)
    storage.write_whole(run.folder / OUTCOMES, data)
    record = storage.describe(OUTCOMES, data)
    return _write(run, status="completed", outcomes=record, results=results)


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
    changed = Run(run.folder, run.manifest.model_copy(update=changes))
    storage.write_whole(run.folder / MANIFEST, _text(changed.manifest))
    return changed


def _text(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()


# Finding and reading


def read_run(folder: Path) -> Run:
    """Read and validate a run folder's manifest. Raises RunError with the reason if it is bad."""
    path = folder / MANIFEST
    if not storage.exists(path):
        raise RunError(f"{str(folder)!r} is not a cartl run (no {MANIFEST})")
    manifest = parse_manifest(storage.read_json(path, "manifest"), path)
    try:
        blocks = parse_architecture(manifest.model.arch).block_count
    except UsageError as error:
        raise RunError(f"manifest: {error}: {path}") from None
    if max(manifest.k, manifest.model.convex_blocks) > blocks:
        raise RunError(f"manifest: {manifest.model.arch} has only {blocks} blocks: {path}")
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


def same_runs(runs_dir: Path, draft: Manifest) -> list[Run]:
    """The runs of the same kind with the same settings, on the same data and source model."""

    def key(manifest: Manifest) -> tuple[object, ...]:
        source = manifest.source.sha256 if manifest.source else None
        return manifest.kind, manifest.config, manifest.data.fingerprint, source

    return [run for run in list_runs(runs_dir) if key(run.manifest) == key(draft)]


def _next_number(runs_dir: Path) -> int:
    numbers = [run.manifest.number for run in list_runs(runs_dir)]
    for folder in runs_dir.iterdir():
        if match := re.match(r"(\d{3,9})-", folder.name):
            numbers.append(int(match[1]))
    return max(numbers, default=0) + 1


def find_run(selector: str, runs_dir: Path, flag: str, kinds: tuple[Kind, ...]) -> Run:
    """The run that a name, number or path means.

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


def _look_up(selector: str, runs_dir: Path, flag: str) -> Run:
    if selector.isdecimal():
        runs = [run for run in list_runs(runs_dir) if run.manifest.number == int(selector)]
        if len(runs) > 1:
            names = ", ".join(run.name for run in runs)
            raise UsageError(f"{flag}: run {selector} found twice: {names}; give a name")
        if runs:
            return runs[0]
    for folder in (runs_dir / selector, Path(os.path.expanduser(selector))):
        if folder.is_dir():
            return read_run(folder)
    names = ", ".join(run.name for run in list_runs(runs_dir)) or "none"
    raise UsageError(f"{flag}: no such run: {selector!r}; runs in {str(runs_dir)!r}: {names}")


def newest_run(runs_dir: Path, kinds: tuple[Kind, ...], command: str) -> Run:
    """The finished run with the highest number. Raises UsageError if there is none."""
    for run in reversed(list_runs(runs_dir)):
        if run.manifest.kind in kinds and run.manifest.status == "completed":
            return run
    raise UsageError(
        f"no finished {' or '.join(kinds)} run in {str(runs_dir)!r}; run {command} first"
    )


def remarks(run: Run) -> list[str]:
    """What a user should know about a run before its model is used."""
    found = []
    for name, here in (("cartl", __version__), ("torch", torch.__version__)):
        there = run.manifest.versions.get(name, "?")
        if there != here:
            found.append(f"note: run {run.name} was made with {name} {there}, here is {here}")
    if run.folder.stat().st_mode & stat.S_IWOTH:
        found.append(f"warning: every user of this machine may write {run.folder}")
    return found


def read_model(run: Run) -> BlockModel:
    """The trained network of a finished run, in evaluation mode. Raises RunError.

    Every byte is checked against the manifest before it is used, and every tensor against the
    architecture before memory is given to it.
    """
    manifest = run.manifest
    if manifest.status != "completed" or manifest.weights is None:
        raise RunError(f"run {run.name!r} is not complete: {state(run)}")
    path = run.folder / manifest.weights.name
    data = tensors.read_recorded(run.folder, manifest.weights)
    with torch.device("meta"):
        expected = build_model(manifest.model.arch, len(manifest.model.classes)).state_dict()
    found = tensors.from_bytes(data, expected, path)
    for name, tensor in found.items():
        if name.endswith("weight") and tensor.dim() > 1 and not tensor.any():
            raise RunError(f"checkpoint: {name} is all zero: {path}")
    with torch.random.fork_rng(devices=[]):
        model = build_model(manifest.model.arch, len(manifest.model.classes))
    make_convex(model, manifest.model.convex_blocks)
    model.load_state_dict(found)
    return model.eval().to(memory_format=torch.channels_last)
