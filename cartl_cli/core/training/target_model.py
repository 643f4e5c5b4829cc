"""The target model: the last k blocks of a source model, fine-tuned."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pkgutil import resolve_name

import torch

from cartl_cli.core.config import TransferConfig
from cartl_cli.core.config.configure import fitting
from cartl_cli.core.data.split import Split, stratified
from cartl_cli.core.errors import UsageError
from cartl_cli.core.evaluation.verdicts import clean_correct, share
from cartl_cli.core.method import transfer_methods
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.method.training_attacks import Growing
from cartl_cli.core.method.transfer_methods import Tuned, Tuning
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import WHOLE, check_k
from cartl_cli.core.runs import weights
from cartl_cli.core.runs.manifest import Position, Run
from cartl_cli.core.runs.results import TrainingResults
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.randomness import seeded
from cartl_cli.core.training import interpolation, weight_average
from cartl_cli.core.training.catastrophic_overfitting import COLLAPSED, guard
from cartl_cli.core.training.frozen_features import extracted
from cartl_cli.core.training.loop import Progress, fit, sgd
from cartl_cli.core.training.radius import radius_of
from cartl_cli.core.training.remarks import class_by_class, remarks, verdict
from cartl_cli.core.training.replayed_steps import compiled_steps
from cartl_cli.core.training.training_plan import TrainingPlan, TrainingSetup
from cartl_cli.core.training.training_run import begun, set_up, training_of, weights_of_classes

LOOKED_AT = 1000  # training images at most, for the accuracy that training ended at


@dataclass(frozen=True)
class Target:
    """A target model in the making: the ``model`` of the last ``k`` blocks, and how it is tuned."""

    config: TransferConfig
    model: BlockModel
    k: int
    tuned: Tuned
    plan: TrainingPlan


def transfer(
    config: TransferConfig,
    source: Run,
    session: Session,
    report: Callable[[Progress], None],
    k: int | None = None,
) -> Run | None:
    """Fine-tune a source model on a target data set, in a run new or to go on with; measure it.

    ``k``: what to take for it where the settings say auto, as ``sweeps.trials.k_search`` finds it.
    The source's normalization stays with the model. ``report`` gets the progress of each step. Of
    many processes the first alone gives the run. Raises UsageError before any work, RunError for a
    source run that cannot be trusted, DataError for bad images, DivergedError if the loss is not
    finite, StoppedError once a signal asked to stop and the state is saved.
    """
    spec = source.manifest.model
    original = source_model(source)
    k = k or blocks_to_tune(config, source, original)
    setup = set_up(config, spec.preprocessing, session, config.fraction)
    config = fitting(config, len(setup.split))
    data, device = setup.data, setup.device
    for note in remarks(config, source, k, len(original.blocks)):
        session.say(note)
    original = original.to(device)
    radius = radius_of(config, source, original, k, session)
    target = begin(config, original, k, setup, radius, session.say)
    del original  # what still needs it has it
    model, tuned, plan = target.model, target.tuned, target.plan
    convex = max(spec.convex_blocks, tuned.convex_blocks)  # an imported source may have some
    spec = spec.model_copy(update={"classes": data.classes, "convex_blocks": convex})
    with begun(session, setup, model, plan, spec, k, source, radius) as training:
        images = setup.split
        setup, plan = with_features(target, setup, session.say)
        done = training.train(model, plan, setup, report)
        if done is None:
            return None
        began = time.monotonic()
        norms = finish(target)
        clean = clean_correct(model, data.evaluation, config.batch_size, device)
        fitted = training_accuracy(model, images, config, device)
        results = TrainingResults(
            clean_accuracy=share(clean),
            n=len(clean),
            seconds=done.seconds + time.monotonic() - began,
            spectral_norms=norms,
            train_accuracy=fitted,
            collapsed_after=int(plan.state.get(COLLAPSED, torch.tensor(0))) or None,
        )
        run = training.finish(model, results, done)
    for note in (
        class_by_class(clean, data.evaluation, data.classes),
        *verdict(run, data.evaluation),
    ):
        session.say(note)
    return run


def source_model(source: Run) -> BlockModel:
    """The model of a source run. Raises RunError, and UsageError if it has no blocks to tune."""
    if source.manifest.model.arch.startswith(WHOLE):
        raise UsageError(
            f"--source: {source.name!r} is a network that was taken whole, with no blocks to tune; "
            "import it cut into blocks, as docs/own-model.md has it"
        )
    return weights.read_model(source)


def blocks_to_tune(config: TransferConfig, source: Run, original: BlockModel) -> int:
    """k, as the settings have it for this source model.

    Raises UsageError if it has fewer, or if k is still to be chosen.
    """
    if config.k == "auto":
        raise UsageError("--k: auto is chosen before the training begins; give a number")
    blocks = len(original.blocks)
    k = config.blocks_to_tune(source.manifest.k, blocks)
    check_k(k, source.manifest.model.arch, blocks)
    return k


def begin(
    config: TransferConfig,
    original: BlockModel,
    k: int,
    setup: TrainingSetup,
    radius: float | None,
    say: Callable[[str], None],
) -> Target:
    """A copy of the source model ready to be tuned, and the plan of its training."""
    model = copy.deepcopy(original)
    classes, total_steps, collapsed = len(setup.data.classes), setup.total_steps, torch.tensor(0)
    head_steps = total_steps // config.epochs * config.head_phase
    tuned = prepare(
        model,
        original,
        config,
        k,
        classes,
        head_steps,
        total_steps,
        radius,
        collapsed,
        weights_of_classes(setup),
    )
    plan = TrainingPlan(tuned.objective, head_steps=head_steps, phase=tuned.phase)
    if config.tuning.single_step:
        full = Budget(config.attack_eps, config.attack_step, config.attack_steps)
        budget = Growing(full, total_steps, config.eps_warmup)
        epoch_done = guard(model, setup, budget, collapsed, say)
        plan = replace(plan, state={COLLAPSED: collapsed}, epoch_done=epoch_done)
    plan = weight_average.averaged(plan, model, config.ema)
    if config.interpolate is not None:
        plan = interpolation.remembered(plan, model)
    return Target(config, model, k, tuned, plan)


def prepare(
    model: BlockModel,
    source: BlockModel,
    config: TransferConfig,
    k: int,
    num_classes: int,
    head_steps: int = 0,
    total_steps: int = 1,
    radius: float | None = None,
    collapsed: torch.Tensor | None = None,
    class_weights: torch.Tensor | None = None,
) -> Tuned:
    """``transfer_methods.prepare`` by the settings, with the head that belongs to their seed."""
    settings = config.model_dump() | {
        "eps": config.attack_eps,
        "step_size": config.attack_step,
        "pgd_steps": config.attack_steps,
        "trades_beta": config.divergence_weight,
        "radius": radius,
        "latent_steps": config.latent_steps or 1,
        "keep_at": config.keep_at or "last",
        "keep_distance": config.keep_distance or "cosine",
    }
    tuning = Tuning(
        model,
        source,
        k,
        settings,
        total_steps,
        head_steps,
        torch.tensor(0) if collapsed is None else collapsed,
        class_weights,
    )
    method = resolve_name(config.tuning.code)
    with seeded(config.seed, "head"):
        return transfer_methods.prepare(tuning, method, config.frozen_bn, num_classes)


def with_features(
    target: Target, setup: TrainingSetup, say: Callable[[str], None]
) -> tuple[TrainingSetup, TrainingPlan]:
    """The setup and the plan on features of the frozen extractor, where they can be taken once."""
    on_features, config = target.tuned.on_features, target.config
    if on_features is None or setup.augment:
        return setup, target.plan
    with setup.autocast:
        features = extracted(target.model, target.k, setup.split, config.batch_size, setup.device)
    if features is None:
        return setup, target.plan
    say("features of the frozen extractor are taken once: no augmentation")
    return replace(setup, split=features), replace(target.plan, objective=on_features)


def tune(target: Target, setup: TrainingSetup, between: Callable[[], None]) -> BlockModel:
    """Train a target in memory, without a run: bit by bit the model that ``transfer`` makes.

    ``between`` is called between two steps, and may raise to stop. Raises DivergedError.
    """
    setup, plan = with_features(target, setup, lambda line: None)
    model = target.model
    training = training_of(model, sgd(model, target.config), plan.objective, setup)
    with compiled_steps(plan, setup, lambda line: None, lambda line: None) as take:
        for step in fit(training, Position(), take):
            plan.step_done(step.done)
            if step.epoch_ended:
                plan.epoch_done(step.look().epoch, step.done)
            between()
    finish(target)
    return model.eval()


def finish(target: Target) -> dict[str, float]:
    """End the tuning after the last step; the spectral norm of each tuned weight, by its name."""
    config, model, state = target.config, target.model, target.plan.state
    if config.ema > 0:
        weight_average.take(state, model)
    if config.interpolate is not None:
        interpolation.interpolate(state, model, config.interpolate)
    return transfer_methods.finish(model, target.tuned, target.k)


def training_accuracy(
    model: BlockModel, split: Split, config: TransferConfig, device: torch.device
) -> float:
    """Clean accuracy on the training images, of some of them if they are many."""
    some = split.take(stratified(split.labels, min(LOOKED_AT, len(split)), config.seed, "fitted"))
    return share(clean_correct(model, some, config.batch_size, device))
