"""``cartl_cli.attack``: any network, attacked and checked as ``cartl attack`` does it."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.judged_pgd import predict
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.split import Split
from cartl_cli.core.errors import UsageError
from cartl_cli.core.evaluation.summary import summary
from cartl_cli.core.evaluation.targets import plan_of
from cartl_cli.core.evaluation.trust_checks import in_order, made, probe_of
from cartl_cli.core.evaluation.verdicts import robustness, unattacked
from cartl_cli.core.models.blocks import Normalize
from cartl_cli.core.models.whole import whole
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs.results import AttackResults, Headline, Interval, headline
from cartl_cli.core.runtime.devices import autocast_for, resolve_precision
from cartl_cli.core.trust.invariants import snapshot

SETTINGS = {
    *("attack", "norm", "eps", "step_size", "pgd_steps", "restarts", "queries", "checks"),
    *("final_iterate", "batch_size", "seed", "precision"),
}
"""The settings of ``cartl attack`` that mean something without a run and a data set."""


@dataclass(frozen=True)
class Attacked:
    """What an attack found of N images.

    ``clean`` (N,): right without an attack. ``robust`` (N,): right under every attack at every eps,
    so that these images survive. ``adversarial`` (N, C, H, W): at the largest eps, a misclassified
    image where one was found, else where the last attack ended. ``results`` has the accuracies as
    fractions, with 95 % intervals, at each eps and of each attack, and the checks, as ``trust``.
    """

    clean: Tensor = field(repr=False)
    robust: Tensor = field(repr=False)
    adversarial: Tensor = field(repr=False)
    results: AttackResults

    @property
    def clean_accuracy(self) -> float:
        """The share that is right without an attack."""
        return self.results.clean_accuracy

    @property
    def robust_accuracy(self) -> float:
        """The share that survives, at the largest eps: an upper bound."""
        return self.results.by_eps[-1].robust_accuracy

    @property
    def interval(self) -> Interval:
        """The 95 % interval of ``robust_accuracy``."""
        return self.results.by_eps[-1].interval

    @property
    def headline(self) -> Headline:
        """The worst that the checks say of ``robust_accuracy``."""
        return headline(self.results.trust)


def attack_any(
    model: nn.Module, images: Tensor, labels: Tensor, settings: Mapping[str, Any]
) -> Attacked:
    """Attack any network on images (N, C, H, W) in [0, 1] with labels (N,), where its weights are.

    It is left as it was found. Raises UsageError for settings, images or a network that will not
    do.
    """
    for name in settings:
        if name in AttackConfig.model_fields and name not in SETTINGS:
            raise UsageError(f"{name}: goes with a run; this attack is on a model and its images")
    try:
        config = configure(AttackConfig, settings)
        for name in config.attacks:
            EVALUATION_ATTACKS[name].require_package()
    except UsageError as error:  # of flags, which are arguments here
        said = re.sub("--([a-z-]+)", lambda flag: flag[1].replace("-", "_"), f"{error}")
        raise UsageError(said) from None
    if torch.is_inference_mode_enabled():
        raise UsageError("an attack needs gradients: call it outside of torch.inference_mode()")
    _check_images(images, labels)
    began = time.monotonic()
    device = next((tensor.device for tensor in model.parameters()), images.device)
    network = whole(model)
    network.normalize = Normalize(images.shape[1]).to(device)
    split = Split(images.detach().to(device), labels.long().to(device))
    classes = outputs(model, split.images[:1])
    if int(labels.max()) >= classes:
        raise UsageError(f"labels: the largest is {int(labels.max())}, the model has {classes}")
    plan = replace(plan_of(config, 1), keep_all=True)
    autocast = autocast_for(device, resolve_precision(config.precision, device))
    before, verdicts = snapshot(network), unattacked(network, split, plan)
    for _ in robustness(network, split, plan, autocast, verdicts):
        pass
    checks = []
    if config.checks != "off":
        probe = probe_of(network, split, plan, verdicts, autocast)
        checks = made(probe, plan, verdicts, before, network, classes, config.checks)
    results = summary(plan, verdicts, in_order(checks), time.monotonic() - began)
    robust = verdicts.worst(len(plan.budgets) - 1)
    return Attacked(verdicts.clean, robust, verdicts.adversarial, results)


def outputs(network: nn.Module, image: Tensor) -> int:
    """How many classes a network tells apart, from its answer to one image (1, C, H, W).

    Raises UsageError for one that does not take it, or gives no logits (1, classes) of it.
    """
    shape = " × ".join(map(str, image.shape[1:]))
    try:
        logits = predict(network, image)
    except Exception as error:  # another's network may raise anything
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise UsageError(f"the model does not take images of {shape} pixels: {reason}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[1] < 2:
        kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"the model must give logits (1, classes) of one image, gives {kind}")
    return logits.shape[1]


def _check_images(images: Tensor, labels: Tensor) -> None:
    """Refuse what are no images in [0, 1] with labels. Raises UsageError."""
    for name, given in {"images": images, "labels": labels}.items():
        if not isinstance(given, Tensor):
            raise UsageError(
                f"{name}: must be a tensor, got {type(given).__name__}; torch.as_tensor makes one"
            )
    if images.dim() != 4 or len(images) == 0:
        raise UsageError(f"images: must be (N, C, H, W), got {tuple(images.shape)}")
    if images.dtype != torch.float32:
        raise UsageError(f"images: must be float32 in [0, 1], got {images.dtype}")
    if not bool(((images >= 0) & (images <= 1)).all()):
        low, high = images.min().item(), images.max().item()
        raise UsageError(
            f"images: must be in [0, 1], got {low:.3g} to {high:.3g}; leave normalization to the "
            "model, such as nn.Sequential(normalize, network)"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise UsageError(
            f"labels: must be {len(images)} class numbers, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if int(labels.min()) < 0:
        raise UsageError(f"labels: must be class numbers, got {int(labels.min())}")
