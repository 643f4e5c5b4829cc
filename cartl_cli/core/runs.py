"""Run folders: one config → one run → one folder with a manifest, weights and metrics.

runs/001-pretrain/
manifest.json        config, model, data, results, versions, sha256 of the weights
model.safetensors    plain weights; normalization is the model's first layer
metrics.jsonl        one line an epoch
attack-001.json      one file an attack
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError

from cartl_cli.core import storage
from cartl_cli.core.architectures import parse_architecture
from cartl_cli.core.errors import CartlError, DivergedError, RunError, UsageError
from cartl_cli.core.manifest import NAME, FileRecord, Kind, Manifest, Results, Run
from cartl_cli.core.models import build_model
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.surgery import make_convex
from cartl_cli.core.training import Progress

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
METRICS = "metrics.jsonl"


def recorder(run: Run, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Pass progress on, and append a line to ``metrics.jsonl`` at the end of every epoch."""

    def record(progress: Progress) -> None:
        if progress.epoch_ended:
            accuracy = {f"{name}_accuracy": value for name, value in progress.accuracy.items()}
            storage.append_line(
                run.folder / METRICS,
                {
                    "epoch": progress.epoch,
                    "step": progress.step,
                    "loss": progress.loss,
                    **accuracy,
                    "learning_rate": progress.learning_rate,
                    "images_per_second": progress.images_per_second,
                },
            )
        report(progress)

    return record


def check_place(runs_dir: Path, name: str | None) -> None:
    """Make sure a run can be written, before any work; creates ``runs_dir``.

    Raises UsageError for a path that cannot be a folder or a name that is taken, CartlError where
    the system refuses.
    """
    shown = f"--runs-dir: {str(runs_dir)!r}"
    try:
        str(runs_dir).encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{shown} is not valid UTF-8; rename the folder") from None
    try:
        if runs_dir.is_symlink() and not runs_dir.exists():
            raise UsageError(f"{shown} is a link that points nowhere")
        if runs_dir.exists() and not runs_dir.is_dir():
            raise UsageError(f"{shown} is a file, not a folder; give another --runs-dir")
        if not runs_dir.exists() and not runs_dir.parent.is_dir():
            raise UsageError(f"{shown}: parent folder missing; create {str(runs_dir.parent)!r}")
        runs_dir.mkdir(exist_ok=True)
        probe = runs_dir / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno in (36, 40):  # ENAMETOOLONG, ELOOP
            raise UsageError(f"{shown}: {error.strerror}") from None
        raise CartlError(f"cannot write to {str(runs_dir)!r}: {error.strerror}") from None
    if name is not None:
        _check_free(runs_dir / name)


@contextmanager
def new_run(runs_dir: Path, name: str | None, draft: Manifest) -> Iterator[Run]:
    """Create a run folder, locked and marked ``running``; on an error, record how it ended.

    ``draft.number`` is replaced by the next free number, which also names the folder by default.
    Raises UsageError if ``name`` is taken, RunError if another process is writing it.
    """
    manifest = draft.model_copy(update={"number": _next_number(runs_dir)})
    folder = runs_dir / (name or f"{manifest.number:03d}-{manifest.kind}")
    _check_free(folder)
    folder.mkdir()
    run = Run(folder, manifest)
    with _lock(folder):
        write_manifest(run)
        try:
            yield run
        except BaseException as error:
            if isinstance(error, DivergedError):
                status = "diverged"
            else:
                status = "failed" if isinstance(error, Exception) else "interrupted"
            write_manifest(Run(folder, manifest.model_copy(update={"status": status})))
            raise


def _check_free(folder: Path) -> None:
    """Refuse a run folder that is already there. Raises UsageError or, while in use, RunError."""
    if not re.fullmatch(NAME, folder.name):
        raise UsageError(
            f"--name: {folder.name!r} is not a run name; use letters, digits, '.', '_' and '-'"
        )
    if not os.path.lexists(folder):
        return
    if folder.is_dir():
        with _lock(folder):
            pass
    raise UsageError(f"--name: {str(folder)!r} already holds a run; give another --name")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / ".lock", flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"run {folder.name!r} is in use by another cartl process") from None
        yield
    finally:
        os.close(descriptor)


