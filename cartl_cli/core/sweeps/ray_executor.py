"""The executor ``ray``: each run a task on a node of a Ray cluster, in a folder that all share.

A task is no more than a ``cartl`` command that it starts on its node and waits for. If the node or
the worker is lost, another task goes on from the last checkpoint.
"""

import io
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from cartl_cli import __version__
from cartl_cli.core import storage
from cartl_cli.core.errors import CartlError, StorageError, UsageError
from cartl_cli.core.runtime.stopping import SIGNALS, stop_signals
from cartl_cli.core.sweeps.executor import PAUSE, Executor, Job, begin, log_path, write_settings
from cartl_cli.core.sweeps.points import Point

TRIES = 4  # of a run whose worker is lost again and again
ANSWER = 10.0  # seconds in which an address must answer
LOOK = 300.0  # seconds in which a node must have looked at the shared folder
RELEASE = 300.0  # seconds for the lock of a lost run: a file server may notice its death late
STOPPED = 128 + signal.SIGTERM
SEEN = "shared"


@dataclass(frozen=True)
class Node:
    """A living node of the cluster."""

    id: str
    name: str
    cpus: float
    gpus: float

    def room(self, cpus: int, gpus: float) -> int:
        """How many runs of so many CPUs and GPUs it takes at a time."""
        by_cpus = int(self.cpus / cpus)
        return min(by_cpus, int(self.gpus) * int(1 / gpus)) if gpus else by_cpus


@contextmanager
def connected(address: str) -> Iterator[list[Node]]:
    """The nodes of a cluster, while we are connected to it. Raises CartlError if none answers.

    What Ray prints meanwhile is dropped: stdout is ours, and what matters to a run its job says.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _check_answer(address)
    with redirect_stdout(io.StringIO()):
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (Exception, SystemExit) as error:  # Ray exits where a cluster begins to answer
            mend = "start one with: ray start --head, or give --ray-address local"
            raise CartlError(
                f"--ray-address: no Ray cluster at {address!r} ({error}); {mend}"
            ) from None
        try:
            yield [_node(found) for found in ray.nodes() if found["Alive"]]
        finally:
            ray.shutdown()


def _check_answer(address: str) -> None:
    """Ask at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise CartlError(
            f"--ray-address: no answer from {address!r} ({error}); is the cluster up, and this the "
            "address that ray start --head said?"
        ) from None


def _node(found: dict[str, Any]) -> Node:
    has = found["Resources"]
    return Node(
        found["NodeID"], found["NodeManagerHostname"], has.get("CPU", 0.0), has.get("GPU", 0.0)
    )


def with_room(nodes: Iterable[Node], cpus: int, gpus: float) -> dict[Node, int]:
    """How many runs each node takes at a time, of those that take any.

    Raises UsageError if none does.
    """
    nodes = list(nodes)
    found = {node: room for node in nodes if (room := node.room(cpus, gpus))}
    if not found:
        most = ", ".join(f"{node.name}: {node.cpus:g} and {node.gpus:g}" for node in nodes[:5])
        raise UsageError(
            f"--cpus {cpus} --gpus {gpus:g}: no node of the cluster has as much (CPUs and GPUs of "
            f"{most})"
        )
    return found


# What must hold on every node


@dataclass(frozen=True)
class Sight:
    """What a node sees: the token in the shared folder, and its versions of what runs use."""

    token: str
    versions: dict[str, str]


def look(path: Path) -> Sight:
    """On a node: what it sees of the file and of its own packages."""
    with suppress(CartlError):
        return Sight(storage.read(path, "token", 100)[0].decode(), _versions())
    return Sight("", _versions())


