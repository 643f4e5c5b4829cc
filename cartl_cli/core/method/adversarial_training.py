"""How a source model is trained: adversarial training (Eq. 4) plus λ · feature distance (Eq. 10).

Each class here is a training objective: called with a batch, it gives the loss of that step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cartl_cli.core.method.losses import classification_loss, feature_distance, right, trades_loss
from cartl_cli.core.method.objective import StepLoss
from cartl_cli.core.method.training_attacks import TrainingAttack, ramp
from cartl_cli.core.method.weight_perturbation import perturb_weights
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.runtime.randomness import generator, uniform_noise
from cartl_cli.core.runtime.ranks import EVERYTHING, Part


@dataclass(frozen=True)
class OuterLoss:
    """What the weights minimise, given adversarial images: Eq. 4 or TRADES, plus Eq. 10.

    ``fdm_lambda``: λ of the feature distance, the mean over the blocks L−k of all ``ks``, which
    fall; the paper has one. ``trades_beta``: β of TRADES, None for the cross-entropy. ``weights``
    (classes,): of the images of each class in either, but not in the distance.
    """

    model: BlockModel
    ks: tuple[int, ...]
    fdm_lambda: float = 0.0
    trades_beta: float | None = None
    weights: Tensor | None = None

    def __call__(
        self, images: Tensor, adversarial: Tensor, labels: Tensor, share: float = 1.0, /
    ) -> StepLoss:
        """Mean cross-entropy, or the loss of TRADES, + λ · feature distance.

        The distance is a sum over the batch: of a ``share`` of it (0..1) it counts for the whole,
        as a mean does.
        """
        model, cuts = self.model, [len(self.model.blocks) - k for k in self.ks]
        divergence, distance = self.trades_beta is not None, self.fdm_lambda > 0
        features = model.features_at(adversarial, cuts)  # (B, …) each
        logits = model.classify(features[-1], cuts[-1])  # (B, classes)
        correct = {"adversarial": right(logits, labels)}
        if not divergence and not distance:
            return StepLoss(classification_loss(logits, labels, self.weights), correct)

        # a pass of its own: one concatenated pass has other batch-norm statistics
        clean_features = model.features_at(images, cuts)
        with torch.set_grad_enabled(divergence):  # else only to be shown
            clean_logits = model.classify(clean_features[-1], cuts[-1])
        if self.trades_beta is not None:
            loss = trades_loss(clean_logits, logits, labels, self.trades_beta, self.weights)
        else:
            loss = classification_loss(logits, labels, self.weights)
        if distance:
            pairs = zip(clean_features, features, strict=True)
            far = torch.stack([feature_distance(*pair) for pair in pairs]).mean()
            loss = loss + self.fdm_lambda / share * far
        return StepLoss(loss, {"clean": right(clean_logits, labels), **correct})


@dataclass(frozen=True)
class EpsWarmup:
    """eps grows from 0 over the first ``warmup`` (0..1) of ``total_steps``."""

    total_steps: int
    warmup: float = 0.0

    def grown(self, step: int) -> float:
        """The part of its full size (0..1) that eps has at a step."""
        return ramp(step, self.total_steps, self.warmup)


@dataclass(frozen=True)
class NaturalTraining:
    """Mean cross-entropy on clean images.

    ``classify`` gives the logits (B, classes): the model, or its last blocks where the batches are
    of features. ``weights`` (classes,): of the images of each class.
    """

    classify: Callable[[Tensor], Tensor]
    weights: Tensor | None = None

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        """See ``Objective``."""
        logits = self.classify(images)
        loss = classification_loss(logits, labels, self.weights)
        return StepLoss(loss, {"clean": right(logits, labels)})


Outer = Callable[[Tensor, Tensor, Tensor, float], StepLoss]
"""(images, adversarial, labels, share) → the loss at what an attack has made of the images.

``share`` (0..1) is the part of the batch that the images are.
"""


@dataclass(frozen=True)
class AdversarialTraining:
    """The outer loss on images that an attack has made; with AWP, at perturbed weights.

    Where the batches are of features, so is what the attack makes of them. ``awp_gamma``: γ of
    adversarial weight perturbation, 0 for none. ``show_clean`` takes one more pass for the clean
    accuracy, where the outer loss has none. Once ``collapsed`` is not 0, ``fallback`` makes the
    images instead of ``attack``.
    """

    model: BlockModel
    outer: Outer
    attack: TrainingAttack
    warmup: EpsWarmup
    seed: int
    awp_gamma: float = 0.0
    show_clean: bool = False
    fallback: TrainingAttack | None = None
    collapsed: Tensor | None = None

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        """See ``Objective``."""
        model, attack = self.model, self.attack
        noise = uniform_noise(
            images, generator(self.seed, "training attack", step), part.rows.start
        )
        if self.fallback is not None and self.collapsed is not None and self.collapsed > 0:
            attack = self.fallback
        adversarial = attack(images, labels, noise, self.warmup.grown(step))

        shown = {}
        if self.show_clean:
            with torch.no_grad(), eval_mode(model):
                shown["clean"] = right(model(images), labels)

        def outer() -> StepLoss:
            return self.outer(images, adversarial, labels, part.share)

        restore = None
        if self.awp_gamma > 0:
            restore = perturb_weights(model, lambda: outer().loss, self.awp_gamma)
        found = outer()
        return StepLoss(found.loss, shown | found.correct, restore)


@dataclass(frozen=True)
class FreeTraining:
    """The outer loss at x + δ (Shafahi et al. 2019, arXiv 1904.12843, Algorithm 1).

    The one backward pass also gives ∇δ: δ ← clip(δ + ε·sign ∇δ, −ε, ε), in ``delta`` (batch, 3, H,
    W), which stays for the next step, on the same batch or another. The model is in training mode.
    """

    outer: OuterLoss
    eps: float
    warmup: EpsWarmup
    delta: Tensor

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        """See ``Objective``."""
        eps = self.eps * self.warmup.grown(step)
        noise = self.delta[: len(images)].clone().requires_grad_()
        found = self.outer(images, (images + noise).clamp(0, 1), labels)

        def ascend() -> None:
            assert noise.grad is not None
            moved = noise.detach() + eps * noise.grad.sign()
            self.delta[: len(images)] = moved.clamp(-eps, eps)

        return StepLoss(found.loss, found.correct, ascend)
