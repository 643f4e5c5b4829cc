"""What an attack does inside the model: how far it moves the features, block by block.

FDM keeps the distance small at block L − k (Eq. 10); NEFT keeps the blocks behind it from making
it larger (Eq. 11). Also: how an attack's accuracy falls from iterate to iterate.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.data.split import Split, stratified, to_pixels
from cartl_cli.core.evaluation.targets import AttackSetup
from cartl_cli.core.evaluation.verdicts import Verdicts
from cartl_cli.core.method.losses import distances
from cartl_cli.core.method.norm_ball import uniform_start
from cartl_cli.core.method.pgd import Budget, pgd
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.runs.results import BlockMoved, Diagnosis, Moved
from cartl_cli.core.runs.weights import read_source
from cartl_cli.core.runtime.devices import float32
from cartl_cli.core.runtime.randomness import generator

MOVED = 128  # images of a look at how far features are moved


def diagnosed(
    config: AttackConfig, setup: AttackSetup, verdicts: Verdicts, say: Callable[[str], None]
) -> Diagnosis | None:
    """How far the kept adversarial images move the features, if the config asks for it.

    An image that is wrong when clean was not attacked, and is left out.
    """
    if not config.diagnose:
        return None
    kept = verdicts.kept
    attacked_ones = verdicts.clean[kept]
    images = to_pixels(setup.split.take(kept[attacked_ones]).images)
    adversarial = verdicts.adversarial[attacked_ones]
    target = feature_distances(setup.model, images, adversarial, config.batch_size)
    source: list[Moved | None] = [None] * len(target)
    attacked = setup.attacked
    record, before = attacked.manifest.source, read_source(attacked)
    if before is not None:
        before.to(images.device)
        source[:] = feature_distances(before, images, adversarial, config.batch_size)
    elif record is not None:
        say(f"note: no source model beside it: run {record.run!r} is gone or has changed")
    boundary = len(setup.model.blocks) - attacked.manifest.k
    blocks = tuple(
        BlockMoved(block=block, tuned=block > boundary, target=ours, source=theirs)
        for block, (ours, theirs) in enumerate(zip(target, source, strict=True))
    )
    return Diagnosis(n=len(images), blocks=blocks)


def moved_by_pgd(
    model: BlockModel,
    split: Split,
    budget: Budget,
    seed: int,
    batch_size: int,
    images_at_most: int = MOVED,
) -> tuple[float | None, ...]:
    """How far PGD moves what leaves each block 0..L: ‖Δ_b‖₂ / ‖f_b(x)‖₂.

    The mean over a seeded part of the images that are right when clean; None where there are none.
    """
    some = split.take(stratified(split.labels, min(images_at_most, len(split)), seed, "moved"))
    device = next(model.parameters()).device
    images, labels = to_pixels(some.images.to(device)), some.labels.to(device)
    start = uniform_start(images, budget.eps, generator(seed, "moved"))
    batches = list(zip(*(part.split(batch_size) for part in (images, labels, start)), strict=True))
    adversarial = torch.cat([pgd(model, x, y, begun, budget) for x, y, begun in batches])
    right = torch.cat([correct(predict(model, x), y) for x, y, _ in batches])
    found = feature_distances(model, images[right], adversarial[right], batch_size)
    return tuple(moved.distance for moved in found)


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
        Moved(distance=_finite(relative, torch.mean), growth=_finite(grown, torch.quantile, 0.5))
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


def _finite(values: Tensor, centre: Callable[..., Tensor], *part: float) -> float | None:
    finite = values[values.isfinite()].cpu().double()
    return centre(finite, *part).item() if len(finite) > 0 else None


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
