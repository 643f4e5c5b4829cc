"""Points → an executor: each run made once, after what it needs, a few at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cartl_cli.core import storage
from cartl_cli.core.errors import CartlError, RunError
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import MANIFEST, read_run
from cartl_cli.core.runs.results import AttackResults, TrainingResults
from cartl_cli.core.runtime.stopping import Asked
from cartl_cli.core.sweeps.points import Point, Sweep, point_id

PAUSE = 0.1  # seconds between two looks at the runs under way
MAX_LOG = 1_000_000  # bytes of a log that are looked at

Status = Literal["waiting", "running", "done", "failed", "skipped"]


@dataclass(frozen=True)
class State:
    """How a point stands; ``reason`` says why, where it failed."""

    status: Status
    reason: str = ""
    clean_accuracy: float | None = None
    robust_accuracy: float | None = None


States = dict[str, State]


class Job(Protocol):
    """A run under way: its exit code once it has ended, and the wish that it saves and ends."""

    def poll(self) -> int | None:
        """The exit code, minus the signal that killed it, or None while it runs."""

    def terminate(self) -> None:
        """Ask it to save and end."""


Executor = Callable[[Point], Job]
"""Starts the run of a point, new or to go on with, and returns at once."""


def local(
    runs_dir: Path, folder: Path, flags: Sequence[str], threads: int | None = None
) -> Executor:
    """Runs as processes of this machine; see ``begin``."""
    environment = dict(os.environ)
    if threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(threads))

    def start(point: Point) -> Job:
        write_settings(folder, point)
        return begin(point, runs_dir, folder, flags, environment)

    return start


def write_settings(folder: Path, point: Point) -> None:
    """Keep the settings of a point where its run finds them. Raises StorageError."""
    text = point.config.model_dump_json(indent=1)
    storage.write_whole(settings_path(folder, point), text.encode())


def begin(
    point: Point,
    runs_dir: Path,
    folder: Path,
    flags: Sequence[str],
    environment: Mapping[str, str],
    module: str = "cartl_cli",
) -> "subprocess.Popen[bytes]":
    """The run of a point, new or to go on with, as a ``cartl`` command in a process of its own.

    Its settings are in ``folder``, where its output is kept. The process is in a group of its own,
    so that Ctrl-C reaches it once: through us. Raises StorageError or OSError where it cannot be
    started.
    """
    begun = os.path.lexists(runs_dir / point.run / MANIFEST)
    command = [
        *(sys.executable, "-m", module, point.kind, "--runs-dir", str(runs_dir)),
        *("--resume" if begun else "--name", point.run),
        *("--config", str(settings_path(folder, point))),
        *(["--force"] if point.kind == "attack" else []),  # the same one by another name
        *flags,
    ]
    log = storage.open_log(log_path(folder, point))
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            process_group=0,
        )
    finally:
        os.close(log)


def execute(
    sweep: Sweep,
    states: States,
    state_of: Callable[[Point, int], State],
    start: Executor,
    jobs: int,
    asked: Asked,
    report: Callable[[Point, State], None],
) -> States:
    """Run what is waiting, at most ``jobs`` at a time; a failure is that of its dependents alone.

    ``state_of`` tells how a point stands whose job ended with an exit code. Once a signal is
    ``asked`` for, what runs is told once to save and end, and nothing is begun.
    """
    states = dict(states)
    running: dict[str, Job] = {}
    points = {point.id: point for point in sweep.points}

    def now(point: Point, state: State) -> None:
        states[point.id] = state
        report(point, state)

    def begin(point: Point) -> None:
        try:
            running[point.id] = start(point)
            now(point, State("running"))
        except (CartlError, OSError) as error:
            now(point, State("failed", f"could not be started: {error}"))

    stopping = False
    try:
        while True:
            if asked.signal and not stopping:
                stopping = True
                for job in running.values():
                    job.terminate()
            for point in sweep.points:
                if states[point.id].status != "waiting" or stopping:
                    continue
                needed = states[point.needs].status if point.needs else "done"
                if needed in ("failed", "skipped"):
                    which = points[point.needs or ""]
                    now(point, State("skipped", f"what it needs, {which.run}, {needed}"))
                elif needed == "done" and len(running) < jobs:
                    begin(point)
            if not running:
                return states
            time.sleep(PAUSE)
            for name, job in list(running.items()):
                if (code := job.poll()) is not None:
                    del running[name]
                    now(points[name], state_of(points[name], code))
    finally:
        for job in running.values() if not stopping else ():
            job.terminate()
        while any(job.poll() is None for job in running.values()):
            time.sleep(PAUSE)


def survey(sweep: Sweep, runs_dir: Path) -> States:
    """How every point stands before anything is run."""
    return {point.id: stored_state(point, runs_dir) for point in sweep.points}


def stored_state(point: Point, runs_dir: Path) -> State:
    """How a point stands by its run folder."""
    folder = runs_dir / point.run
    if not os.path.lexists(folder):
        return State("waiting")
    try:
        run = read_run(folder)
    except RunError as error:
        return State("failed", f"{error}; move it away to run it again")
    manifest = run.manifest
    source = manifest.source.sha256 if manifest.source else None
    config, wanted = manifest.config, point.config.batch_size
    if config.batch_size == min(wanted, manifest.data.train_images):  # as small as its data
        config = config.model_copy(update={"batch_size": wanted})
    if point_id(manifest.kind, config, point.needs or source) != point.id:
        return State("failed", f"{folder} holds a run with other settings; move it away")
    if manifest.status == "diverged":
        return State("failed", f"run {run.name} diverged and would again")
    if manifest.status == "completed":
        return State("done", "", *accuracies(run))
    if storage.is_locked(folder):
        return State("failed", f"run {run.name} is being written by another process; wait for it")
    return State("waiting")


def ended_state(point: Point, code: int, runs_dir: Path, folder: Path, stopped: bool) -> State:
    """How a point stands whose job ended with an exit code, minus the signal that killed it.

    A run that is complete is done, though its job may not have been able to write its log.
    """
    state = stored_state(point, runs_dir)
    if state.status == "done":
        return state
    if code == 0:
        return state if state.status != "waiting" else State("failed", "ended without a result")
    if stopped and code in (128 + signal.SIGTERM, -signal.SIGTERM):
        return State("waiting")
    if code < 0:
        memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return State("failed", f"killed by {signal.Signals(-code).name}{memory}")
    return State("failed", _last_line(log_path(folder, point)) or f"ended with code {code}")


def accuracies(run: Run) -> tuple[float | None, float | None]:
    """Clean and robust accuracy of a finished run, an attack's at its largest eps."""
    results = run.manifest.results
    if isinstance(results, AttackResults):
        return results.clean_accuracy, results.by_eps[-1].robust_accuracy
    if isinstance(results, TrainingResults):
        return results.clean_accuracy, results.robust_accuracy
    return None, None


def settings_path(folder: Path, point: Point) -> Path:
    """Where the settings of a point's job are kept."""
    return folder / f"{point.run}.json"


def log_path(folder: Path, point: Point) -> Path:
    """Where the output of a point's job is kept."""
    return folder / f"{point.run}.log"


def _last_line(path: Path) -> str:
    """What a command said last, without its name."""
    try:
        data, _ = storage.read(path, "log", MAX_LOG)
    except RunError:
        return ""
    lines = data.decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("cartl: ").removeprefix("error: ").strip()
