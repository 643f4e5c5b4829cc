"""Whether another attack finds what the real one missed: K2, K3, K5, K7 to K12, K18, K19."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cartl_cli.core.attacks.geometry import project, scatter, uphill
from cartl_cli.core.attacks.pgd import Objective, ascent, correct, perturb, predict
from cartl_cli.core.losses import cross_entropy
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.statistics import accuracy_interval
from cartl_cli.core.trust.checks import Check, limited, required
from cartl_cli.core.trust.probe import Probe, corner, falls, fell_at, noise, share, short, widened

LADDER = (0.5, 1, 2, 4, 8)  # multiples of eps
RESTARTS = 5
SCALES = (0.01, 1, 100)
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
        return share(~falls(probe, widened(budget, radius / budget.eps), probe.losses))

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

    At most 5·B·22 passes for each loss.
    """
    budget = short(probe.budget)
    fallen = torch.stack([falls(probe, widened(budget, f), probe.losses) for f in LADDER])
    before = fallen.cummax(0).values
    value = share((before & ~fallen).any(0))
    text = f"{100 * value:.1f} % of the images fall at one eps and stand at a larger one."
    return limited("K3", value, text, warn=0.01, fail=0.05)


def random_noise(probe: Probe, draws: int) -> Check:
    """K5: standing images that random noise misclassifies, corners and insides; any fails.

    At most S·draws passes.
    """
    images, labels, budget = probe.images, probe.labels, probe.budget
    broken = torch.zeros_like(probe.fallen)
    with eval_mode(probe.model):
        for number in range(draws):
            rows = (~probe.fallen & ~broken).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            drawn = noise(probe, "noise", number)
            drawn = corner(drawn) if number % 2 == 0 else drawn
            points = scatter(images, drawn, budget.eps, budget.norm)[rows]
            broken[rows] = ~correct(predict(probe.model, points), labels[rows])
    text = f"{draws} draws of noise break {int(broken.sum())} images that the attack did not."
    return limited("K5", share(broken), text, fail=0)