def check_nodes(nodes: Iterable[Node], folder: Path) -> list[str]:
    """Make sure that every node sees ``folder``; gives warnings of versions that are not ours.

    Raises CartlError naming a node that does not, or where cartl cannot be run.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = secrets.token_hex(16)
    storage.write_whole(folder / SEEN, token.encode())
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        node: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(folder / SEEN)
        for node in nodes
    }
    sights = {}
    for node, reference in asked.items():
        try:
            sights[node] = ray.get(reference, timeout=LOOK)
        except ray.exceptions.RayError as error:
            raise CartlError(
                f"node {node.name} cannot run cartl ({_last_line(error)}); install there what is "
                "installed here"
            ) from None
    return judge(sights, token, folder)


def judge(sights: dict[Node, Sight], token: str, folder: Path) -> list[str]:
    """Warnings of versions that are not ours. Raises CartlError if a node did not see the token."""
    warnings = []
    for node, sight in sights.items():
        if sight.token != token:
            raise CartlError(
                f"node {node.name} does not see {str(folder)!r} as it is here; give a --runs-dir "
                "that all nodes share under one path"
            )
        warnings += [
            f"warning: node {node.name} has {name} {there}, here is {here}: other bits"
            for name, here in _versions().items()
            if (there := sight.versions.get(name)) != here
        ]
    return warnings


def _versions() -> dict[str, str]:
    found = {"cartl": __version__}
    for name in ("torch", "torchvision"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# Runs


def ray_tasks(
    runs_dir: Path,
    folder: Path,
    flags: Sequence[str],
    cpus: int,
    gpus: float,
    say: Callable[[str], None],
) -> Executor:
    """Runs as tasks of the cluster we are connected to. Paths must hold on every node.

    Each has ``cpus`` threads wherever it runs. ``say`` is told when one is begun again.
    """
    import ray

    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(carry_out)

    def start(point: Point) -> Job:
        def submit() -> Any:
            return task.options(name=point.run).remote(
                point, runs_dir, folder, flags, cpus, gpus > 0
            )

        def note(line: str) -> None:
            say(f"{point.run}: {line}")
            with suppress(StorageError):  # a log that cannot be written is no reason to stop
                storage.add_line(log_path(folder, point), line)

        write_settings(folder, point)
        return Task(submit, note, submit())

    return start


@dataclass
class Task:
    """A run on the cluster as a ``Job``; ``losses`` says why each lost worker was lost."""

    submit: Callable[[], Any]
    note: Callable[[str], None]
    reference: Any
    losses: list[str] = field(default_factory=list)
    stopping: bool = False

    def poll(self) -> int | None:
        """The exit code, or None while it runs; begins it again where its worker was lost."""
        import ray

        if not ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            code = int(ray.get(self.reference))
            if self.stopping or code not in [128 + number for number in SIGNALS]:
                return code
            return self._lost("its worker was told to end")
        except ray.exceptions.TaskCancelledError:
            return STOPPED
        except ray.exceptions.RayTaskError as error:
            self.note(f"could not be started: {_last_line(error)}")
            return 1
        except ray.exceptions.RayError as error:
            return self._lost(str(error).partition(". ")[0].partition("\n")[0])

    def terminate(self) -> None:
        """Ask the command to save and end, or take the task out of the queue."""
        import ray

        self.stopping = True
        ray.cancel(self.reference)

    def _lost(self, reason: str) -> int | None:
        if self.stopping:
            return STOPPED
        self.losses.append(reason)
        if len(self.losses) == TRIES:
            reasons = "; ".join(dict.fromkeys(self.losses))
            self.note(f"gave up after {TRIES} tries: {reasons}")
            return 1
        self.note(f"lost, going on elsewhere (try {len(self.losses) + 1} of {TRIES}): {reason}")
        self.reference = self.submit()
        return None


def carry_out(
    point: Point, runs_dir: Path, folder: Path, flags: Sequence[str], threads: int, has_gpu: bool
) -> int:
    """On a node: make a run, new or to go on with, and give the exit code of its command.

    A task that is cancelled gets SIGINT, a worker that is to end SIGTERM: both are passed on. A
    run that a lost worker held is begun once its lock is free.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if not has_gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    until = time.monotonic() + RELEASE
    with stop_signals() as asked:
        while storage.is_locked(runs_dir / point.run) and time.monotonic() < until:
            if asked.signal:
                return STOPPED
            time.sleep(PAUSE)
        command = begin(point, runs_dir, folder, flags, environment, "cartl_cli.tethered")
        told = False
        while (code := command.poll()) is None:
            if asked.signal and not told:
                told = True
                command.terminate()
            time.sleep(PAUSE)
        return code


def _last_line(error: Exception) -> str:
    """What went wrong on a node: Ray's error holds the whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
