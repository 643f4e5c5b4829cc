"""The built-in data sets: drawn, not downloaded, and the same pixels on every machine.

Each image shows one object on a smooth background. The object's outline is the *robust* feature.
Each class also adds its own faint, fixed pattern of plus or minus 4/255: highly predictive and
destroyed by an 8/255 attack, the *non-robust* feature of Ilyas et al. 2019, *Adversarial Examples
Are Not Bugs, They Are Features*. Clean fine-tuning grabs it; adversarial training cannot.

Outlines are signed distances in the object's own coordinates (negative inside, extent about 1),
drawn in float64 so that rounding to 8 bits gives the same pixel everywhere.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cartl_cli.core.config.fields import BUILT_IN_SIDE as SIDE
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.runtime.randomness import generator

PATTERN = 4 / 255
TILE = 8
NOISE = 0.02
DATA_SEED = 20210606

Outline = Callable[[Tensor, Tensor], Tensor]


def disk(x: Tensor, y: Tensor, cx: float = 0.0, cy: float = 0.0, radius: float = 0.85) -> Tensor:
    """Signed distance to a disk, elementwise on coordinates of any shape."""
    return torch.hypot(x - cx, y - cy) - radius


def box(x: Tensor, y: Tensor, cx: float, cy: float, half_w: float, half_h: float) -> Tensor:
    """Signed (Chebyshev) distance to an upright box."""
    return torch.maximum((x - cx).abs() - half_w, (y - cy).abs() - half_h)


def half_planes(x: Tensor, y: Tensor, sides: int, apothem: float) -> Tensor:
    """Distances (sides, …) beyond the edges of a regular polygon standing on its base."""
    angles = [math.pi * (0.5 + 2 * side / sides) for side in range(sides)]
    return torch.stack([x * math.cos(a) + y * math.sin(a) - apothem for a in angles])


def union(*parts: Tensor) -> Tensor:
    """Signed distance to the union: the nearest part."""
    return torch.stack(parts).amin(0)


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """An equilateral triangle."""
    return half_planes(x, y, 3, 0.5).amax(0)


def star(x: Tensor, y: Tensor) -> Tensor:
    """A pentagram: inside all but at most one of the pentagon's edges."""
    return half_planes(x, y, 5, 0.38).sort(0, descending=True).values[1]


SOURCE_OUTLINES: dict[str, Outline] = {
    "disk": disk,
    "square": lambda x, y: box(x, y, 0, 0, 0.72, 0.72),
    "plus": lambda x, y: union(box(x, y, 0, 0, 0.95, 0.28), box(x, y, 0, 0, 0.28, 0.95)),
    "bar": lambda x, y: box(x, y, 0, 0, 1.0, 0.3),
    "triangle": triangle,
    "star": star,
    "crescent": lambda x, y: torch.maximum(disk(x, y, radius=0.95), -disk(x, y, 0.5, 0, 0.75)),
    "ell": lambda x, y: union(box(x, y, -0.5, 0, 0.28, 0.9), box(x, y, 0, 0.62, 0.78, 0.28)),
    "two-disks": lambda x, y: union(disk(x, y, -0.55, 0, 0.42), disk(x, y, 0.55, 0, 0.42)),
    "flower": lambda x, y: union(
        *(
            disk(x, y, 0.48 * math.sin(turn), -0.48 * math.cos(turn), 0.46)
            for turn in (0, math.tau / 3, 2 * math.tau / 3)
        )
    ),
}

