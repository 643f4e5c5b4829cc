"""The source model: adversarial training (Eq. 4) plus feature distance minimization (Eq. 10)."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core import runs
from cartl_cli.core.attacks.pgd import Budget, perturb, uniform_start
from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.data.registry import augmentation, load_data_set
from cartl_cli.core.data.split import Split, channel_statistics
from cartl_cli.core.devices import resolve_device
from cartl_cli.core.evaluation import Robustness, robustness, share
from cartl_cli.core.losses import feature_distance
from cartl_cli.core.manifest import Manifest, ModelSpec, Results, Run, data_record, now, versions
from cartl_cli.core.models import build_model
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.precision import autocast_for, resolve_precision
from cartl_cli.core.randomness import generator, seeded
from cartl_cli.core.training import LossOfBatch, Progress, StepLoss, count_steps, fit, ramp

FINAL_PGD_STEPS = 20


def pretrain(
    config: PretrainConfig,
    runs_dir: Path,
    name: str | None,
    cache_dir: Path | None,
    say: Callable[[str], None],
    report: Callable[[Progress], None],
) -> Run:
    """Train a source model into a new run folder and measure it.

    ``say`` gets one line for everything worth knowing, ``report`` the progress of each step.
    Raises UsageError before any work, DataError for bad images, DivergedError if the loss is not
    finite (the run folder then says ``diverged``).
    """
    device = resolve_device(config.device)
    runs.check_place(runs_dir, name)
    data = load_data_set(
        config.dataset,
        config.classes,
        config.image_size,
        config.val_fraction,
        config.seed,
        cache_dir,
    )
    total_steps = count_steps(config, len(data.train))
    augment = augmentation(config.dataset, config.augment)
    precision = resolve_precision(config.precision, device)
    for note in data.notes:
        say(note)

    with seeded(config.seed, "source weights"):
        model = build_model(config.arch, len(data.classes))
    model.normalize.fix(*channel_statistics(data.train))
    model = model.to(device).to(memory_format=torch.channels_last).train()

    draft = Manifest(
        kind="pretrain",
        created=now(),
        config=config,
        k=config.k,
        model=ModelSpec(arch=config.arch, classes=data.classes, image_size=config.image_size),
        data=data_record(data, augment),
        versions=versions(device, precision),
    )
    with runs.new_run(runs_dir, name, draft) as run:
        say(f"run {run.name}: {config.arch} on {data.name}, {len(data.train):,} training images")
        began = time.monotonic()
        autocast = autocast_for(device, precision)
        fit(
            model,
            data.train.to(device),
            config,
            augment,
            natural_loss(model)
            if config.method == "natural"
            else adversarial_loss(model, config, total_steps),
            runs.recorder(run, report),
            autocast,
        )
        measured = measure(model, data.evaluation.to(device), config, autocast)
        results = Results(
            clean_accuracy=share(measured.clean),
            robust_accuracy=share(measured.worst),
            pgd_steps=FINAL_PGD_STEPS,
            n=len(data.evaluation),
            seconds=time.monotonic() - began,
        )
        return runs.finish_run(run, model, results)


def measure(
    model: BlockModel, split: Split, config: PretrainConfig, autocast: torch.autocast
) -> Robustness:
    """A first look at the finished model: PGD-20 under cross-entropy at the training eps."""
    return robustness(
        model,
        split,
        Budget(config.eps, config.attack_step, FINAL_PGD_STEPS),
        ("ce",),
        restarts=1,
        seed=config.seed,
        batch_size=config.batch_size,
        autocast=autocast,
        report=lambda done: None,
    )


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


def adversarial_loss(model: BlockModel, config: PretrainConfig, total_steps: int) -> LossOfBatch:
    """Mean cross-entropy on PGD images (Eq. 4) + λ · feature distance at block L−k (Eq. 10)."""
    cut = len(model.blocks) - config.k

    def loss_of_batch(images: Tensor, labels: Tensor, step: int) -> StepLoss:
        budget = training_budget(config, ramp(step, total_steps, config.eps_warmup))
        start = uniform_start(images, budget.eps, generator(config.seed, "training attack", step))
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
            loss = loss + config.fdm_lambda * distance
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
