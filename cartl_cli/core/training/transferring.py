"""The target model: the last k blocks tuned on clean images: vanilla, NEFT (Eq. 11), or LwF."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.errors import UsageError
from cartl_cli.core.evaluating.evaluation import clean_correct, share
from cartl_cli.core.losses import forgetting
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.randomness import seeded
from cartl_cli.core.records import recording, runs
from cartl_cli.core.records.manifest import Manifest, ModelSpec, Run, now, source_record
from cartl_cli.core.records.recording import Session
from cartl_cli.core.records.results import TrainingResults
from cartl_cli.core.stopping import stop_signals
from cartl_cli.core.training.extraction import extracted, settled
from cartl_cli.core.training.pretraining import natural_loss
from cartl_cli.core.training.progress import Progress
from cartl_cli.core.training.recipe import LossOfBatch, Recipe, StepLoss
from cartl_cli.core.training.running import set_up, train
from cartl_cli.core.training.state import state_size
from cartl_cli.core.training.surgery import apply_neft, bake, freeze, replace_head, spectral_norms


def transfer(
    config: TransferConfig, source: Run, session: Session, report: Callable[[Progress], None]
) -> Run:
    """Fine-tune a source model on a target data set, in a run new or to go on with; measure it.

    The source's normalization stays with the model. ``report`` gets the progress of each step.
    Raises UsageError before any work, RunError for a source run that cannot be trusted, DataError
    for bad images, DivergedError if the loss is not finite, StoppedError once a signal asked to
    stop and the state is saved.
    """
    spec = source.manifest.model
    original = runs.read_model(source)
    k = blocks_to_tune(config, source, len(original.blocks))
    setup = set_up(config, spec.image_size, session, config.fraction)
    data, device, split = setup.data, setup.device, setup.split
    for note in remarks(config, source, k, len(original.blocks)):
        session.say(note)

    original = original.to(device)
    model = prepare(copy.deepcopy(original), config, k, len(data.classes))
    lwf = config.method == "lwf"
    head_steps = setup.total_steps // config.epochs * config.head_phase
    loss = lwf_loss(model, original, config, head_steps) if lwf else natural_loss(model)
    recipe = Recipe(loss)
    once = not lwf and not setup.augment and settled(model, k)

    draft = Manifest(
        kind="transfer",
        created=now(),
        config=config,
        k=k,
        model=ModelSpec(
            arch=spec.arch,
            classes=data.classes,
            image_size=spec.image_size,
            convex_blocks=k if config.method == "neft" else 0,
        ),
        data=setup.record,
        source=source_record(source),
        versions=setup.versions,
    )
    size = state_size(model, recipe)
    with (
        recording.written(session, draft, size) as run,
        stop_signals(quiet=not session.ranks.alone) as asked,
    ):
        session.say(f"run {run.name}: from {source.name}, {len(split):,} training images")
        if once:
            with setup.autocast:
                features = extracted(model, k, split, config.batch_size, device)
            if features is not None:
                session.say("features of the frozen extractor are taken once: no augmentation")
                setup = replace(setup, split=features)
                recipe = Recipe(natural_loss(partial(model.classify, start=len(model.blocks) - k)))
        done = train(run, model, config, setup, recipe, session, asked, report)
        if not session.ranks.first:
            return run
        began = time.monotonic()
        if config.method == "neft":
            bake(model, k)
        clean = clean_correct(model, data.evaluation.to(device), config.batch_size)
        results = TrainingResults(
            clean_accuracy=share(clean),
            n=len(data.evaluation),
            seconds=done.seconds + time.monotonic() - began,
            spectral_norms=spectral_norms(model, k),
        )
        return recording.finish_training(run, model, results, done.step)


def blocks_to_tune(config: TransferConfig, source: Run, blocks: int) -> int:
    """k: as configured, else all blocks for LwF and those of the source run for the others.

    Raises UsageError if there are not so many.
    """
    k = config.k or (blocks if config.method == "lwf" else source.manifest.k)
    if k > blocks:
        arch = source.manifest.model.arch
        raise UsageError(f"--k: {k}, but {arch} has {blocks} blocks; use 1..{blocks}")
    return k


def prepare(model: BlockModel, config: TransferConfig, k: int, num_classes: int) -> BlockModel:
    """The source model made ready to be tuned: a new head, frozen parts, and NEFT if wanted."""
    with seeded(config.seed, "head"):
        replace_head(model, num_classes)
    model = model.to(memory_format=torch.channels_last)
    freeze(model, k, config.frozen_bn)
    if config.neft_beta is not None:
        apply_neft(model, k, config.neft_beta)
    return model


def lwf_loss(
    model: BlockModel, source: BlockModel, config: TransferConfig, head_steps: int
) -> LossOfBatch:
    """Mean cross-entropy + λ · distance of the features to the source's (Shafahi et al. 2020).

    In the first ``head_steps`` steps the classifier alone is trained, on the source's own features:
    no other parameter has a gradient, and no batch-norm statistic is touched. ``source`` is in
    evaluation mode.
    """

    def loss_of_batch(images: Tensor, labels: Tensor, step: int) -> StepLoss:
        with torch.no_grad():
            kept = source.embed(images)  # z₀ (B, d)
        features = kept if step < head_steps else model.embed(images)  # z (B, d)
        logits = model.head(features).float()  # (B, classes)
        loss = F.cross_entropy(logits, labels)
        if config.lwf_lambda:
            loss = loss + config.lwf_lambda * forgetting(features, kept)
        return StepLoss(loss, {"clean": (logits.argmax(1) == labels).sum()})

    return loss_of_batch


def remarks(config: TransferConfig, source: Run, k: int, blocks: int) -> list[str]:
    """What a user should know about this pairing of source, k and target."""
    manifest = source.manifest
    found = []
    trained_for_k = isinstance(manifest.config, PretrainConfig) and manifest.config.fdm_lambda > 0
    if trained_for_k and k != manifest.k:
        found.append(
            f"source {source.name}: its feature distance was minimised for k={manifest.k}, "
            f"you use k={k}"
        )
    if k == blocks and config.method != "lwf":
        found.append(f"k={k} tunes every block: no robust block is kept")
    if manifest.config.dataset == config.dataset:
        found.append(f"source and target use the same data set {config.dataset}")
    return found
