"""Counted randomness: every draw has its own address, so nothing depends on what came before.

A generator is seeded by (seed, purpose, counters). The same address gives the same numbers in any
order, after any interruption and with any batch size.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
