"""Decoded pixels, kept so that each image is decoded once; the cache can be deleted at any time.

An entry is a folder: ``pixels.uint8``, which is mapped into memory and never read whole, and
``state.json``, which tells how far decoding came. So a decoding that was stopped is gone on with.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from cartl_cli.core.config.values import SETTINGS
from cartl_cli.core.data.downloads import Progress
from cartl_cli.core.errors import CartlError, DataError
from cartl_cli.core.storage import allocate, flush, locked, make_cache, write_whole

PIXELS, STATE = "pixels.uint8", "state.json"
PART = 1024  # images that are decoded between two notes of how far it came

Decode = Callable[[int], tuple[Tensor, tuple[str, ...]]]
"""The number of an image → its pixels (3, S, S), and what was changed. Raises DataError."""


class Decoded(BaseModel):
    """How far decoding came: of the first ``done`` images, what was changed, and what is wrong.

    ``changes`` counts images; ``bad`` holds, by number, why an image cannot be used.
    """

    model_config = SETTINGS

    done: Annotated[int, Field(ge=0)] = 0
    changes: dict[str, int] = {}
    bad: dict[int, str] = {}


def decoded_once(
    entry: Path | None, count: int, side: int, decode: Decode, progress: Callable[[int], Progress]
) -> tuple[Tensor, Decoded]:
    """Pixels (N, 3, S, S) of ``count`` images, from the cache as far as they are there.

    Images are decoded in parallel. What is bad has no meaning in the pixels. Without an ``entry``,
    or where the system refuses one, the pixels are in memory alone.
    """
    shape = (count, 3, side, side)
    size = math.prod(shape)
    with _opened(entry, size) as opened:
        if opened is None:
            pixels = torch.empty(shape, dtype=torch.uint8)
            return pixels, _filled(pixels, Decoded(), decode, progress, None)
        file, state = opened
        if state.done < count or state.bad:
            pixels = torch.from_file(str(file), shared=True, size=size, dtype=torch.uint8)
            state = _filled(pixels.view(shape), state, decode, progress, file.parent)
        # a private mapping: nothing that is done to the tensor reaches the cache
        return torch.from_file(str(file), size=size, dtype=torch.uint8).view(shape), state


def _filled(
    pixels: Tensor,
    state: Decoded,
    decode: Decode,
    progress: Callable[[int], Progress],
    entry: Path | None,
) -> Decoded:
    """Decode what is missing of the pixels; the state then, which an ``entry`` is kept up to.

    What was bad is tried again: it may have been made readable since.
    """
    missing = [*state.bad, *range(state.done, len(pixels))]

    def keep(state: Decoded) -> None:
        if entry is not None:
            with suppress(OSError, CartlError):
                _keep(entry, state)

    with progress(len(missing)) as report, ThreadPoolExecutor(1) as disk:
        keeping: list[Future[None]] = []  # one at a time, while the next images are decoded
        for first in range(0, len(missing), PART):
            report(first)
            state = _decode(pixels, missing[first : first + PART], decode, state)
            wait(keeping)
            keeping = [disk.submit(keep, state)]
    return state


def _decode(pixels: Tensor, numbers: list[int], decode: Decode, state: Decoded) -> Decoded:
    """The state after some more images, whose pixels are in their place."""

    def fill(number: int) -> tuple[tuple[str, ...], str | None]:
        try:
            image, changes = decode(number)
        except DataError as error:
            return (), str(error)
        pixels[number] = image
        return changes, None

    changes, bad = Counter(state.changes), dict(state.bad)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for number, (changed, wrong) in zip(numbers, pool.map(fill, numbers), strict=True):
            changes.update(changed)
            bad.pop(number, None)
            if wrong is not None:
                bad[number] = wrong
    return Decoded(done=max(state.done, numbers[-1] + 1), changes=dict(changes), bad=bad)


@contextmanager
def _opened(entry: Path | None, size: int) -> Iterator[tuple[Path, Decoded] | None]:
    """An entry's pixel file and state, for this process alone; None where there can be none."""
    with ExitStack() as held:
        opened = None
        if entry is not None:
            # a cache that cannot be had costs time, not the run
            with suppress(OSError, CartlError):
                make_cache(entry)
                held.enter_context(locked(entry, wait=True))
                if not allocate(entry / PIXELS, size):
                    _keep(entry, Decoded())
                opened = entry / PIXELS, _read_state(entry)
        yield opened


def _read_state(entry: Path) -> Decoded:
    """How far an entry is; what cannot be read is decoded again."""
    try:
        return Decoded.model_validate_json((entry / STATE).read_bytes())
    except (OSError, ValidationError):
        return Decoded()


def _keep(entry: Path, state: Decoded) -> None:
    """Note how far decoding came, once its pixels are on the disk. Raises OSError, StorageError."""
    flush(entry / PIXELS)
    write_whole(entry / STATE, state.model_dump_json().encode())
