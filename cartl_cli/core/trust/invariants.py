"""V1 to V12: what holds whatever the model is. A violation is a bug, and the number void."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.judged_pgd import attack, correct, predict
from cartl_cli.core.method.losses import cross_entropy, margin
from cartl_cli.core.method.norm_ball import sizes
from cartl_cli.core.method.pgd import ascent
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.runs.results import Check
from cartl_cli.core.runs.weights import to_bytes
from cartl_cli.core.statistics import paired_difference
from cartl_cli.core.trust.checks import limited, required
from cartl_cli.core.trust.probe import Probe, share

TOLERANCE = 1e-6  # of the budget


@dataclass(frozen=True)
class Snapshot:
    """A model's training flags by module, and the sha256 of all its parameters and buffers."""

    training: tuple[bool, ...]
    sha256: str


@dataclass(frozen=True)
class CleanAccuracy:
    """Clean accuracy as measured now and as recorded when the model was trained."""

    measured: float
    recorded: float
    same_device: bool


def snapshot(model: nn.Module) -> Snapshot:
    """What an attack must leave as it is."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    digest = hashlib.sha256(to_bytes(tensors)).hexdigest()
    return Snapshot(tuple(module.training for module in model.modules()), digest)


def invariants(
    probe: Probe, before: Snapshot, after: Snapshot, again: BlockModel, classes: int
) -> list[Check]:
    """V1 to V6, V8, V11 and V12: those that any attack on any model can be asked when it has run.

    ``before`` and ``after`` surround the attack, ``again`` is the model read anew afterwards, if
    there is a file of it, and ``classes`` are those it should have. At most 12·B passes, and where
    gradients are taken in bfloat16 at most 2·B·22 more for each loss.
    """
    return [
        purity(before, after),
        shapes(probe, classes),
        box(probe),
        budget_kept(probe),
        finite_outputs(probe),
        eps_zero(probe),
        accounting(probe),
        verified_again(probe, again),
        precision(probe),
    ]


def purity(before: Snapshot, after: Snapshot) -> Check:
    """V1: the attack changed no parameter, no buffer and no module's training flag."""
    flags = sum(x != y for x, y in zip(before.training, after.training, strict=True))
    same = before.sha256 == after.sha256
    text = f"The attack changed {flags} training flags and {'no' if same else 'some'} weights."
    return required("V1", flags == 0 and same, flags + (not same), text)


def box(probe: Probe) -> Check:
    """V2: all pixels, of images and adversarial images, are in [0, 1]."""
    pixels = torch.stack([probe.images, probe.adversarial])
    outside = int((~((pixels >= 0) & (pixels <= 1))).sum())
    return required("V2", outside == 0, outside, f"{outside} pixels are outside of [0, 1].")


def budget_kept(probe: Probe) -> Check:
    """V3: no image moved farther than eps + 1e-6, and in the median at least 0.95·eps.

    Of several eps, that of the attack it fell to, or the largest if it stands. The median is that
    of attacked images, those that are right when clean. In ℓ₂ the pixel range can keep an attack
    from using its budget, so that there a low median only warns. B passes.
    """
    eps, norm = probe.budget.eps, probe.budget.norm
    moved = sizes(probe.adversarial - probe.images, norm).flatten()
    allowed = torch.full_like(moved, eps) if probe.allowed is None else probe.allowed
    largest = moved.max().item()
    parts = (moved / allowed)[_clean(probe) & (allowed > 0)]
    used = parts.median().item() if len(parts) > 0 else 1.0
    text = (
        f"Images moved by at most {largest:.6f} of the allowed {eps:.6f}, "
        f"in the median by {100 * used:.1f} % of what each was allowed."
    )
    if not bool((moved <= allowed + TOLERANCE).all()):
        return required("V3", False, largest, text)
    unused, limit = 1 - used, 1 - 0.95
    check = limited("V3", unused, text, warn=limit, fail=limit if norm == "linf" else 1)
    return check.model_copy(update={"value": largest})


def finite_outputs(probe: Probe) -> Check:
    """V4: logits, losses and gradients are finite on images and adversarial images. 4B passes."""
    broken = torch.zeros_like(probe.fallen)
    for points in (probe.images, probe.adversarial):
        for loss in (cross_entropy, margin):
            with eval_mode(probe.model), probe.autocast:
                logits, gradient = ascent(probe.model, points, probe.labels, loss)
            for tensor in (logits, loss(logits, probe.labels)[:, None], gradient.flatten(1)):
                broken |= ~tensor.isfinite().all(1)
    text = f"{int(broken.sum())} images have logits, losses or gradients that are not finite."
    return required("V4", not bool(broken.any()), int(broken.sum()), text)


