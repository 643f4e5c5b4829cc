"""Order and augmentation: batches are cut by index and augmented whole, on the device."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.randomness import generator

PADDING = 4
MAX_ROTATION = math.radians(15)


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Batches of one epoch; a last batch of one image is left out, batch norm cannot use it."""
    whole, rest = divmod(count, batch_size)
    return whole + (rest > 1)


def epoch_batches(
    split: Split, batch_size: int, augment: Sequence[str], seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in its own random order: images (B, C, H, W) in [0, 1] and labels (B,)."""
    order = torch.randperm(len(split), generator=generator(seed, "order", epoch))
    for batch in range(batches_per_epoch(len(split), batch_size)):
        indices = order[batch * batch_size : (batch + 1) * batch_size].to(split.labels.device)
        part = split.take(indices)
        draws = generator(seed, "augmentation", epoch, batch)
        yield augmented(to_pixels(part.images), augment, draws), part.labels


def augmented(images: Tensor, augment: Sequence[str], draws: torch.Generator) -> Tensor:
    """Each named augmentation in a fixed order, drawn per image; shape unchanged."""
    for name, apply in (("crop", crop), ("flip", flip), ("rotate", rotate)):
        if name in augment:
            images = apply(images, draws)
    return images


def crop(images: Tensor, draws: torch.Generator) -> Tensor:
    """A random crop of the original size after zero padding by 4."""
    count, _, height, width = images.shape
    padded = F.pad(images, [PADDING] * 4)
    shift = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=draws).to(images.device)
    rows = shift[0] + torch.arange(height, device=images.device)  # (B, H)
    columns = shift[1] + torch.arange(width, device=images.device)  # (B, W)
    image = torch.arange(count, device=images.device)[:, None, None]
    # indexing (B, H, W) around the channel slice gives (B, H, W, C)
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def flip(images: Tensor, draws: torch.Generator) -> Tensor:
    """A horizontal flip of each image with probability one half."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=draws).to(images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def rotate(images: Tensor, draws: torch.Generator) -> Tensor:
    """A rotation of each image by an angle from U(−15°, 15°), bilinear, zero outside."""
    unit = torch.rand(len(images), generator=draws).to(images.device)
    angle = MAX_ROTATION * (2 * unit - 1)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
