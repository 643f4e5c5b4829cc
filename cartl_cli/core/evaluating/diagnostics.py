"""What an attack does inside the model: how far it moves the features, block by block.

FDM keeps the distance small at block L − k (Eq. 10); NEFT keeps the blocks behind it from making
it larger (Eq. 11). Also: how an attack's accuracy falls from iterate to iterate.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cartl_cli.core.losses import distances
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.precision import float32
from cartl_cli.core.records.moved import Moved


def feature_distances(
    model: BlockModel, images: Tensor, adversarial: Tensor, batch_size: int
) -> list[Moved]:
    """What each block 0..L makes of ``images`` and ``adversarial`` (N, C, H, W), in float32."""
    with eval_mode(model), torch.no_grad(), float32(images.device):
        batches = [
            _lengths(model, *pair)
            for pair in zip(images.split(batch_size), adversarial.split(batch_size), strict=True)
        ]
    moved, clean = torch.cat(batches, dim=2)  # (L + 1, N) each
    before = torch.cat([torch.zeros_like(moved[:1]), moved[:-1]])  # nothing grows from 0
    return [
        Moved(distance=_mean(relative), growth=_median(grown))
        for relative, grown in zip(moved / clean, moved / before, strict=True)
    ]


def _lengths(model: BlockModel, images: Tensor, adversarial: Tensor) -> Tensor:
    """‖Δ_b‖₂ and ‖f_b(x)‖₂ of each block and image, (2, L + 1, B)."""
    pairs = zip(_outputs(model, images), _outputs(model, adversarial), strict=True)
    found = [(distances(x, y), distances(x, torch.zeros_like(x))) for x, y in pairs]
    return torch.stack([torch.stack(lengths) for lengths in zip(*found, strict=True)])


def _outputs(model: BlockModel, images: Tensor) -> Iterator[Tensor]:
    """What leaves the stem and each block (B, …), in one pass."""
    activations = model.features(images, 0)
    yield activations
    for block in model.blocks:
        activations = block(activations)
        yield activations


def _mean(values: Tensor) -> float | None:
    finite = values[values.isfinite()].double()
    return finite.mean().item() if len(finite) > 0 else None


def _median(values: Tensor) -> float | None:
    finite = values[values.isfinite()].double()
    return finite.quantile(0.5).item() if len(finite) > 0 else None


def fall(tried: Tensor, fell_at: Tensor, steps: int) -> list[tuple[int, float]]:
    """Accuracy (of all N images) by iterate of one attack, wherever it changes.

    ``tried`` (N,): the images it was run on, all right until then; ``fell_at`` (N,): the iterate at
    which each fell, negative where it did not. Begins with what is right before the attack, ends
    at iterate ``steps``.
    """
    n, left = len(tried), int(tried.sum())
    curve = [(0, left / n)]
    for iterate, count in zip(*fell_at[fell_at >= 0].unique(return_counts=True), strict=True):
        left -= int(count)
        curve.append((int(iterate), left / n))
    return [*curve, (steps, left / n)]