def eps_zero(probe: Probe) -> Check:
    """V5: with eps 0 exactly the wrong predictions count as fallen. At most 3·B passes."""
    nothing = replace(probe.budget, eps=0.0, step_size=0.0, steps=1)
    with probe.autocast:
        outcome = attack(
            probe.model, probe.images, probe.labels, probe.images, nothing, cross_entropy, False
        )
    differing = int((outcome.fallen == _clean(probe)).sum())
    text = f"An attack with eps 0 differs from clean predictions on {differing} images."
    return required("V5", differing == 0, differing, text)


def accounting(probe: Probe) -> Check:
    """V6: every image has one verdict, and none is robust whose clean prediction is wrong."""
    wrong = int((~probe.fallen & ~_clean(probe)).sum())
    text = f"{wrong} images count as robust though their clean prediction is wrong."
    return required("V6", wrong == 0 and len(probe.fallen) == probe.count, wrong, text)


def best_iterate(alone: Tensor, last: Tensor) -> Check:
    """V7: no image (…, N) that is wrong at the ``last`` iterate is right ``alone``, at all of them.

    Both are of the first attack, at each eps. The value is what counting only the last iterate
    would have lost, at the largest eps.
    """
    lost = int((alone & ~last).sum())
    gap = share(last[-1]) - share(alone[-1])
    text = (
        f"{lost} images count as robust that are wrong at the last iterate; counting only that one "
        f"would give {100 * gap:.1f} points more robust accuracy."
    )
    return required("V7", lost == 0, gap, text)


def verified_again(probe: Probe, model: BlockModel) -> Check:
    """V8: predicted again by ``model``, in other batches, exactly the fallen images are wrong.

    A robust image that is misclassified fails, a fallen one that is not warns: it stays fallen.
    """
    batches = probe.adversarial.chunk(3)
    logits = torch.cat([predict(model, batch) for batch in batches])
    wrong = ~correct(logits, probe.labels)
    missed, recovered = int((wrong & ~probe.fallen).sum()), int((~wrong & probe.fallen).sum())
    text = (
        f"Predicted again, {missed} robust images are wrong and {recovered} fallen ones are right."
    )
    differing = missed + recovered
    if missed > 0:
        return required("V8", False, differing, text)
    return limited("V8", differing, text, warn=0)


def provenance(before: Snapshot, stored: BlockModel | None) -> Check:
    """V9: the weights that were attacked are those of the run, whose file is what it was.

    The rest of what a number comes from (data, images, classes, attacks, versions) are fields of
    the manifest that cannot be left out.
    """
    if stored is None:
        return required("V9", False, 1, "The file of the weights is not what it was.")
    same = snapshot(stored).sha256 == before.sha256
    text = f"The weights that were attacked are {'' if same else 'not '}those of the run."
    return required("V9", same, not same, text)


def clean_accuracy(clean: CleanAccuracy) -> Check:
    """V10: clean accuracy is the recorded one; 0.2 points apart fail, on one device any warns."""
    apart = abs(clean.measured - clean.recorded)
    text = (
        f"Clean accuracy is {100 * clean.measured:.2f} %, recorded were "
        f"{100 * clean.recorded:.2f} %."
    )
    return limited("V10", apart, text, warn=0 if clean.same_device else 0.002, fail=0.002)


def precision(probe: Probe) -> Check:
    """V11: gradients in the attack's precision find what gradients in float32 find.

    Above 0.5 points more robust accuracy warns, and fails where McNemar's p is below 5 %, since on
    few images one or two by chance are more than 0.5 points. No pass where both are float32.
    """
    device = probe.images.device.type
    with probe.autocast:
        reduced = torch.is_autocast_enabled(device)
    if not reduced:
        return limited("V11", 0.0, "The attack took its gradients in float32.")
    full = replace(probe, autocast=torch.autocast(device, enabled=False))
    standing, expected = ~probe.plain, ~full.plain
    difference = paired_difference(standing, expected)
    text = (
        f"Robust accuracy is {100 * share(standing):.1f} % with the attack's gradients and "
        f"{100 * share(expected):.1f} % with float32 ones."
    )
    fail = 0.005 if difference.p < 0.05 else 1
    return limited("V11", difference.value, text, warn=0.005, fail=fail)


def shapes(probe: Probe, classes: int) -> Check:
    """V12: logits are (B, classes), at least two, and labels name one of them."""
    found = tuple(predict(probe.model, probe.images[:1]).shape)
    labels = probe.labels
    named = bool((labels >= 0).all() and (labels < classes).all())
    text = f"Logits have {found[-1]} classes of {classes}, labels {int(labels.max()) + 1}."
    return required("V12", found == (1, classes) and classes > 1 and named, found[-1], text)


def _clean(probe: Probe) -> Tensor:
    """Which images (B,) are right without an attack."""
    return correct(predict(probe.model, probe.images), probe.labels)
