"""How many images go through a network at a time: large ones in pieces, so that memory is bounded.

Where images do not see each other (in evaluation mode) the pieces give what the batch gives, but
for rounding.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

SMALL = 64**2  # pixels of an image of which batches stay whole
AT_ONCE = 4 * 224**2
"""Pixels of larger ones that go through a network at a time on a CPU, which is not faster with
more: 4 images of 224 pixels. A GPU takes batches whole."""


def at_once(images: Tensor) -> int:
    """How many of a batch (B, C, …) go through a network at a time: B, or fewer of large ones."""
    count = len(images)
    if images.device.type != "cpu" or count <= 1 or images[0, 0].numel() <= SMALL:
        return count
    return min(count, max(1, AT_ONCE // images[0, 0].numel()))


def pieces(images: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A batch (B, C, …) in pieces, each with its rows of the ``others`` (B, …)."""
    size = max(1, at_once(images))
    return zip(*(tensor.split(size) for tensor in (images, *others)), strict=True)


def joined(found: Sequence[Tensor]) -> Tensor:
    """What was found of each piece, (B, …); that of a single one as it is."""
    return found[0] if len(found) == 1 else torch.cat(list(found))


def in_pieces(passing: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a pass makes of a batch (B, C, …), piece by piece: (B, …)."""
    return joined([passing(piece) for (piece,) in pieces(images)])
