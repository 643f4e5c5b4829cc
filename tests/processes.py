"""Commands in processes of their own, forked from a server that has loaded torch once.

A child can be told to kill itself at a step, and to forget one part of the saved state: the
negative controls of exact resume.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cartl_cli import app
from cartl_cli.core.data.batches import batches_per_epoch, epoch_batches
from cartl_cli.core.runs import checkpoints
from cartl_cli.core.runs.manifest import Position
from cartl_cli.core.runs.weights import from_bytes
from cartl_cli.core.runtime import replays
from cartl_cli.core.runtime.randomness import generator
from cartl_cli.core.training import catastrophic_overfitting, loop, training_run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "tests.processes",
        *(f"cartl_cli.commands.{name}" for name in ("pretrain", "transfer", "attack")),
        "cartl_cli.core.training.source_model",
        "cartl_cli.core.training.target_model",
        "cartl_cli.core.evaluation.attack_run",
        "cartl_cli.display.tables",
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal that killed it, and its output."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Sabotage:
    """Send ``signal`` to oneself around step ``step``; ``forget`` a part of the saved state.

    With ``collapse``, N-FGSM is found to overfit catastrophically after the first epoch.
    """

    step: int = 0
    signal: int = 0
    times: int = 1
    forget: str = ""
    collapse: bool = False


def start(arguments: list[str], folder: Path, sabotage: Sabotage = Sabotage()) -> Any:
    """A running child process."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # for the server, should this be what starts it
    child = SERVER.Process(target=_child, args=(arguments, str(folder), sabotage))
    child.start()
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before
    return child


def finish(child: Any, folder: Path, timeout: float = 120) -> Ended:
    """Wait for a child's end."""
    child.join(timeout)
    if child.exitcode is None:
        child.kill()
        child.join()
        raise TimeoutError(f"a command took more than {timeout} s")
    texts = []
    for name in ("out", "err"):
        path = folder / f"{name}-{child.pid}"
        texts.append(path.read_text() if path.exists() else "")  # killed before it began
    return Ended(child.exitcode, *texts)


def run(arguments: list[str], folder: Path, sabotage: Sabotage = Sabotage()) -> Ended:
    """One command from its start to its end."""
    return finish(start(arguments, folder, sabotage), folder)


def _child(arguments: list[str], folder: str, sabotage: Sabotage) -> None:
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(Path(folder).parent / "cache")
    torch.set_num_threads(1)
    sys.argv = ["cartl", *arguments]
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}-{os.getpid()}", os.O_WRONLY | os.O_CREAT), descriptor)
    with contextlib.ExitStack() as patches:
        for patch in _patches(sabotage):
            patches.enter_context(patch)
        app.main()


def _patches(sabotage: Sabotage) -> Iterator[Any]:
    if sabotage.signal == signal.SIGKILL:
        yield mock.patch.object(checkpoints, "save", _after_save(sabotage))
    elif sabotage.signal:
        yield mock.patch.object(loop, "learning_rate", _during_step(sabotage))
        yield mock.patch("cartl_cli.core.evaluation.attack_run.Position", _during_batch(sabotage))
    if sabotage.collapse:
        yield mock.patch.object(catastrophic_overfitting.Sign, "collapsed", True)
        yield mock.patch.object(catastrophic_overfitting, "BETWEEN", 1)
    if sabotage.forget:
        yield FORGET[sabotage.forget](sabotage.step)


def _after_save(sabotage: Sabotage) -> Callable[..., None]:
    real = checkpoints.save

    def save(run: Any, position: Any, contents: Any) -> None:
        real(run, position, contents)
        if position.step == sabotage.step:
            os.kill(os.getpid(), sabotage.signal)

    return save


def _during_step(sabotage: Sabotage) -> Callable[..., float]:
    real = loop.learning_rate

    def learning_rate(config: Any, step: int, steps_per_epoch: int) -> float:
        if step + 1 == sabotage.step:
            for _ in range(sabotage.times):
                os.kill(os.getpid(), sabotage.signal)
        return real(config, step, steps_per_epoch)

    return learning_rate


def _during_batch(sabotage: Sabotage) -> Callable[..., Any]:
    def position(**fields: Any) -> Position:
        if fields.get("step") == sabotage.step:
            os.kill(os.getpid(), sabotage.signal)
        return Position(**fields)

    return position


# What a resumed process may forget. Each must change the result, or the test of equality is blind.


def _order(begun: int) -> Any:
    """Begin the epoch again at its first batch."""

    def wrong(split: Any, batch_size: int, *rest: Any) -> Iterator[Any]:
        *rest_, first, _ = rest
        count = batches_per_epoch(len(split), batch_size) - first
        return itertools.islice(epoch_batches(split, batch_size, *rest_), count)

    return mock.patch.object(loop, "epoch_batches", wrong)


def _counters(begun: int) -> Any:
    """Count the random draws of the training attack from the restart."""

    def wrong(seed: int, purpose: str, *counters: int) -> torch.Generator:
        return generator(seed, purpose, *(counter - begun for counter in counters))

    return mock.patch.object(replays, "generator", wrong)


def _schedule(begun: int) -> Any:
    """Begin the learning rate schedule again."""
    real = loop.learning_rate

    def wrong(config: Any, step: int, steps_per_epoch: int) -> float:
        return real(config, step - begun, steps_per_epoch)

    return mock.patch.object(loop, "learning_rate", wrong)


def _tensors(chosen: Callable[[str], bool], fresh: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def wrong(data: bytes, expected: Any, path: Path) -> dict[str, torch.Tensor]:
        found = from_bytes(data, expected, path)
        return {name: fresh(t) if chosen(name) else t for name, t in found.items()}

    return mock.patch.object(training_run, "from_bytes", wrong)


def _batch_norm(begun: int) -> Any:
    """Leave the running statistics as a new model has them."""
    return _tensors(lambda name: "running_" in name, torch.ones_like)


def _spectral(begun: int) -> Any:
    """Start the power iteration from another vector."""
    return _tensors(
        lambda name: name.endswith(("0.u", "0.v")),
        lambda t: torch.nn.functional.normalize(torch.ones_like(t), dim=0),
    )


def _carried(begun: int) -> Any:
    """Leave what a plan carries as it is before the first step."""
    return _tensors(
        lambda name: name in ("delta", "collapsed") or name.startswith("average."), torch.zeros_like
    )


FORGET = {
    "order": _order,
    "counters": _counters,
    "schedule": _schedule,
    "batch norm": _batch_norm,
    "spectral": _spectral,
    "carried": _carried,
}
