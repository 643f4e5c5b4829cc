"""How a target model is made of a source model.

A method says on what the last k blocks are trained. To it come, as asked for, the constraint of
NEFT, the distance to the source's features, and a phase of the classifier alone.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from cartl_cli.core.choices import FreezeBatchNorm, HeadInit
from cartl_cli.core.errors import UsageError
from cartl_cli.core.method.adversarial_training import (
    AdversarialTraining,
    NaturalTraining,
    OuterLoss,
)
from cartl_cli.core.method.batch_norm import freeze, settled
from cartl_cli.core.method.keeping import DISTANCES, Keeping, kept_blocks
from cartl_cli.core.method.latent import worst_features
from cartl_cli.core.method.losses import classification_loss, right
from cartl_cli.core.method.neft import apply_neft, bake, spectral_norms
from cartl_cli.core.method.objective import Objective, StepLoss
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.method.training_attacks import Growing, pgd_attack
from cartl_cli.core.models.blocks import BlockModel, classifier_alone
from cartl_cli.core.models.pieces import at_once, in_pieces
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS
from cartl_cli.core.registry.transfer_methods import check_network
from cartl_cli.core.runtime.ranks import EVERYTHING, Part


@dataclass(frozen=True)
class Tuning:
    """What a method is given: a copy of the source model with a new head and frozen parts.

    ``settings``: every setting of ``cartl transfer`` by its name, defaults filled in. The training
    has ``total_steps``, the first ``head_steps`` for the classifier alone. Once ``collapsed`` is
    not 0, a method that makes its images in a single step takes several. ``class_weights``
    (classes,): of the images of each class in the classification loss, 1 if None.
    """

    model: BlockModel
    source: BlockModel
    k: int
    settings: Mapping[str, Any]
    total_steps: int
    head_steps: int
    collapsed: Tensor
    class_weights: Tensor | None = None

    def growing(self, full: Budget) -> Growing:
        """A budget whose eps, or radius, grows as the settings have it."""
        return Growing(full, self.total_steps, self.settings["eps_warmup"])


@dataclass(frozen=True)
class Tuned:
    """What a method makes of a model that is ready to be tuned.

    ``objective``: the loss on images. ``on_features``: the same on features at block L−k, if the
    extractor gives the same ones in every step; None if the method needs the images.
    ``convex_blocks``: how many of the last blocks have residual means instead of sums, and weights
    of norm β (NEFT). ``phase``: see ``TrainingPlan``.
    """

    objective: Objective
    on_features: Objective | None = None
    convex_blocks: int = 0
    phase: Callable[[int], Hashable] = lambda step: None


def replace_head(model: BlockModel, num_classes: int, init: HeadInit = "linear") -> None:
    """A new linear classifier (global random state).

    ``linear``: weights U(−1/√d, 1/√d) of d inputs, no bias. ``uniform``: weights and bias U(0, 1),
    as the official code has it.
    """
    old = model.head
    head = nn.Linear(old.in_features, num_classes).to(old.weight.device)
    nn.init.zeros_(head.bias)
    if init == "uniform":
        nn.init.uniform_(head.weight)
        nn.init.uniform_(head.bias)
    model.blocks[-1].linear = head


def prepare(
    tuning: Tuning, method: Callable[[Tuning], Tuned], freeze_bn: FreezeBatchNorm, num_classes: int
) -> Tuned:
    """Make a copy of the source model ready to be tuned: a new head, frozen parts, a method's own.

    ``method`` is one of those below, or another of its kind. Draws from the global random state.
    Raises UsageError for what the network does not allow and for blocks to be kept that are not
    tuned, RunError for an all-zero weight under NEFT.
    """
    model, k, settings = tuning.model, tuning.k, tuning.settings
    check_network(model, k, settings)
    replace_head(model, num_classes, settings["head_init"])
    model.to(memory_format=torch.channels_last)
    freeze(model, k, freeze_bn)
    if (beta := settings["neft_beta"]) is not None:
        apply_neft(model, k, beta)
    tuned = method(tuning)
    if not settled(model, k):
        tuned = replace(tuned, on_features=None)
    tuned = extracted_in_pieces(tuning, head_first(tuning, tuned, kept_near(tuning, tuned)))
    if beta is not None:
        tuned = replace(tuned, convex_blocks=k)
    return tuned


def finish(model: BlockModel, tuned: Tuned, k: int) -> dict[str, float]:
    """End the tuning; the spectral norm of each weight of the last k blocks, by its name."""
    if tuned.convex_blocks:
        bake(model, k)
    return spectral_norms(model, k)


# On what the sub-model is trained


def natural(tuning: Tuning) -> Tuned:
    """Plain fine-tuning on clean images: vanilla transfer, and with NEFT that of the paper."""
    model, weights = tuning.model, tuning.class_weights
    on_features = NaturalTraining(_last_blocks(model, tuning.k), weights)
    return Tuned(NaturalTraining(model, weights), on_features)


def latent(tuning: Tuning) -> Tuned:
    """The worst features within ``radius`` of the source's, by ``latent_steps`` of gradient."""
    model, k, settings = tuning.model, tuning.k, tuning.settings

    def outer(features: Tensor, worst: Tensor, labels: Tensor, share: float) -> StepLoss:
        logits = model.classify(worst, len(model.blocks) - k)
        loss = classification_loss(logits, labels, tuning.class_weights)
        return StepLoss(loss, {"latent": right(logits, labels)})

    radius, steps = settings["radius"], settings["latent_steps"]
    on_features = AdversarialTraining(
        model,
        outer,
        worst_features(model, k, steps),
        tuning.growing(Budget(radius, radius, steps, "l2")),
        settings["seed"],
        settings["awp_gamma"],
    )
    return Tuned(OnImages(model, k, on_features), on_features)


