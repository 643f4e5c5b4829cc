"""What must hold after any fault, checked for the tests and for the figures of the docs."""

import contextlib
import hashlib
import io
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from cartl_cli import app
from cartl_cli.core.errors import CartlError
from cartl_cli.core.runs import checkpoints
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.recorded import read_recorded
from tests import tiny
from tests.disks import FaultyDisk, Operation, PageCache, RecordingDisk, Survives, disk

Digests = dict[int, dict[str, str]]
"""Step → file → sha256, of every checkpoint of an undisturbed run."""


def call(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run a command in this process; its exit code and what it said on stderr."""
    err = io.StringIO()
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", ["cartl", *arguments]),
        mock.patch.dict("os.environ", {"XDG_CACHE_HOME": str(folder.parent / "cache")}),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(err),
    ):
        try:
            app.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return code, err.getvalue()


@dataclass
class Acknowledged:
    """Steps the product has said are saved, with the digests of their files."""

    steps: Digests = field(default_factory=dict)
    recorder: RecordingDisk | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note every checkpoint whose saving has returned."""
        real = checkpoints.save

        def save(run: Any, position: Any, contents: Any) -> None:
            real(run, position, contents)
            saved = run.folder / f"ckpt-{position.step:06d}"
            self.steps[position.step] = {
                name: hashlib.sha256((saved / name).read_bytes()).hexdigest() for name in contents
            }
            if self.recorder:
                self.recorder.ack(str(position.step))

        with mock.patch.object(checkpoints, "save", save):
            yield


@dataclass(frozen=True)
class Undisturbed:
    """A command's run when nothing goes wrong: all checkpoints, what it leaves, how it got there.

    ``before`` is the folder of runs as it was; ``log`` every change of the disk.
    """

    name: str
    before: Path
    place: Path
    digests: Digests
    left: dict[str, Any]
    log: list[Operation]


def undisturbed(name: str, before: Path, place: Path) -> Undisturbed:
    """Run a command of ``tiny`` on a disk that writes everything down."""
    folder = tiny.scene(before, place)
    recorder = RecordingDisk()
    watch = Acknowledged(recorder=recorder)
    with disk(recorder), watch.watching():
        code, said = call(tiny.command(name), folder)
    assert code == 0, said
    recorder.ack("completed")
    left = tiny.left(folder / "runs" / name)
    return Undisturbed(name, before, folder, watch.steps, left, recorder.log)


def fault(
    run: Undisturbed, place: Path, number: int, error: int, lasting: bool
) -> list[str] | None:
    """What is wrong after operation ``number`` of a command failed; None if it has no so many.

    Nothing is wrong if what can be read is a state of the undisturbed run, no acknowledged one is
    lost, the next start ends in the same bytes, and no temporary file is left.
    """
    folder = tiny.scene(run.before, place)
    watch = Acknowledged()
    bad = FaultyDisk(number, error, lasting)
    with disk(bad), watch.watching():
        code, said = call(tiny.command(run.name), folder)
    if bad.faults == 0:
        shutil.rmtree(folder)
        return None
    wrong = [] if code in (0, 1) else [f"exit code {code}: {said}"]
    if code and not said.splitlines()[-1].startswith("cartl: error: "):
        wrong.append(f"unclear: {said}")
    wrong += unreadable(run, folder / "runs", max(watch.steps, default=0))
    wrong += next_start(run, folder)
    shutil.rmtree(folder)
    return wrong


def next_start(run: Undisturbed, folder: Path) -> list[str]:
    """What is wrong with the end of the run after the next start."""
    again = (folder / "runs" / run.name).exists()
    code, said = call(tiny.resume(run.name) if again else tiny.command(run.name), folder)
    if code != 0:
        return [f"next start: {said}"]
    wrong = []
    if tiny.left(folder / "runs" / run.name) != run.left:
        wrong.append("the next start ended in other bytes")
    if found := tiny.orphans(folder):
        wrong.append(f"left behind: {found}")
    for path in run.before.rglob("*.safetensors"):
        if (folder / "runs" / path.relative_to(run.before)).read_bytes() != path.read_bytes():
            wrong.append(f"changed: {path.name}")
    return wrong


def unreadable(
    run: Undisturbed, runs_dir: Path, acknowledged: int, completed: bool = False
) -> list[str]:
    """What is wrong with what a reader finds: it must be an old state or a new one, whole."""
    folder = runs_dir / run.name
    if not folder.exists():
        return [] if acknowledged == 0 else [f"run lost, step {acknowledged} was acknowledged"]
    try:
        found = read_run(folder)
        status = found.manifest.status
        kept = found.manifest
        for record in (kept.weights, kept.outcomes, kept.adversarial):
            if record is not None:
                read_recorded(folder, record)
        newest = checkpoints.newest(found, lambda line: None)
    except CartlError as error:
        return [f"unreadable: {error}"]
    if completed and status != "completed":
        return [f"completion was acknowledged, found {status}"]
    if found.manifest.kind == "attack" and status == "completed":
        left = tiny.left(folder)  # its checkpoints have done their work
        return [f"{name} is lost" for name in run.left if left.get(name) != run.left[name]]
    if newest is None:
        return [] if acknowledged == 0 else [f"step {acknowledged} lost"]
    position, files = newest
    wrong = []
    if position.step < acknowledged:
        wrong.append(f"step {acknowledged} was acknowledged, found {position.step}")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    if digests != run.digests[position.step]:
        wrong.append(f"step {position.step} has other bytes")
    return wrong


def power_cuts(
    run: Undisturbed, place: Path, survives: Survives, unsynced: str = ""
) -> Iterator[list[str]]:
    """What is wrong after a power cut behind each operation of the undisturbed run, one by one.

    ``unsynced`` names a place in the product whose fsync is taken away.
    """
    start = place / "start"
    tiny.scene(run.before, start)
    cache = PageCache(start)
    acknowledged, completed = 0, False
    for number, operation in enumerate(run.log):
        if operation.kind == "ack":
            completed = operation.to == "completed"
            acknowledged = acknowledged if completed else int(operation.to)
        elif operation.site != unsynced or not unsynced:
            cache.replay(_moved(operation, run.place, start))
        left = place / f"cut-{number}"
        cache.after_power_cut(survives, left)
        yield unreadable(run, left / "runs", acknowledged, completed)
        shutil.rmtree(left)
    shutil.rmtree(start)


def _moved(operation: Operation, here: Path, there: Path) -> Operation:
    def move(path: str) -> str:
        return path.replace(str(here), str(there), 1)

    return Operation(operation.kind, move(operation.path), move(operation.to), operation.data)


def sync_sites(run: Undisturbed) -> list[str]:
    """The places in the product that sync something during this run."""
    return sorted({operation.site for operation in run.log if operation.kind == "fsync"})