def finish_run(run: Run, model: BlockModel, results: Results) -> Run:
    """Write the weights, then the manifest that names them and says ``completed``."""
    data = storage.weights_to_bytes(model)
    storage.write_whole(run.folder / WEIGHTS, data)
    record = FileRecord(name=WEIGHTS, size=len(data), sha256=storage.sha256(data))
    manifest = run.manifest.model_copy(
        update={"status": "completed", "weights": record, "results": results}
    )
    finished = Run(run.folder, manifest)
    write_manifest(finished)
    return finished


def write_manifest(run: Run) -> None:
    """Replace the run's manifest."""
    text = run.manifest.model_dump_json(indent=1)
    storage.write_whole(run.folder / MANIFEST, text.encode())


def write_attack(run: Run, result: BaseModel) -> Path:
    """Store an attack's result beside the run, under the next free number."""
    number = 1
    while (path := run.folder / f"attack-{number:03d}.json").exists():
        number += 1
    storage.write_whole(path, result.model_dump_json(indent=1).encode())
    return path


def read_run(folder: Path) -> Run:
    """Read and validate a run folder's manifest. Raises RunError with the reason if it is bad."""
    path = folder / MANIFEST
    if not path.exists():
        raise RunError(f"{str(folder)!r} is not a cartl run (no {MANIFEST})")
    content = storage.read_json(path, "manifest")
    schema = content.get("schema_version") if isinstance(content, dict) else None
    if type(schema) is not int or schema < 1:
        raise RunError(f"manifest has a bad schema_version: {path}")
    if schema > SCHEMA_VERSION:
        raise RunError(
            f"manifest was written by a newer cartl (schema {schema}, this one reads "
            f"{SCHEMA_VERSION}); upgrade: {path}"
        )
    weights = content.get("weights")
    if isinstance(weights, dict) and not re.fullmatch(NAME, str(weights.get("name"))):
        raise RunError(f"manifest names a file outside the run ({weights.get('name')!r}): {path}")
    try:
        manifest = Manifest.model_validate(content)
        parse_architecture(manifest.model.arch)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"manifest is not valid: {where}: {first['msg']}: {path}") from None
    except UsageError as error:
        raise RunError(f"manifest: {error}: {path}") from None
    return Run(folder, manifest)


def list_runs(runs_dir: Path) -> list[Run]:
    """The readable runs under ``runs_dir``, oldest first."""
    runs = []
    folders = sorted(runs_dir.iterdir()) if runs_dir.is_dir() else []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except RunError:
            continue
    return sorted(runs, key=lambda run: run.manifest.number)


def _next_number(runs_dir: Path) -> int:
    numbers = [run.manifest.number for run in list_runs(runs_dir)]
    for folder in runs_dir.iterdir():
        if match := re.match(r"(\d{3,9})-", folder.name):
            numbers.append(int(match[1]))
    return max(numbers, default=0) + 1


def find_run(selector: str, runs_dir: Path, flag: str) -> Run:
    """The run that a name, number or path means. Raises UsageError if there is none."""
    if selector.endswith((".pt", ".pth", ".ckpt", ".pkl")):
        raise UsageError(
            f"{flag}: {selector!r} is a pickle file; pickle can run code and is never loaded; "
            "give a run folder"
        )
    if selector.isdecimal():
        runs = [run for run in list_runs(runs_dir) if run.manifest.number == int(selector)]
        if len(runs) > 1:
            raise UsageError(f"{flag}: several runs have the number {selector}; give a name")
        if runs:
            return runs[0]
    for folder in (runs_dir / selector, Path(selector)):
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


def read_model(run: Run) -> BlockModel:
    """The trained network of a finished run, in evaluation mode. Raises RunError.

    Every byte is checked against the manifest before it is used.
    """
    manifest = run.manifest
    if manifest.status != "completed" or manifest.weights is None:
        raise RunError(f"run {run.name!r} is not complete (status {manifest.status})")
    path = run.folder / manifest.weights.name
    data = storage.read_bytes(path, f"checkpoint {manifest.weights.name}")
    storage.check_weights(data, path, manifest.weights.size, manifest.weights.sha256)
    with torch.random.fork_rng(devices=[]):
        model = build_model(manifest.model.arch, len(manifest.model.classes))
    make_convex(model, manifest.model.convex_blocks)
    storage.load_weights(model, data, path)
    return model.eval().to(memory_format=torch.channels_last)
