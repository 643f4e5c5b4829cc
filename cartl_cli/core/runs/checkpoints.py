"""Checkpoints of a run: ``ckpt-000120/`` holds its whole state after step 120.

``checkpoint.json`` is written last and names the other files with their sha256. A checkpoint is
valid if all of that is true, and the newest is the valid one with the highest step: neither a
folder's name nor its date is believed.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from cartl_cli.core import storage
from cartl_cli.core.config import ImportConfig
from cartl_cli.core.errors import RunError, StoppedError, StorageError
from cartl_cli.core.runs.command_line import resuming
from cartl_cli.core.runs.manifest import Checkpoint, Position, Run
from cartl_cli.core.runs.parsing import parse_checkpoint, read_json
from cartl_cli.core.runs.recorded import read_recorded
from cartl_cli.core.runs.weights import to_bytes
from cartl_cli.core.runtime.ranks import ALONE, Ranks
from cartl_cli.core.runtime.stopping import Asked

RECORD = "checkpoint.json"
KEPT = 2
LOOK_EVERY = 0.5  # seconds; to look is to wait until the device has done all its work

Contents = Mapping[str, bytes | Mapping[str, Tensor]]
"""File name → what it holds: bytes, or tensors by name."""


def save(run: Run, position: Position, contents: Contents) -> None:
    """Commit a checkpoint, read it back, and only then remove those that are too old.

    Raises StorageError if it cannot be written, RunError if it does not read back.
    """
    whole = {name: c if isinstance(c, bytes) else to_bytes(c) for name, c in contents.items()}
    checkpoint = Checkpoint(
        run=run.manifest.id,
        position=position,
        files=tuple(storage.describe(name, data) for name, data in whole.items()),
    )
    folder = run.folder / f"ckpt-{position.step:06d}"
    storage.commit_folder(folder, {**whole, RECORD: checkpoint.model_dump_json(indent=1).encode()})
    _read_files(folder, checkpoint)
    prune(run, position.step)


def prune(run: Run, newest_step: int) -> None:
    """Remove what is older than the ``KEPT`` newest checkpoints, given the newest valid one."""
    older = [path for step, path in _listed(run)[0] if step < newest_step]
    for path in older[KEPT - 1 :]:
        storage.remove_folder(path)


def newest(run: Run, say: Callable[[str], None]) -> tuple[Position, dict[str, bytes]] | None:
    """Position and files of the newest valid checkpoint, or None if none was ever saved.

    A damaged one is named through ``say`` and passed over. Raises RunError if there are only
    damaged ones; nothing is removed.
    """
    found, damaged = _listed(run)
    for _, path in found:
        try:
            checkpoint = _read_record(run, path)
            files = _read_files(path, checkpoint)
        except RunError as error:
            damaged.append(f"{path.name} is damaged ({error})")
            continue
        for line in damaged:
            say(f"{line}; going on from step {checkpoint.position.step}")
        return checkpoint.position, files
    if damaged:
        raise RunError(
            f"no usable checkpoint in {str(run.folder)!r}: {'; '.join(damaged)}; nothing was "
            "removed; start a new run"
        )
    return None


def shared(position: Position, ranks: Ranks) -> Position:
    """Where the first process begins, in every process."""
    return Position.model_validate_json(ranks.text(position.model_dump_json()))


def _listed(run: Run) -> tuple[list[tuple[int, Path]], list[str]]:
    """Step and folder of each checkpoint whose record can be read, newest first; and the rest."""
    found, damaged = [], []
    for entry in os.scandir(run.folder):
        if re.fullmatch(r"ckpt-\d{1,12}", entry.name):
            path = Path(entry.path)
            try:
                found.append((_read_record(run, path).position.step, path))
            except RunError as error:
                damaged.append(f"{path.name} is damaged ({error})")
    return sorted(found, reverse=True), damaged


def _read_record(run: Run, folder: Path) -> Checkpoint:
    path = folder / RECORD
    if folder.is_symlink():
        raise RunError(f"a link, refusing to follow it: {folder}")
    checkpoint = parse_checkpoint(read_json(path, RECORD), path)
    if checkpoint.run != run.manifest.id:
        raise RunError(f"checkpoint belongs to run {checkpoint.run}, not {run.manifest.id}: {path}")
    return checkpoint


def _read_files(folder: Path, checkpoint: Checkpoint) -> dict[str, bytes]:
    return {record.name: read_recorded(folder, record) for record in checkpoint.files}


class Keeper:
    """Knows when a run's state is to be saved: when it is due, on a signal, after the last step.

    Many processes save at the same step, as soon as one of them is asked to stop or finds it due.
    All of them make the contents, the first one writes them.
    """

    def __init__(self, run: Run, begun: Position, asked: Asked, ranks: Ranks = ALONE) -> None:
        self.run = run
        self.asked = asked
        self.ranks = ranks
        self.saved = begun.step
        self.clock = self.looked = time.monotonic()
        self.due = False
        self.signal: int | None = None
        config = run.manifest.config
        assert not isinstance(config, ImportConfig)  # which is made at once
        self.save_every = config.save_every
        if ranks.rank == 0:
            prune(run, begun.step)  # what an interrupted saving did not come to

    def step_done(self, step: int) -> bool:
        """Whether to look at the run after ``step``: the same in every process. Ask each step."""
        now = time.monotonic()
        signal, due, long_ago = self.ranks.largest(
            self.asked.signal or 0,
            has_passed(self.save_every, step - self.saved, now - self.clock),
            now - self.looked >= LOOK_EVERY,
        )
        self.due, self.signal = bool(due), signal or None
        return bool(due or signal or long_ago)

    def is_due(self, position: Position, total: int) -> bool:
        """Whether to save the state after a step, of ``total``, that was looked at."""
        self.looked = time.monotonic()
        wanted = self.due or self.signal is not None or position.step == total
        return wanted and position.step > self.saved

    def keep(self, position: Position, contents: Contents) -> None:
        """Save the state. Raises StorageError if that cannot be done."""
        try:
            if self.ranks.rank == 0:
                save(self.run, position, contents)
        except StorageError as error:
            kept = f"checkpoint {self.saved} is kept" if self.saved else "nothing was saved before"
            raise StorageError(
                f"cannot save step {position.step}: {error}; {kept}; make room, then go on with: "
                f"{resuming(self.run)}"
            ) from error
        self.saved, self.clock = position.step, time.monotonic()

    def stop_if_asked(self, where: str) -> None:
        """Raise StoppedError if a signal has asked to stop one of the processes."""
        stop_if_asked(self.run, self.signal, where)


def stop_if_asked(run: Run, signal: int | None, where: str) -> None:
    """Raise StoppedError if a signal has come; the run's state must be saved."""
    if signal is not None:
        raise StoppedError(f"interrupted {where}; go on with: {resuming(run)}", signal)


def has_passed(interval: str, steps: int, seconds: float) -> bool:
    """Whether an interval (see ``check_interval``) has passed."""
    if interval.endswith("m"):
        return seconds >= 60 * float(interval.removesuffix("m"))
    return steps >= int(interval)
