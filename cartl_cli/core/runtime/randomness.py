"""Counted randomness: every draw has its own address, so nothing depends on what came before.

A generator is seeded by (seed, purpose, counters). The same address gives the same numbers in any
order, after any interruption and with any batch size.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for one address, e.g. ``generator(0, "attack start", restart, index)``."""
    address = f"{seed}/{purpose}/" + "/".join(map(str, counters))
    digest = hashlib.sha256(address.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Global random state of one address for a while, for initialisers that know no generator."""
    with torch.random.fork_rng(devices=[]):  # initialisers draw on the CPU
        torch.default_generator.manual_seed(generator(seed, purpose).initial_seed())
        yield


def uniform_noise(images: Tensor, draws: torch.Generator, first: int = 0) -> Tensor:
    """U(0, 1) of the shape of a whole batch, or of its rows from ``first`` on.

    A row's noise does not depend on which other rows are asked for.
    """
    shape = (first + len(images), *images.shape[1:])
    return sent(torch.rand(shape, generator=draws)[first:], images.device)


def counted_noise(images: Tensor, seed: int, purpose: str, number: int, indices: Tensor) -> Tensor:
    """U(0, 1) of the images' shape, drawn per image index: it does not depend on the batch."""
    noise = torch.stack(
        [
            torch.rand(images.shape[1:], generator=generator(seed, purpose, number, index))
            for index in indices.tolist()
        ]
    )
    return noise.to(images.device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, which this process does not wait for."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
