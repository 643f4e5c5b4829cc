"""The source model: adversarial training (Eq. 4) plus feature distance minimization (Eq. 10)."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core import recording
from cartl_cli.core.attacks.pgd import Budget, perturb, uniform_start
from cartl_cli.core.checkpoints import stop_if_asked
from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.data.batches import EVERYTHING, Part
from cartl_cli.core.data.split import Split, channel_statistics
from cartl_cli.core.evaluation import (
    Plan,
    Verdicts,
    robustness,
    share,
    unattacked,
)
from cartl_cli.core.losses import feature_distance
from cartl_cli.core.manifest import (
    Manifest,
    ModelSpec,
    Run,
    TrainingResults,
    now,
)
from cartl_cli.core.models import build_model
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.randomness import generator, seeded
from cartl_cli.core.recording import Session
from cartl_cli.core.running import set_up, state_size, train
from cartl_cli.core.stopping import stop_signals
from cartl_cli.core.training import LossOfBatch, Progress, StepLoss, ramp

FINAL_PGD_STEPS = 20


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
    natural = config.method == "natural"
    loss = (
        natural_loss(model)
        if natural
        else adversarial_loss(model, config, setup.total_steps, setup.part)
    )

    draft = Manifest(
        kind="pretrain",
        created=now(),
        config=config,
        k=config.k,
        model=ModelSpec(arch=config.arch, classes=data.classes, image_size=config.image_size),
        data=setup.record,
        versions=setup.versions,
    )
    with (
        recording.written(session, draft, state_size(model)) as run,
        stop_signals(quiet=not session.ranks.alone) as asked,
    ):
        session.say(
            f"run {run.name}: {config.arch} on {data.name}, {len(data.train):,} training images"
        )
        done = train(run, model, config, setup, loss, session, asked, report)
        if not session.ranks.first:
            return run
        began = time.monotonic()
        measured = measure(model, data.evaluation.to(device), config, setup.autocast, run, asked)
        results = TrainingResults(
            clean_accuracy=share(measured.clean),
            robust_accuracy=share(measured.worst(0)),
            pgd_steps=FINAL_PGD_STEPS,
            n=len(data.evaluation),
            seconds=done.seconds + time.monotonic() - began,
        )
        return recording.finish_training(run, model, results, done.step)


def measure(
    model: BlockModel,
    split: Split,
    config: PretrainConfig,
    autocast: torch.autocast,
    run: Run,
    asked: Callable[[], int | None],
) -> Verdicts:
    """A first look at the finished model: PGD-20 under cross-entropy at the training eps."""
    budget = Budget(config.eps, config.attack_step, FINAL_PGD_STEPS)
    plan = Plan(("pgd",), (budget,), 1, 0, config.k, config.seed, config.batch_size)

    def batch_done(number: int) -> None:
        stop_if_asked(run, asked, "while measuring, after the last step")

    return robustness(model, split, plan, autocast, unattacked(model, split, plan), batch_done)


def natural_loss(model: BlockModel) -> LossOfBatch:
    """Mean cross-entropy on clean images."""

    def loss_of_batch(images: Tensor, labels: Tensor, step: int) -> StepLoss:
        logits = model(images)
        return StepLoss(
            F.cross_entropy(logits, labels), {"clean": (logits.argmax(1) == labels).sum()}
        )

    return loss_of_batch


def training_budget(config: PretrainConfig, grown: float) -> Budget:
    """The training attack while eps has ``grown`` to a part (0..1) of its full size.

    The distance the attack can walk, step_size · steps, grows with eps: full-size steps, but fewer.
    """
    steps = math.ceil(config.pgd_steps * grown)
    step_size = config.attack_step * config.pgd_steps * grown / steps
    return Budget(config.eps * grown, step_size, steps)


def adversarial_loss(
    model: BlockModel,
    config: PretrainConfig,
    total_steps: int,
    part_of: Callable[[int], Part] = lambda step: EVERYTHING,
) -> LossOfBatch:
    """Mean cross-entropy on PGD images (Eq. 4) + λ · feature distance at block L−k (Eq. 10).

    ``part_of`` says what part of a step's batch the images are. The distance is a sum over the
    batch: a part of it counts for the whole, as a mean does.
    """
    cut = len(model.blocks) - config.k

    def loss_of_batch(images: Tensor, labels: Tensor, step: int) -> StepLoss:
        budget = training_budget(config, ramp(step, total_steps, config.eps_warmup))
        part, draws = part_of(step), generator(config.seed, "training attack", step)
        start = uniform_start(images, budget.eps, draws, part.rows.start)
        adversarial = perturb(model, images, labels, start, budget)

        adversarial_features = model.features(adversarial, cut)  # (B, …)
        adversarial_logits = model.classify(adversarial_features, cut)  # (B, classes)
        loss = F.cross_entropy(adversarial_logits, labels)
        if config.fdm_lambda > 0:
            # a pass of its own: one concatenated pass has other batch-norm statistics
            clean_features = model.features(images, cut)
            with torch.no_grad():
                clean_logits = model.classify(clean_features, cut)
            distance = feature_distance(clean_features, adversarial_features)
            loss = loss + config.fdm_lambda / part.share * distance
        else:
            with torch.no_grad(), eval_mode(model):  # only to be shown
                clean_logits = model(images)
        return StepLoss(
            loss,
            {
                "clean": (clean_logits.argmax(1) == labels).sum(),
                "adversarial": (adversarial_logits.argmax(1) == labels).sum(),
            },
        )

    return loss_of_batch