def more_steps(probe: Probe) -> Check:
    """K7: robust accuracy lost to twice the steps; above 0.5 points and half the interval warns.

    One walk of 2N steps holds the walk of N, so that more steps cannot raise the accuracy.
    At most B·(2N + 2) passes for each loss.
    """
    twice = replace(probe.budget, steps=2 * probe.budget.steps)
    early, late = torch.zeros_like(probe.fallen), torch.zeros_like(probe.fallen)
    for loss in probe.losses:
        rows = (~early).nonzero().squeeze(1)
        if len(rows) > 0:
            at = fell_at(probe, rows, twice, loss)
            early[rows] = (at >= 0) & (at <= probe.budget.steps)
            late[rows] |= at >= 0
    late |= early
    drop = share(late) - share(early)
    low, high = accuracy_interval(int((~early).sum()), probe.count)
    text = (
        f"Twice the steps lower the robust accuracy by {100 * drop:.1f} points "
        f"(from {100 * share(~early):.1f} %)."
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


def single_step(probe: Probe) -> Check:
    """K9: images that one step of eps breaks and the attack does not; any warns, above 1 % fails.

    2S passes.
    """

    def stepped(rows: Tensor) -> Tensor:
        images, (eps, norm) = probe.images[rows], (probe.budget.eps, probe.budget.norm)
        with eval_mode(probe.model), probe.autocast:
            _, gradient = ascent(probe.model, images, probe.labels[rows], cross_entropy)
        return project(images + eps * uphill(gradient, norm), images, eps, norm)

    broken = _broken(probe, stepped)
    text = f"One step (FGSM) breaks {int(broken.sum())} images that the attack did not."
    return limited("K9", share(broken), text, warn=0, fail=0.01)


def transfer(probe: Probe, source: BlockModel) -> Check:
    """K10: images that an attack on ``source`` breaks and the attack does not.

    Any warns, above 0.5 % fails. The attack turns the source away from what it predicts, since its
    classes may be others. S·22 passes.
    """

    def transferred(rows: Tensor) -> Tensor:
        images, budget = probe.images[rows], short(probe.budget)
        start = scatter(probe.images, noise(probe, "transfer"), budget.eps, budget.norm)[rows]
        with eval_mode(source):
            labels = predict(source, images).argmax(1)
        with probe.autocast:
            return perturb(source, images, labels, start, budget)

    broken = _broken(probe, transferred)
    text = f"Transfer from the source breaks {int(broken.sum())} images that the attack did not."
    return limited("K10", share(broken), text, warn=0, fail=0.005)


def restarts(probe: Probe) -> Check:
    """K11: robust accuracy that 5 random starts cost against one; above 1 point warns.

    Starts of other seeds are further draws of the same kind. At most 5·B·22 passes for each loss.
    """
    budget = short(probe.budget)
    first = union = falls(probe, budget, probe.losses)
    for restart in range(1, RESTARTS):
        union = falls(probe, budget, probe.losses, restart, union)
    gain = share(union) - share(first)
    text = (
        f"{RESTARTS} random starts lower the robust accuracy by {100 * gain:.1f} points, "
        f"to {100 * share(~union):.1f} %."
    )
    return limited("K11", gain, text, warn=0.01)


def logit_scale(probe: Probe) -> Check:
    """K12: change of robust accuracy when logits are scaled by 0.01 or 100; above 0.5 points warns.

    Above one image, where that is more: other gradients walk another way, and the last image is
    luck. At most 3·B·22 passes for each loss.
    """
    budget = short(probe.budget)
    robust = [
        share(~falls(probe, budget, [_scaled(loss, scale) for loss in probe.losses]))
        for scale in SCALES
    ]
    value = max(robust) - min(robust)
    text = f"Scaling the logits changes the robust accuracy by {100 * value:.1f} points."
    return limited("K12", value, text, warn=max(0.005, 1.01 / probe.count))


def plausible(probe: Probe) -> Check:
    """K18: robust accuracy above clean accuracy fails, above the known ceiling warns. B passes."""
    with eval_mode(probe.model):
        clean = share(correct(predict(probe.model, probe.images), probe.labels))
    robust = share(~probe.fallen)
    text = f"Robust accuracy is {100 * robust:.1f} %, clean accuracy {100 * clean:.1f} %."
    ceiling = 1.0 if probe.ceiling is None else probe.ceiling
    return limited("K18", robust, text, warn=ceiling, fail=clean)


def eight_bits(probe: Probe) -> Check:
    """K19: accuracy on the adversarial images rounded to 8 bits, for the record. B passes."""
    with eval_mode(probe.model):
        rounded = (probe.adversarial * 255).round() / 255
        value = share(correct(predict(probe.model, rounded), probe.labels))
    text = (
        f"Accuracy is {100 * value:.1f} % on adversarial images rounded to 8 bits, "
        f"{100 * share(~probe.fallen):.1f} % on those as found."
    )
    return limited("K19", value, text)


def _broken(probe: Probe, moved: Callable[[Tensor], Tensor]) -> Tensor:
    """Which images (B,) stand against the real attack and fall where ``moved(rows)`` puts them."""
    broken, rows = torch.zeros_like(probe.fallen), probe.standing
    if len(rows) > 0:
        with eval_mode(probe.model):
            broken[rows] = ~correct(predict(probe.model, moved(rows)), probe.labels[rows])
    return broken


def _losses(probe: Probe, rows: Tensor) -> Tensor:
    """The first loss (N, S) of the images ``rows`` at each iterate of the real attack's length."""
    images, labels, budget = probe.images[rows], probe.labels[rows], probe.budget
    points = scatter(probe.images, noise(probe, "start"), budget.eps, budget.norm)[rows]
    losses = []
    with eval_mode(probe.model), probe.autocast:
        for _ in range(budget.steps):
            logits, gradient = ascent(probe.model, points, labels, probe.losses[0])
            losses.append(probe.losses[0](logits, labels))
            points = points + budget.step_size * uphill(gradient, budget.norm)
            points = project(points, images, budget.eps, budget.norm)
    return torch.stack(losses)


def _scaled(loss: Objective, scale: float) -> Objective:
    return lambda logits, labels: loss(scale * logits, labels)
