"""Whether the network can be attacked by its gradient at all: K4, K13, K14, K15, K16."""

import copy

import torch
from torch import Tensor

from cartl_cli.core.attacks.judged_pgd import predict
from cartl_cli.core.method.losses import cross_entropy, margin
from cartl_cli.core.method.norm_ball import scatter, sizes, uphill
from cartl_cli.core.method.pgd import ascent
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.runs.results import Check
from cartl_cli.core.trust.checks import limited
from cartl_cli.core.trust.probe import Probe, noise, share

COMPARED = 8  # images of the finite differences
DIRECTIONS = 4
DISTANCE = 1e-7  # of the finite differences, in pixels on the 0..1 scale
PASSES = 5
NEIGHBOURS = 100


def vanishing_gradient(probe: Probe) -> Check:
    """K4: images whose gradient gives the attack no direction, under cross-entropy or margin.

    More than none warns, above 5 % fails. 2B passes.
    """
    stuck = {}
    for name, loss in (("cross-entropy", cross_entropy), ("margin", margin)):
        with eval_mode(probe.model), probe.autocast:
            _, gradient = ascent(probe.model, probe.images, probe.labels, loss)
        direction = sizes(uphill(gradient, probe.budget.norm), probe.budget.norm).flatten()
        stuck[name] = ~(direction > 0.5)
    counts = " and ".join(f"{int(flags.sum())} under {name}" for name, flags in stuck.items())
    return limited(
        "K4",
        max(map(share, stuck.values())),
        f"Of {probe.count} images, {counts} have no gradient.",
        warn=0,
        fail=0.05,
    )


def finite_differences(probe: Probe) -> Check | None:
    """K13: relative error of the gradient of the margin, median of 8 images; above 1e-2 fails.

    In float64, by central differences along random signs; None of a network that does not compute
    in float64. 8·(1 + 2·4) passes.
    """
    device = probe.images.device
    place = torch.device("cpu") if device.type == "mps" else device  # mps has no float64
    model = copy.deepcopy(probe.model).to(place, torch.float64).eval()
    images = probe.images[:COMPARED].to(place, torch.float64)
    labels = probe.labels[:COMPARED].to(place)
    drawn = torch.stack([noise(probe, "direction", i)[:COMPARED] for i in range(DIRECTIONS)])
    ways = 2 * drawn.round().to(images) - 1  # (directions, B, C, H, W)

    def loss(points: Tensor) -> Tensor:
        return margin(model(points), labels)

    with torch.autocast(place.type, enabled=False):
        try:
            _, gradient = ascent(model, images, labels, margin)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # tensors of another's network that stay float32
            return None
        with torch.no_grad():
            steps = [loss(images + DISTANCE * way) - loss(images - DISTANCE * way) for way in ways]
    differences = torch.stack(steps) / (2 * DISTANCE)  # (directions, B)
    slopes = (ways * gradient).flatten(2).sum(2)
    scale = torch.maximum(differences.norm(dim=0), slopes.norm(dim=0)).clamp_min(1e-30)
    error = ((differences - slopes).norm(dim=0) / scale).median().item()
    text = f"Gradient and finite differences of the margin are {error:.1e} apart, relatively."
    return limited("K13", error, text, fail=1e-2)


def determinism(probe: Probe) -> Check:
    """K14: largest change of a logit in 5 passes over the largest logit; above 1e-4 fails.

    5B passes.
    """
    logits = torch.stack([predict(probe.model, probe.images) for _ in range(PASSES)])
    largest = logits.abs().amax().clamp_min(1e-30)
    change = ((logits - logits[0]).abs().amax() / largest).item()
    text = f"Logits of the same images differ by {change:.1e} between {PASSES} passes, relatively."
    return limited("K14", change, text, fail=1e-4)


def output_shape(probe: Probe) -> Check:
    """K15: logits that are probabilities warn; one class above 95 % of the predictions fails.

    B passes.
    """
    logits = predict(probe.model, probe.images)
    one_class = logits.argmax(1).bincount().max().item() / probe.count
    text = f"The most frequent class is {100 * one_class:.1f} % of the predictions."
    check = limited("K15", one_class, text, fail=0.95)
    probabilities = bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-4).all())
    if probabilities and check.verdict == "pass":
        text += " The outputs are probabilities: a softmax hides the gradient."
        return Check(id="K15", verdict="warn", value=check.value, text=text)
    return check


def unstable_neighbours(probe: Probe) -> Check:
    """K16: relative change of cross-entropy in a ball of eps/2, 100 draws; above 0.1 warns.

    Indicator 2 of Pintor et al. 2022: the mean over the images, at most 1 of each. 101·B passes.
    """
    budget = probe.budget
    before = _loss(probe.model, probe.images, probe.labels)
    total = torch.zeros_like(before)
    for i in range(NEIGHBOURS):
        near = scatter(probe.images, noise(probe, "neighbour", i), budget.eps / 2, budget.norm)
        total += (_loss(probe.model, near, probe.labels) - before).abs()
    relative = total / NEIGHBOURS / torch.where(before == 0, 1, before)
    value = relative.clamp_max(1).mean().item()
    text = f"Random noise of eps/2 changes the loss by {100 * value:.1f} % on average."
    return limited("K16", value, text, warn=0.1)


def _loss(model: BlockModel, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(predict(model, images), labels)
