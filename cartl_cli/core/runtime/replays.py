"""What changes from step to step of a training whose steps are replayed as one CUDA graph.

A graph has the numbers of the step that it was captured from. What differs in later steps lies in
places that stay, and is renewed there before each of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from cartl_cli.core.runtime.randomness import generator, uniform_noise

AHEAD = 4  # steps that the host may be ahead of the device by


@dataclass
class Places:
    """What one graph takes from outside, besides its batch: ``tensors``, and how to renew each."""

    device: torch.device
    tensors: list[Tensor] = field(default_factory=list)
    renewals: list[Callable[[int], None]] = field(default_factory=list)

    def add(self, tensor: Tensor, renew: Callable[[int], None]) -> Tensor:
        """A new place; ``renew`` fills it with what belongs to a step."""
        self.tensors.append(tensor)
        self.renewals.append(renew)
        return tensor

    def renew(self, step: int) -> None:
        """Fill every place with what belongs to a step."""
        for renew in self.renewals:
            renew(step)


_captured: ContextVar[Places | None] = ContextVar("the places of the graph at hand", default=None)


@contextmanager
def captured(places: Places) -> Iterator[None]:
    """While a step is captured: ``noise_of`` and ``number_of`` give places."""
    token = _captured.set(places)
    try:
        yield
    finally:
        _captured.reset(token)


def noise_of(step: int, images: Tensor, seed: int, purpose: str, first: int) -> Tensor:
    """``uniform_noise`` of the images, drawn for a step; of their batch they are the rows from
    ``first`` on.
    """
    places = _captured.get()
    if places is None:
        return uniform_noise(images, generator(seed, purpose, step), first)
    place = torch.empty(images.shape, device=images.device)
    shape = (first + len(images), *images.shape[1:])
    on_host = Upload(shape, places.device)

    def renew(step: int) -> None:
        with on_host.turn() as drawn:
            torch.rand(shape, generator=generator(seed, purpose, step), out=drawn)
            place.copy_(drawn[first:], non_blocking=True)

    return places.add(place, renew)


def number_of(step: int, make: Callable[[int], float]) -> float:
    """What ``make`` gives for a step; in a graph a 0-d tensor, to compute with as with a float."""
    places = _captured.get()
    if places is None:
        return make(step)
    place = torch.empty((), device=places.device)

    def renew(step: int) -> None:
        place.fill_(make(step))

    return cast(float, places.add(place, renew))


class Upload:
    """Memory of the host from which a device copies while the next step is prepared.

    Each of ``AHEAD`` tensors is filled again once the device has copied it. To ask for pinned
    memory anew in each step would be to wait for the device.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.slots = [torch.empty(shape, pin_memory=self.on_cuda) for _ in range(AHEAD)]
        self.copied: list[torch.cuda.Event | None] = [None] * AHEAD
        self.turns = 0

    @contextmanager
    def turn(self) -> Iterator[Tensor]:
        """The tensor whose turn it is, to be filled and sent."""
        number = self.turns % AHEAD
        self.turns += 1
        if (event := self.copied[number]) is not None:
            event.synchronize()
        yield self.slots[number]
        if self.on_cuda:
            self.copied[number] = copied = torch.cuda.Event()
            copied.record()