def adversarial(tuning: Tuning) -> Tuned:
    """Adversarial fine-tuning: what ``cartl pretrain`` does, with the last k blocks to train.

    The frozen extractor takes part in each attack, but nothing of it gets a gradient.
    """
    model, settings = tuning.model, tuning.settings
    attack = TRAINING_ATTACKS[settings["method"]]
    assert attack.code is not None
    budget = tuning.growing(Budget(settings["eps"], settings["step_size"], settings["pgd_steps"]))
    return Tuned(
        AdversarialTraining(
            model,
            OuterLoss(
                model,
                (tuning.k,),
                trades_beta=settings["trades_beta"],
                weights=tuning.class_weights,
            ),
            resolve_name(attack.code)(model),
            budget,
            settings["seed"],
            settings["awp_gamma"],
            fallback=pgd_attack(model) if attack.single_step else None,
            collapsed=tuning.collapsed,
        ),
        phase=lambda step: (budget.steps(step), int(tuning.collapsed)),
    )


@dataclass(frozen=True)
class OnImages:
    """An objective of features, on the features that the extractor makes of images."""

    model: BlockModel
    k: int
    on_features: Objective

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        """See ``Objective``."""
        cut = len(self.model.blocks) - self.k
        with torch.no_grad():
            if settled(self.model, self.k):
                features = in_pieces(lambda some: self.model.features(some, cut), images)
            else:  # batch norm is to see the whole batch
                features = self.model.features(images, cut)
        return self.on_features(features, labels, step, part)


def extracted_in_pieces(tuning: Tuning, tuned: Tuned) -> Tuned:
    """The same, with the extractor's part of large batches taken in ``pieces``, where it can be."""
    if tuned.on_features is None:
        return tuned
    by_features = OnImages(tuning.model, tuning.k, tuned.on_features)
    return replace(tuned, objective=InPieces(tuned.objective, by_features))


@dataclass(frozen=True)
class InPieces:
    """``whole``, but of batches too large to be taken at once ``on_features``: the same loss."""

    whole: Objective
    on_features: Objective

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        """See ``Objective``."""
        chosen = self.on_features if at_once(images) < len(images) else self.whole
        return chosen(images, labels, step, part)


# What is added to it


def kept_near(tuning: Tuning, tuned: Tuned) -> Tuned:
    """The same, with the distance of clean features to the source's in the loss, if asked for."""
    settings, model, k = tuning.settings, tuning.model, tuning.k
    weight, at, distance = settings["keep_lambda"], settings["keep_at"], settings["keep_distance"]
    if settings["lwf_lambda"] is not None:
        weight, at, distance = settings["lwf_lambda"], "last", "l1"
    if weight is None:
        return tuned
    try:
        kept = kept_blocks(model, k, at)
    except ValueError as error:
        raise UsageError(f"--keep-at: {error}") from None

    def with_distance(objective: Objective, on_features: bool) -> Objective:
        # clean training has the pass that the distance needs; others take one more
        clean = isinstance(objective, NaturalTraining)
        keeping = Keeping(
            model,
            tuning.source,
            k,
            kept,
            DISTANCES[distance],
            weight,
            on_features,
            clean,
            tuning.class_weights,
        )
        return keeping if clean else Both(objective, keeping)

    on_features = tuned.on_features and with_distance(tuned.on_features, True)
    return replace(tuned, objective=with_distance(tuned.objective, False), on_features=on_features)


@dataclass(frozen=True)
class Both:
    """The sum of two losses on one batch."""

    first: Objective
    second: Objective

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        """See ``Objective``."""
        one, two = (each(images, labels, step, part) for each in (self.first, self.second))
        return StepLoss(one.loss + two.loss, two.correct | one.correct, one.backward_done)


def head_first(tuning: Tuning, alone: Tuned, whole: Tuned) -> Tuned:
    """``alone`` while the classifier alone is trained, then ``whole``.

    What lies before the classifier does not move in that phase: its distance to the source would
    only cost time.
    """
    if tuning.head_steps == 0:
        return whole

    def phased(first: Objective, then: Objective) -> Objective:
        return HeadFirst(tuning.model, tuning.head_steps, first, then)

    features = None
    if alone.on_features is not None and whole.on_features is not None:
        features = phased(alone.on_features, whole.on_features)
    return replace(whole, objective=phased(alone.objective, whole.objective), on_features=features)


@dataclass(frozen=True)
class HeadFirst:
    """``first`` for so many ``steps``, in which nothing but the classifier is trained or moves."""

    model: BlockModel
    steps: int
    first: Objective
    then: Objective

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        """See ``Objective``."""
        if step >= self.steps:
            return self.then(images, labels, step, part)
        with classifier_alone(self.model):
            return self.first(images, labels, step, part)


def _last_blocks(model: BlockModel, k: int) -> Callable[[Tensor], Tensor]:
    """Features at block L−k (B, …) → logits (B, classes)."""
    # ``classify`` is looked up at each call: by then it may be the compiled one
    return lambda features: model.classify(features, len(model.blocks) - k)
