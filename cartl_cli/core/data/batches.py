"""Order and augmentation: batches are cut by index and augmented whole, on the device."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.runtime.randomness import generator
from cartl_cli.core.runtime.ranks import ALONE, EVERYTHING, Part, Ranks

PADDING = 4
MAX_ROTATION = math.radians(15)


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Batches of one epoch; a last batch of one image is left out, batch norm cannot use it."""
    whole, rest = divmod(count, batch_size)
    return whole + (rest > 1)


def images_of_batch(count: int, batch_size: int, batch: int) -> int:
    """Images of one batch of an epoch: fewer in the last."""
    return min(batch_size, count - batch * batch_size)


def part_of_batch(count: int, ranks: Ranks) -> Part:
    """What this process takes of a batch of ``count`` images.

    The parts differ by one image at most. Batch norm cannot use a part of one image: what is too
    small to give everybody two is taken whole by everybody, with a part of the weight.
    """
    if ranks.size == 1:
        return EVERYTHING
    if count < 2 * ranks.size:
        return Part(slice(0, count), 1.0, 1 / ranks.size)
    first, end = (count * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    share = (end - first) / count
    return Part(slice(first, end), share, share)


def epoch_batches(
    split: Split,
    batch_size: int,
    augment: Sequence[str],
    seed: int,
    epoch: int,
    first: int = 0,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch from batch ``first`` on: images (B, C, H, W) in [0, 1] and labels (B,).

    A split of features gives these, as they are: (B, …).

    The order belongs to the epoch, the augmentation to the epoch and the image: neither depends
    on the batch size, on which batches came before, or on the part taken of so many images.
    """
    device = split.labels.device  # whole: what goes there batch by batch is waited for
    order = torch.randperm(len(split), generator=generator(seed, "order", epoch)).to(device)
    draws = torch.rand(len(split), 4, generator=generator(seed, "augmentation", epoch)).to(device)
    for batch in range(first, batches_per_epoch(len(split), batch_size)):
        indices = order[batch * batch_size : (batch + 1) * batch_size]
        indices = indices[part_of_batch(len(indices), ranks).rows]
        part = split.take(indices)
        images = part.images
        if images.dtype == torch.uint8:
            images = augmented(to_pixels(images), augment, draws[indices])
            images = images.to(memory_format=torch.channels_last)
        yield images, part.labels


def augmented(images: Tensor, augment: Sequence[str], draws: Tensor) -> Tensor:
    """Each named augmentation in a fixed order; shape unchanged.

    ``draws`` (B, 4) from U(0, 1): two shifts of the crop, the flip, the angle of each image.
    """
    down, right, mirror, turn = draws.unbind(1)
    if "crop" in augment:
        images = crop(images, down, right)
    if "flip" in augment:
        images = flip(images, mirror)
    if "rotate" in augment:
        images = rotate(images, turn)
    return images


def crop(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """A random crop of the original size after zero padding by 4; draws (B,) in [0, 1)."""
    count, _, height, width = images.shape
    padded = F.pad(images, [PADDING] * 4)
    choices = 2 * PADDING + 1
    rows = (down * choices).long()[:, None] + torch.arange(height, device=images.device)
    columns = (right * choices).long()[:, None] + torch.arange(width, device=images.device)
    image = torch.arange(count, device=images.device)[:, None, None]
    # indexing (B, H, W) around the channel slice gives (B, H, W, C)
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def flip(images: Tensor, mirror: Tensor) -> Tensor:
    """A horizontal flip of each image with probability one half; draws (B,) in [0, 1)."""
    return torch.where(mirror.view(-1, 1, 1, 1) < 0.5, images.flip(3), images)


def rotate(images: Tensor, turn: Tensor) -> Tensor:
    """A rotation by −15°..15°, zero outside; draws (B,) in [0, 1).

    Each pixel is the nearest one of the image, as in the official code: interpolation would blur.
    """
    angle = MAX_ROTATION * (2 * turn - 1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False)
