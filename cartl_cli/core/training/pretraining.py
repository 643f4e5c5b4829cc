"""The source model: adversarial training (Eq. 4) plus feature distance minimization (Eq. 10)."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core.attacks.inner import INNER
from cartl_cli.core.attacks.pgd import Budget, uniform_noise
from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.data.batches import EVERYTHING, Part
from cartl_cli.core.data.split import Split, channel_statistics
from cartl_cli.core.evaluating.evaluation import (
    Plan,
    robustness,
    share,
    unattacked,
)
from cartl_cli.core.losses import feature_distance, trades_loss
from cartl_cli.core.models import build_model
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.randomness import generator, seeded
from cartl_cli.core.records import recording
from cartl_cli.core.records.checkpoints import stop_if_asked
from cartl_cli.core.records.manifest import Manifest, ModelSpec, Run, now
from cartl_cli.core.records.recording import Session
from cartl_cli.core.records.results import Accuracies, TrainingResults
from cartl_cli.core.stopping import stop_signals
from cartl_cli.core.training import moving_average, overfitting
from cartl_cli.core.training.loop import ramp
from cartl_cli.core.training.progress import Progress
from cartl_cli.core.training.recipe import LossOfBatch, Recipe, StepLoss, nothing
from cartl_cli.core.training.running import Setup, set_up, train
from cartl_cli.core.training.state import state_size
from cartl_cli.core.training.weight_perturbation import perturb_weights

FINAL_PGD_STEPS = 20
DELTA, COLLAPSED = "delta", "collapsed"  # of the recipe's state


def pretrain(config: PretrainConfig, session: Session, report: Callable[[Progress], None]) -> Run:
    """Train a source model into a run folder, new or to go on with, and measure it.

    ``report`` gets the progress of each step. Raises UsageError before any work, DataError for bad
    images, DivergedError if the loss is not finite, StoppedError once a signal asked to stop and
    the state is saved.
    """
    setup = set_up(config, config.image_size, session)
    data, device = setup.data, setup.device
    with seeded(config.seed, "source weights"):
        model = build_model(config.arch, len(data.classes))
    model.normalize.fix(*channel_statistics(data.train))
    model = model.to(device).to(memory_format=torch.channels_last).train()
    recipe = recipe_of(model, config, setup, session.say)

    draft = Manifest(
        kind="pretrain",
        created=now(),
        config=config,
        k=config.k,
        model=ModelSpec(arch=config.arch, classes=data.classes, image_size=config.image_size),
        data=setup.record,
        versions=setup.versions,
    )
    size = state_size(model, recipe)
    with (
        recording.written(session, draft, size) as run,
        stop_signals(quiet=not session.ranks.alone) as asked,
    ):
        session.say(
            f"run {run.name}: {config.arch} on {data.name}, {len(data.train):,} training images"
        )
        done = train(run, model, config, setup, recipe, session, asked, report)
        if not session.ranks.first:
            return run
        began = time.monotonic()
        evaluation = data.evaluation.to(device)
        found = last = measure(model, evaluation, config, setup.autocast, run, asked)
        if config.ema > 0:  # the average is the run's model; the last weights stay in a checkpoint
            moving_average.take(recipe.state, model)
            found = measure(model, evaluation, config, setup.autocast, run, asked)
        results = TrainingResults(
            clean_accuracy=found.clean_accuracy,
            robust_accuracy=found.robust_accuracy,
            pgd_steps=FINAL_PGD_STEPS,
            n=len(data.evaluation),
            seconds=done.seconds + time.monotonic() - began,
            last_weights=last if config.ema > 0 else None,
            collapsed_after=int(recipe.state.get(COLLAPSED, 0)) or None,
        )
        return recording.finish_training(run, model, results, done.step)


def measure(
    model: BlockModel,
    split: Split,
    config: PretrainConfig,
    autocast: torch.autocast,
    run: Run,
    asked: Callable[[], int | None],
) -> Accuracies:
    """A first look at a finished model: PGD-20 under cross-entropy at the training eps."""
    budget = Budget(config.eps, config.attack_step, FINAL_PGD_STEPS)
    plan = Plan(("pgd",), (budget,), 1, 0, config.k, config.seed, config.batch_size)

    def batch_done(number: int) -> None:
        stop_if_asked(run, asked, "while measuring, after the last step")

    found = robustness(model, split, plan, autocast, unattacked(model, split, plan), batch_done)
    return Accuracies(clean_accuracy=share(found.clean), robust_accuracy=share(found.worst(0)))


def recipe_of(
    model: BlockModel, config: PretrainConfig, setup: Setup, say: Callable[[str], None]
) -> Recipe:
    """The loss of the configured method, with what it carries from step to step.

    ``delta`` (batch, 3, H, W): the perturbation of free training. ``collapsed``: the epoch after
    which N-FGSM was found to overfit catastrophically, 0 if it was not. The average of the weights.
    """
    total_steps, state = setup.total_steps, {}
    if config.method == "natural":
        loss = natural_loss(model)
    elif config.method == "free":
        shape = (config.batch_size, 3, config.image_size, config.image_size)
        state[DELTA] = torch.zeros(shape, device=setup.device)
        loss = free_loss(model, config, total_steps, state[DELTA])
    elif config.method == "fast":
        state[COLLAPSED] = torch.tensor(0)
        loss = adversarial_loss(model, config, total_steps, setup.part, state[COLLAPSED])
        watched = overfitting.watched(setup.split, config.seed).to(setup.device)
    else:
        loss = adversarial_loss(model, config, total_steps, setup.part)
    if config.ema > 0:
        state |= moving_average.begin(model)

    def step_done(step: int) -> None:
        if config.ema > 0:
            moving_average.follow(state, model, config.ema, step)

    def epoch_done(epoch: int, step: int) -> dict[str, float]:
        if config.method != "fast":
            return {}
        eps = config.eps * ramp(step - 1, total_steps, config.eps_warmup)
        sign = overfitting.look(model, watched, eps, config.seed, config.batch_size, setup.autocast)
        if sign.collapsed and state[COLLAPSED] == 0:
            state[COLLAPSED].fill_(epoch)
            say(
                f"warning: catastrophic overfitting after epoch {epoch}: of {sign.n} "
                f"training images {sign.fgsm} are right under FGSM, {sign.pgd} under PGD-10; "
                f"steps that follow train with PGD-{config.pgd_steps}"
            )
        return {"fgsm_accuracy": sign.fgsm / sign.n, "pgd_accuracy": sign.pgd / sign.n}

    return Recipe(loss, state, step_done, epoch_done)


def natural_loss(classify: Callable[[Tensor], Tensor]) -> LossOfBatch:
    """Mean cross-entropy on clean images.

    ``classify`` gives the logits (B, classes): the model, or its last blocks where the batches are
    of features.
    """

    def loss_of_batch(images: Tensor, labels: Tensor, step: int) -> StepLoss:
        logits = classify(images)
        return StepLoss(F.cross_entropy(logits, labels), {"clean": right(logits, labels)})

    return loss_of_batch


def adversarial_loss(
    model: BlockModel,
    config: PretrainConfig,
    total_steps: int,
    part_of: Callable[[int], Part] = lambda step: EVERYTHING,
    collapsed: Tensor | None = None,
) -> LossOfBatch:
    """The outer loss on images of the method's attack; with AWP, at perturbed weights.

    ``part_of`` says what part of a step's batch the images are. Once ``collapsed`` is not 0, the
    attack is PGD.
    """
    usual, fallback = INNER[config.method](model, config), INNER["at"](model, config)

    def loss_of_batch(images: Tensor, labels: Tensor, step: int) -> StepLoss:
        part, draws = part_of(step), generator(config.seed, "training attack", step)
        noise = uniform_noise(images, draws, part.rows.start)
        grown = ramp(step, total_steps, config.eps_warmup)
        attack = fallback if collapsed is not None and collapsed > 0 else usual
        adversarial = attack(images, labels, noise, grown)

        shown = {}
        if config.method == "at" and config.fdm_lambda == 0:
            with torch.no_grad(), eval_mode(model):  # only to be shown
                shown["clean"] = right(model(images), labels)

        def outer() -> StepLoss:
            return outer_loss(model, config, images, adversarial, labels, part.share)

        restore = nothing
        if config.awp_gamma > 0:
            restore = perturb_weights(model, lambda: outer().loss, config.awp_gamma)
        found = outer()
        return StepLoss(found.loss, shown | found.correct, restore)

    return loss_of_batch


def free_loss(
    model: BlockModel, config: PretrainConfig, total_steps: int, delta: Tensor
) -> LossOfBatch:
    """The outer loss at x + δ (Shafahi et al. 2019, arXiv 1904.12843, Algorithm 1).

    The one backward pass also gives ∇δ: δ ← clip(δ + ε·sign ∇δ, −ε, ε), in ``delta`` (batch, 3, H,
    W), which stays for the next step, on the same batch or another. The model is in training mode.
    """

    def loss_of_batch(images: Tensor, labels: Tensor, step: int) -> StepLoss:
        eps = config.eps * ramp(step, total_steps, config.eps_warmup)
        noise = delta[: len(images)].clone().requires_grad_()
        found = outer_loss(model, config, images, (images + noise).clamp(0, 1), labels)

        def ascend() -> None:
            assert noise.grad is not None
            moved = noise.detach() + eps * noise.grad.sign()
            delta[: len(images)] = moved.clamp(-eps, eps)

        return StepLoss(found.loss, found.correct, ascend)

    return loss_of_batch


def outer_loss(
    model: BlockModel,
    config: PretrainConfig,
    images: Tensor,
    adversarial: Tensor,
    labels: Tensor,
    share: float = 1.0,
) -> StepLoss:
    """What the weights minimise, given adversarial images: Eq. 4 or TRADES, plus Eq. 10.

    Mean cross-entropy on them, or the loss of TRADES, + λ · feature distance at block L−k. The
    distance is a sum over the batch: of a ``share`` of it (0..1) it counts for the whole, as a mean
    does.
    """
    cut = len(model.blocks) - config.k
    divergence, distance = config.method == "trades", config.fdm_lambda > 0
    features = model.features(adversarial, cut)  # (B, …)
    logits = model.classify(features, cut)  # (B, classes)
    correct = {"adversarial": right(logits, labels)}
    if not divergence and not distance:
        return StepLoss(F.cross_entropy(logits, labels), correct)

    # a pass of its own: one concatenated pass has other batch-norm statistics
    clean_features = model.features(images, cut)
    with torch.set_grad_enabled(divergence):  # else only to be shown
        clean_logits = model.classify(clean_features, cut)
    if divergence:
        loss = trades_loss(clean_logits, logits, labels, config.divergence_weight)
    else:
        loss = F.cross_entropy(logits, labels)
    if distance:
        loss = loss + config.fdm_lambda / share * feature_distance(clean_features, features)
    return StepLoss(loss, {"clean": right(clean_logits, labels), **correct})


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """How many predictions are right, 0-d."""
    return (logits.argmax(1) == labels).sum()
