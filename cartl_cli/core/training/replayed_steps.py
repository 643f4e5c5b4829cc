"""Steps of a training on CUDA as one graph: the device is told once for a step, not each kernel.

A step of a small network is thousands of short kernels: attack, passes, optimizer. Telling the
device each of them takes longer than the kernels do.
"""

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from cartl_cli.core.method.objective import StepLoss
from cartl_cli.core.models.compiling import compiled_passes
from cartl_cli.core.runtime.ranks import Part
from cartl_cli.core.runtime.replays import Places, captured
from cartl_cli.core.training.loop import Take, Training, take_step
from cartl_cli.core.training.training_plan import TrainingPlan, TrainingSetup

Found = TypeVar("Found")

PLAIN = 3
"""Steps of a phase that are taken as they are: kernels are compiled and chosen meanwhile."""


@dataclass(frozen=True)
class Graph:
    """A captured step: ``replay`` takes it again, of what lies in its places by then."""

    replay: Callable[[], None]
    images: Tensor
    labels: Tensor
    rate: Tensor
    places: Places
    found: StepLoss

    def take(self, images: Tensor, labels: Tensor, step: int, rate: float) -> StepLoss:
        """One step of the optimizer; what it gives is overwritten by the next."""
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.rate.fill_(rate)
        self.places.renew(step)
        self.replay()
        return self.found


class ReplayedSteps:
    """``take_step``, in which steps of full batches are replayed; ``phase``: see TrainingPlan.

    To be used on a ``side_stream``: the default one cannot be captured. If a step cannot be
    captured, that is said, and all go on as they are.
    """

    def __init__(
        self,
        phase: Callable[[int], Hashable],
        head_steps: int,
        full: int,
        say: Callable[[str], None],
    ) -> None:
        self.phase_of = phase
        self.head_steps = head_steps
        self.full = full
        self.say = say
        self.phase: Hashable = None
        self.plain = 0
        self.graph: Graph | None = None

    def __call__(
        self, training: Training, images: Tensor, labels: Tensor, step: int, part: Part, rate: float
    ) -> StepLoss:
        """See ``take_step``."""
        if len(images) != self.full:
            return take_step(training, images, labels, step, part, rate)
        if (phase := (self.phase_of(step), step < self.head_steps)) != self.phase:
            self.phase, self.plain, self.graph = phase, 0, None
        if self.graph is None and self.plain < PLAIN:
            self.plain += 1
            return take_step(training, images, labels, step, part, rate)
        if self.graph is None:
            try:
                self.graph = capture(training, images, labels, step, part)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                self.say(f"note: steps cannot be replayed as a graph ({reason}); going on without")
                self.full = 0
                training.optimizer.zero_grad()  # half a step may have left some
                return take_step(training, images, labels, step, part, rate)
        return self.graph.take(images, labels, step, rate)


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Let the device do what it is told for a while on a stream of its own."""
    stream, usual = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(usual)
    with torch.cuda.stream(stream):
        yield
    usual.wait_stream(stream)


def capture(training: Training, images: Tensor, labels: Tensor, step: int, part: Part) -> Graph:
    """A step as a graph. It has not been taken yet."""
    images, labels = images.clone(), labels.clone()
    rate, places = torch.zeros((), device=images.device), Places(images.device)
    with captured(places):
        found, replay = recorded(lambda: take_step(training, images, labels, step, part, rate))
    return Graph(replay, images, labels, rate, places, found)


def recorded(work: Callable[[], Found]) -> tuple[Found, Callable[[], None]]:
    """Where ``work`` leaves what it gives, and what lets the device do it. Nothing is done yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(
        graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
    ):
        found = work()
    return found, graph.replay


@contextmanager
def compiled_steps(
    plan: TrainingPlan,
    setup: TrainingSetup,
    failed: Callable[[str], None] | None,
    say: Callable[[str], None],
) -> Iterator[Take]:
    """How to take the steps of a plan: compiled if the setup says so, on CUDA replayed as graphs.

    ``failed``: see ``compiled_passes``. How long compiling takes is told.
    """
    full = setup.config.batch_size if setup.compile else 0
    with compiled_passes(full, failed, graphs=False):
        if not setup.compile:
            yield take_step
        elif setup.device.type == "cuda":
            with side_stream(setup.device):
                yield first_timed(ReplayedSteps(plan.phase, plan.head_steps, full, say), say)
        else:
            yield first_timed(take_step, say)


def first_timed(take: Take, say: Callable[[str], None]) -> Take:
    """The same; after the first step it is told how long that took."""
    began: list[float] = []

    def timed(training: Training, *step: Any) -> StepLoss:
        if began:
            return take(training, *step)
        began.append(time.monotonic())
        found = take(training, *step)
        found.loss.item()  # until the device has done it
        say(f"compiled in {time.monotonic() - began[0]:.0f} s")
        return found

    return timed
