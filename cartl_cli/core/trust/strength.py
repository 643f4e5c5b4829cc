"""Whether the attack behaves as attacks must: K2, K3, K7, K8, K11, K12, K18, K19."""

import math

import torch
from torch import Tensor

from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.method.losses import PerImageLoss
from cartl_cli.core.method.pgd import ascent, pgd_step
from cartl_cli.core.models.blocks import eval_mode
from cartl_cli.core.runs.results import Check
from cartl_cli.core.statistics import accuracy_interval
from cartl_cli.core.trust.checks import limited, required
from cartl_cli.core.trust.probe import Probe, begun, falls, share, short, widened

LADDER = (0.5, 2, 4, 8)  # multiples of eps, beside eps itself
RESTARTS = 5
SCALES = (0.01, 100)
WINDOW = 10  # last steps in which the loss should have settled


def unbounded(probe: Probe) -> Check:
    """K2: robust accuracy where only [0, 1] binds; above 1 % fails.

    So does more, at half that radius, than the upper end of the interval of the largest class's
    share: there every image can be made plain grey. At most B·22 passes for each loss, and where
    everything falls at once, as it should, as many for half the radius.
    """
    budget = short(probe.budget)
    whole = 1.0 if budget.norm == "linf" else math.sqrt(probe.images[0].numel())

    def standing(radius: float) -> float:
        wide = widened(budget, radius / budget.eps)
        return share(~falls(probe, wide, probe.losses, begun(probe, wide)))

    everywhere = standing(whole)
    text = f"Without a bound the robust accuracy is {100 * everywhere:.1f} % (must be 0)"
    if everywhere > 0.01:
        return required("K2", False, everywhere, f"{text}.")
    half = standing(whole / 2)
    _, largest = accuracy_interval(int(probe.labels.bincount().max()), probe.count)
    text += f", at half the pixel range {100 * half:.1f} % (at most {100 * largest:.1f} %)."
    return required("K2", half <= largest, everywhere, text)


def monotone(probe: Probe) -> Check:
    """K3: images that fall at one eps and stand at a larger; above 1 % warns, above 5 % fails.

    At most 4·B·22 passes for each loss, beside those of ``probe.plain``.
    """
    half, *larger = (widened(short(probe.budget), factor) for factor in LADDER)
    found = [falls(probe, b, probe.losses, begun(probe, b)) for b in (half, *larger)]
    fallen = torch.stack([found[0], probe.plain, *found[1:]])
    before = fallen.cummax(0).values
    value = share((before & ~fallen).any(0))
    text = f"{100 * value:.1f} % of the images fall at one eps and stand at a larger one."
    return limited("K3", value, text, warn=0.01, fail=0.05)


def more_steps(probe: Probe) -> Check:
    """K7: robust accuracy lost to as many steps again, from where the attack ended.

    Above 0.5 points and half the interval warns. PGD remembers only its iterate, so that N steps
    more are the second half of a walk of 2N, and cannot raise the accuracy. At most S·(N + 2)
    passes for each loss.
    """
    start, standing = probe.adversarial, ~probe.fallen
    late = falls(probe, probe.budget, probe.losses, start, probe.fallen) & standing
    drop = share(late)
    low, high = accuracy_interval(int(standing.sum()), probe.count)
    text = (
        f"Twice the steps lower the robust accuracy by {100 * drop:.1f} points "
        f"(from {100 * share(standing):.1f} %)."
    )
    return limited("K7", drop, text, warn=max(0.005, (high - low) / 2))


def plateau(probe: Probe) -> Check:
    """K8: standing images whose best loss moves by more than 5 % in the last 10 steps.

    Above 10 % of them warns. The loss counts on its scale from lowest to highest (indicator 4 of
    Pintor et al. 2022). S·N passes.
    """
    rows = probe.standing
    value = 0.0
    if len(rows) > 0:
        losses = _losses(probe, rows)  # (N, S)
        low, high = losses.amin(0), losses.amax(0)
        best = losses.cummax(0).values[-WINDOW:]
        moved = (best[-1] - best[0]) / (high - low).clamp_min(1e-30)
        value = share(moved > 0.05)
    text = f"The loss of {100 * value:.1f} % of the standing images still rises at the last steps."
    return limited("K8", value, text, warn=0.1)


def restarts(probe: Probe) -> Check:
    """K11: robust accuracy that 5 random starts cost against one; above 1 point warns.

    Starts of other seeds are further draws of the same kind. At most 4·B·22 passes for each loss,
    beside those of ``probe.plain``.
    """
    budget = short(probe.budget)
    first = union = probe.plain
    for restart in range(1, RESTARTS):
        union = falls(probe, budget, probe.losses, begun(probe, budget, restart), union)
    gain = share(union) - share(first)
    text = (
        f"{RESTARTS} random starts lower the robust accuracy by {100 * gain:.1f} points, "
        f"to {100 * share(~union):.1f} %."
    )
    return limited("K11", gain, text, warn=0.01)


def logit_scale(probe: Probe) -> Check:
    """K12: change of robust accuracy when logits are scaled by 0.01 or 100; above 0.5 points warns.

    Above one image, where that is more: other gradients walk another way, and the last image is
    luck. At most 2·B·22 passes for each loss, beside those of ``probe.plain``.
    """
    budget = short(probe.budget)
    robust = [share(~probe.plain)]
    for scale in SCALES:
        losses = [_scaled(loss, scale) for loss in probe.losses]
        robust.append(share(~falls(probe, budget, losses, begun(probe, budget))))
    value = max(robust) - min(robust)
    text = f"Scaling the logits changes the robust accuracy by {100 * value:.1f} points."
    return limited("K12", value, text, warn=max(0.005, 1.01 / probe.count))


def plausible(probe: Probe) -> Check:
    """K18: robust accuracy above clean accuracy fails, above the known ceiling warns. B passes."""
    clean = share(correct(predict(probe.model, probe.images), probe.labels))
    robust = share(~probe.fallen)
    text = f"Robust accuracy is {100 * robust:.1f} %, clean accuracy {100 * clean:.1f} %."
    if probe.ceiling is None:
        return limited("K18", robust, text, fail=clean)
    text += f" More than {100 * probe.ceiling:.0f} % has been reached by nobody."
    return limited("K18", robust, text, warn=probe.ceiling, fail=clean)


def eight_bits(probe: Probe) -> Check:
    """K19: accuracy on the adversarial images rounded to 8 bits, for the record. B passes."""
    rounded = (probe.adversarial * 255).round() / 255
    value = share(correct(predict(probe.model, rounded), probe.labels))
    text = (
        f"Accuracy is {100 * value:.1f} % on adversarial images rounded to 8 bits, "
        f"{100 * share(~probe.fallen):.1f} % on those as found."
    )
    return limited("K19", value, text)


def _losses(probe: Probe, rows: Tensor) -> Tensor:
    """The first loss (N, S) of the images ``rows`` at each iterate of the real attack's length."""
    images, labels, budget = probe.images[rows], probe.labels[rows], probe.budget
    points = begun(probe, budget)[rows]
    losses = []
    with eval_mode(probe.model), probe.autocast:
        for _ in range(budget.steps):
            logits, gradient = ascent(probe.model, points, labels, probe.losses[0])
            losses.append(probe.losses[0](logits, labels))
            points = pgd_step(points, gradient, images, budget)
    return torch.stack(losses)


def _scaled(loss: PerImageLoss, scale: float) -> PerImageLoss:
    return lambda logits, labels: loss(scale * logits, labels)
