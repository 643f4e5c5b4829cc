"""The target model: fine-tuning of the last k blocks on clean images, vanilla or NEFT (Eq. 11)."""

import time
from collections.abc import Callable

import torch

from cartl_cli.core import recording, runs
from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.data.registry import augmentation, load_data_set
from cartl_cli.core.devices import resolve_device
from cartl_cli.core.errors import UsageError
from cartl_cli.core.evaluation import clean_correct, share
from cartl_cli.core.manifest import (
    Manifest,
    ModelSpec,
    Run,
    TrainingResults,
    data_record,
    now,
    source_record,
    versions,
)
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.precision import autocast_for, resolve_precision
from cartl_cli.core.pretraining import natural_loss
from cartl_cli.core.randomness import seeded
from cartl_cli.core.recording import Session
from cartl_cli.core.running import state_size, train
from cartl_cli.core.stopping import stop_signals
from cartl_cli.core.surgery import apply_neft, bake, freeze, replace_head, spectral_norms
from cartl_cli.core.training import Progress, count_steps


def transfer(
    config: TransferConfig, source: Run, session: Session, report: Callable[[Progress], None]
) -> Run:
    """Fine-tune a source model on a target data set, in a run new or to go on with; measure it.

    The source's normalization stays with the model. ``report`` gets the progress of each step.
    Raises UsageError before any work, RunError for a source run that cannot be trusted, DataError
    for bad images, DivergedError if the loss is not finite, StoppedError once a signal asked to
    stop and the state is saved.
    """
    device = resolve_device(config.device)
    recording.check_place(session)
    spec = source.manifest.model
    model = runs.read_model(source)
    blocks = len(model.blocks)
    k = config.k or source.manifest.k
    if k > blocks:
        raise UsageError(f"--k: {k}, but {spec.arch} has {blocks} blocks; use 1..{blocks}")
    data = load_data_set(
        config.dataset,
        config.classes,
        spec.image_size,
        config.val_fraction,
        config.seed,
        session.cache_dir,
        session.store,
    )
    count_steps(config, len(data.train))
    augment = augmentation(config.dataset, config.augment)
    precision = resolve_precision(config.precision, device)
    autocast = autocast_for(device, precision)
    for note in [*data.notes, *remarks(source, k, blocks, config.dataset)]:
        session.say(note)

    model = prepare(model.to(device), config, k, len(data.classes))
    loss = natural_loss(model)

    draft = Manifest(
        kind="transfer",
        created=now(),
        config=config,
        k=k,
        model=ModelSpec(
            arch=spec.arch,
            classes=data.classes,
            image_size=spec.image_size,
            convex_blocks=k if config.neft_beta is not None else 0,
        ),
        data=data_record(data, augment),
        source=source_record(source),
        versions=versions(device, precision),
    )
    with recording.written(session, draft, state_size(model)) as run, stop_signals() as asked:
        session.say(f"run {run.name}: from {source.name}, {len(data.train):,} training images")
        images = data.train.to(device)
        done = train(run, model, images, config, augment, loss, autocast, session, asked, report)
        began = time.monotonic()
        if config.neft_beta is not None:
            bake(model, k)
        clean = clean_correct(model, data.evaluation.to(device), config.batch_size)
        results = TrainingResults(
            clean_accuracy=share(clean),
            n=len(data.evaluation),
            seconds=done.seconds + time.monotonic() - began,
            spectral_norms=spectral_norms(model, k),
        )
        return recording.finish_training(run, model, results, done.step)


def prepare(model: BlockModel, config: TransferConfig, k: int, num_classes: int) -> BlockModel:
    """The source model made ready to be tuned: a new head, frozen parts, and NEFT if wanted."""
    with seeded(config.seed, "head"):
        replace_head(model, num_classes)
    model = model.to(memory_format=torch.channels_last)
    freeze(model, k, config.frozen_bn)
    if config.neft_beta is not None:
        apply_neft(model, k, config.neft_beta)
    return model


def remarks(source: Run, k: int, blocks: int, dataset: str) -> list[str]:
    """What a user should know about this pairing of source, k and target."""
    manifest = source.manifest
    found = []
    trained_for_k = isinstance(manifest.config, PretrainConfig) and manifest.config.fdm_lambda > 0
    if trained_for_k and k != manifest.k:
        found.append(
            f"source {source.name}: its feature distance was minimised for k={manifest.k}, "
            f"you use k={k}"
        )
    if k == blocks:
        found.append(f"k={k} tunes every block: no robust block is kept")
    if manifest.config.dataset == dataset:
        found.append(f"source and target use the same data set {dataset}")
    return found