TARGET_OUTLINES: dict[str, Outline] = {
    "ring": lambda x, y: disk(x, y, radius=0.68).abs() - 0.2,
    "frame": lambda x, y: box(x, y, 0, 0, 0.62, 0.62).abs() - 0.18,
    "half-disk": lambda x, y: torch.maximum(disk(x, y, 0, 0.35, 0.95), y - 0.35),
    "tee": lambda x, y: union(box(x, y, 0, -0.62, 0.85, 0.28), box(x, y, 0, 0.2, 0.28, 0.75)),
    "hourglass": lambda x, y: torch.maximum(y.abs() - 0.85, x.abs() - y.abs() * 0.9),
    "chevron": lambda x, y: torch.maximum(x.abs() - 0.9, (y - x.abs() * 0.8 + 0.35).abs() - 0.3),
    "three-dots": lambda x, y: union(*(disk(x, y, cx, 0, 0.27) for cx in (-0.7, 0.0, 0.7))),
    "grid": lambda x, y: union(
        *(box(x, y, cx, cy, 0.34, 0.34) for cx in (-0.5, 0.5) for cy in (-0.5, 0.5))
    ),
}


def shapes() -> DataSet:
    """The source data set: 10 outlines, 300 training and 50 test images a class."""
    return _draw("shapes", SOURCE_OUTLINES, per_class=300)


def shapes_target() -> DataSet:
    """The target data set: 8 other outlines, 60 training and 50 test images a class."""
    return _draw("shapes-target", TARGET_OUTLINES, per_class=60)


def _draw(name: str, outlines: dict[str, Outline], per_class: int) -> DataSet:
    return DataSet(
        name=name,
        classes=tuple(outlines),
        train=_split(f"{name} train", name, outlines, per_class),
        evaluation=_split(f"{name} test", name, outlines, 50),
        measured="test",
    )


def _split(purpose: str, name: str, outlines: dict[str, Outline], per_class: int) -> Split:
    images = [
        _images(outline, per_class, generator(DATA_SEED, purpose, label), _pattern(name, label))
        for label, outline in enumerate(outlines.values())
    ]
    labels = torch.arange(len(outlines)).repeat_interleave(per_class)
    return Split(torch.cat(images), labels)


def _pattern(name: str, label: int) -> Tensor:
    """The class's own fixed signs (3, SIDE, SIDE): a texture, one random tile repeated."""
    bits = torch.randint(0, 2, (3, TILE, TILE), generator=generator(DATA_SEED, name, label))
    signs: Tensor = 2 * bits.double() - 1
    return signs.repeat(1, SIDE // TILE, SIDE // TILE)


def _images(outline: Outline, count: int, draws: torch.Generator, pattern: Tensor) -> Tensor:
    """``count`` drawings of one outline, uint8 (count, 3, SIDE, SIDE)."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        unit = torch.rand(count, *shape, generator=draws, dtype=torch.float64)
        return low + (high - low) * unit

    axis = torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    size = uniform(8, 12, 1, 1)  # half extent in pixels
    angle = uniform(-math.radians(27), math.radians(27), 1, 1)
    dx, dy = column - uniform(-4, 4, 1, 1), row - uniform(-4, 4, 1, 1)
    x = (dx * angle.cos() + dy * angle.sin()) / size  # (count, SIDE, SIDE)
    y = (dy * angle.cos() - dx * angle.sin()) / size
    coverage = (0.5 - outline(x, y) * size).clamp(0, 1).unsqueeze(1)  # anti-aliased over one pixel

    ground = uniform(0.2, 0.8, 3, 1, 1)
    slope = uniform(-0.15, 0.15, 2, 3, 1, 1) / SIDE
    background = ground + slope[:, 0] * column + slope[:, 1] * row
    direction = torch.randn(count, 3, 1, 1, generator=draws, dtype=torch.float64)
    direction = direction / direction.norm(dim=1, keepdim=True)
    contrast = 1.5 * uniform(0.3, 0.7, 1, 1, 1)
    image = background + coverage * contrast * direction
    noise = torch.randn(count, 3, SIDE, SIDE, generator=draws, dtype=torch.float64)
    image = image + NOISE * noise + PATTERN * pattern
    pixels: Tensor = (image.clamp(0, 1) * 255).round()
    return pixels.to(torch.uint8)
