"""Order and augmentation: batches are cut by index and augmented whole, on the device."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.runtime.randomness import generator
from cartl_cli.core.runtime.ranks import ALONE, EVERYTHING, Part, Ranks

PADDING = 8  # a crop is padded by an eighth of the side: 4 of 32 pixels
MAX_ROTATION = math.radians(15)
LEAST_AREA, LONGEST = 0.25, 4 / 3  # of a zoom: the part of the image, and width to height


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
    draws = torch.rand(len(split), 4, generator=generator(seed, "augmentation", epoch))
    if "zoom" in augment:
        more = torch.rand(len(split), 2, generator=generator(seed, "zoom", epoch))
        draws = torch.cat([draws, more], dim=1)
    draws = draws.to(device)
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

    ``draws`` (B, 4) from U(0, 1): two shifts of the crop, the flip, the angle of each image. For a
    zoom (B, 6): its area and shape, too; its place is that of the crop.
    """
    down, right, mirror, turn, *shape = draws.unbind(1)
    if "zoom" in augment:
        images = zoom(images, down, right, *shape)
    if "crop" in augment:
        images = crop(images, down, right)
    if "flip" in augment:
        images = flip(images, mirror)
    if "rotate" in augment:
        images = rotate(images, turn)
    return images


def crop(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """A random crop of the original size after zero padding by an eighth of it; draws (B,)."""
    count, _, height, width = images.shape
    padding = height // PADDING
    padded = F.pad(images, [padding] * 4)
    choices = 2 * padding + 1
    rows = (down * choices).long()[:, None] + torch.arange(height, device=images.device)
    columns = (right * choices).long()[:, None] + torch.arange(width, device=images.device)
    image = torch.arange(count, device=images.device)[:, None, None]
    # indexing (B, H, W) around the channel slice gives (B, H, W, C)
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def zoom(images: Tensor, down: Tensor, right: Tensor, area: Tensor, shape: Tensor) -> Tensor:
    """A random part of each image, enlarged to its size; draws (B,) in [0, 1).

    Between a quarter of the area and all of it, up to a third wider than high or higher than wide.
    """
    part = LEAST_AREA + (1 - LEAST_AREA) * area
    ratio = LONGEST ** (2 * shape - 1)
    width, height = (part * ratio).sqrt().clamp_max(1), (part / ratio).sqrt().clamp_max(1)
    # the middle of the part, in coordinates from -1 to 1
    x, y = (2 * right - 1) * (1 - width), (2 * down - 1) * (1 - height)
    zero = torch.zeros_like(x)
    theta = torch.stack([width, zero, x, zero, height, y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


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
