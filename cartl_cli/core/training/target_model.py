"""The target model: the last k blocks of a source model, fine-tuned on clean images."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pkgutil import resolve_name

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.errors import UsageError
from cartl_cli.core.evaluation.verdicts import clean_correct, share
from cartl_cli.core.method import transfer_methods
from cartl_cli.core.method.transfer_methods import Tuned
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runs import weights
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.results import TrainingResults
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.randomness import seeded
from cartl_cli.core.training.frozen_features import extracted
from cartl_cli.core.training.loop import Progress
from cartl_cli.core.training.training_plan import TrainingPlan
from cartl_cli.core.training.training_run import begun, set_up


def transfer(
    config: TransferConfig, source: Run, session: Session, report: Callable[[Progress], None]
) -> Run | None:
    """Fine-tune a source model on a target data set, in a run new or to go on with; measure it.

    The source's normalization stays with the model. ``report`` gets the progress of each step. Of
    many processes the first alone gives the run. Raises UsageError before any work, RunError for a
    source run that cannot be trusted, DataError for bad images, DivergedError if the loss is not
    finite, StoppedError once a signal asked to stop and the state is saved.
    """
    spec = source.manifest.model
    original = weights.read_model(source)
    blocks = len(original.blocks)
    k = config.blocks_to_tune(source.manifest.k, blocks)
    if k > blocks:
        raise UsageError(f"--k: {k}, but {spec.arch} has {blocks} blocks; use 1..{blocks}")
    setup = set_up(config, spec.image_size, session, config.fraction)
    data, device = setup.data, setup.device
    for note in remarks(config, source, k, blocks):
        session.say(note)

    original = original.to(device)
    model = copy.deepcopy(original)
    head_steps = setup.total_steps // config.epochs * config.head_phase
    tuned = prepare(model, original, config, k, len(data.classes), head_steps)
    plan = TrainingPlan(tuned.objective, head_steps=head_steps)
    spec = spec.model_copy(update={"classes": data.classes, "convex_blocks": tuned.convex_blocks})
    with begun(session, setup, model, plan, spec, k, source) as training:
        if tuned.on_features is not None and not setup.augment:
            with setup.autocast:
                features = extracted(model, k, setup.split, config.batch_size, device)
            if features is not None:
                session.say("features of the frozen extractor are taken once: no augmentation")
                setup = replace(setup, split=features)
                plan = replace(plan, objective=tuned.on_features)
        done = training.train(model, plan, setup, report)
        if done is None:
            return None
        began = time.monotonic()
        norms = transfer_methods.finish(model, tuned, k)
        clean = clean_correct(model, data.evaluation, config.batch_size, device)
        results = TrainingResults(
            clean_accuracy=share(clean),
            n=len(clean),
            seconds=done.seconds + time.monotonic() - began,
            spectral_norms=norms,
        )
        return training.finish(model, results, done)


def prepare(
    model: BlockModel,
    source: BlockModel,
    config: TransferConfig,
    k: int,
    num_classes: int,
    head_steps: int = 0,
) -> Tuned:
    """``transfer_methods.prepare`` by the settings, with the head that belongs to their seed."""
    with seeded(config.seed, "head"):
        return transfer_methods.prepare(
            model,
            source,
            resolve_name(config.tuning.code),
            k,
            config.frozen_bn,
            num_classes,
            head_steps,
            config.own_settings,
        )


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
    if k == blocks and not config.tuning.all_blocks:
        found.append(f"k={k} tunes every block: no robust block is kept")
    if manifest.config.dataset == config.dataset:
        found.append(f"source and target use the same data set {config.dataset}")
    return found
