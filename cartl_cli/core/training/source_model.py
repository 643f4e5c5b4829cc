"""The source model: adversarial training (Eq. 4) plus feature distance minimization (Eq. 10)."""

import time
from collections.abc import Callable
from dataclasses import replace
from pkgutil import resolve_name

import torch

from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.config.configure import fitting, flag
from cartl_cli.core.data.split import Split, channel_statistics
from cartl_cli.core.errors import UsageError
from cartl_cli.core.evaluation.diagnosis import moved_by_pgd
from cartl_cli.core.evaluation.verdicts import Plan, robustness, share, unattacked
from cartl_cli.core.method.adversarial_training import (
    AdversarialTraining,
    FreeTraining,
    NaturalTraining,
    OuterLoss,
)
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.method.training_attacks import Growing, pgd_attack
from cartl_cli.core.models.block_table import block_table
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import build_model, parse_architecture
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS
from cartl_cli.core.runs.manifest import ModelSpec, Run
from cartl_cli.core.runs.results import Accuracies, TrainingResults
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.randomness import seeded
from cartl_cli.core.training import weight_average
from cartl_cli.core.training.catastrophic_overfitting import COLLAPSED, guard
from cartl_cli.core.training.loop import Progress
from cartl_cli.core.training.remarks import against_chance, class_by_class
from cartl_cli.core.training.training_plan import TrainingPlan, TrainingSetup
from cartl_cli.core.training.training_run import TrainingRun, begun, set_up, weights_of_classes

FINAL_PGD_STEPS = 20
DELTA = "delta"  # of the plan's state


def pretrain(
    config: PretrainConfig, session: Session, report: Callable[[Progress], None]
) -> Run | None:
    """Train a source model into a run folder, new or to go on with, and measure it.

    ``report`` gets the progress of each step. Of many processes the first alone gives the run.
    Raises UsageError before any work, DataError for bad images, DivergedError if the loss is not
    finite, StoppedError once a signal asked to stop and the state is saved.
    """
    check_fits(config)
    setup = set_up(config, config.preprocessing, session, replays=config.steps_per_batch)
    config = fitting(config, len(setup.split))
    data, device = setup.data, setup.device
    with seeded(config.seed, "source weights"):
        model = build_model(config.arch, len(data.classes))
    model.normalize.fix(*channel_statistics(data.train))
    model = model.to(device).to(memory_format=torch.channels_last).train()
    plan = plan_of(model, config, setup, session.say)

    spec = ModelSpec(arch=config.arch, classes=data.classes, preprocessing=config.preprocessing)
    with begun(session, setup, model, plan, spec, config.k) as training:
        done = training.train(model, plan, setup, report)
        if done is None:
            return None
        began = time.monotonic()
        evaluation = data.evaluation.to(device)
        found, right = measure(model, evaluation, config, setup.autocast, training)
        last = found
        if config.ema > 0:  # the average is the run's model; the last weights stay in a checkpoint
            weight_average.take(plan.state, model)
            found, right = measure(model, evaluation, config, setup.autocast, training)
        results = TrainingResults(
            clean_accuracy=found.clean_accuracy,
            robust_accuracy=found.robust_accuracy,
            pgd_steps=FINAL_PGD_STEPS,
            n=len(data.evaluation),
            seconds=done.seconds + time.monotonic() - began,
            last_weights=last if config.ema > 0 else None,
            moved=moved_by_pgd(
                model, data.evaluation, first_look(config), config.seed, config.batch_size
            ),
            collapsed_after=int(plan.state.get(COLLAPSED, 0)) or None,
        )
        run = training.finish(model, results, done)
    session.say(class_by_class(right, data.evaluation, data.classes))
    if guessed := against_chance(results, data.evaluation):
        less = " or with a smaller --fdm-lambda" if config.fdm_lambda > 0 else ""
        session.say(f"warning: clean accuracy {guessed}; train longer{less}")
    return run


def check_fits(config: PretrainConfig) -> None:
    """Refuse what only the network itself can tell, where its name does not. Raises UsageError."""
    if parse_architecture(config.arch).block_count is None:
        blocks = block_table(config.arch, config.image_size)[-1].number
        try:
            config.check_blocks(blocks)
        except ValueError as error:
            field, _, reason = str(error).partition(": ")
            raise UsageError(f"{flag(field)}: {reason}") from None


def first_look(config: PretrainConfig) -> Budget:
    """PGD-20 at the training eps."""
    return Budget(config.eps, config.attack_step, FINAL_PGD_STEPS)


def measure(
    model: BlockModel,
    split: Split,
    config: PretrainConfig,
    autocast: torch.autocast,
    training: TrainingRun,
) -> tuple[Accuracies, torch.Tensor]:
    """A first look at a finished model: PGD-20 under cross-entropy at the training eps.

    Also which images (N,) are right when clean.
    """
    plan = Plan(
        ("pgd",), (first_look(config),), 1, 0, config.k, config.seed, config.batch_size, probe=0
    )
    found = unattacked(model, split, plan)
    for _ in robustness(model, split, plan, autocast, found):
        training.stop_if_asked("while measuring, after the last step")
    accuracies = Accuracies(
        clean_accuracy=share(found.clean), robust_accuracy=share(found.worst(0))
    )
    return accuracies, found.clean


def plan_of(
    model: BlockModel, config: PretrainConfig, setup: TrainingSetup, say: Callable[[str], None]
) -> TrainingPlan:
    """The objective of the configured method, with what it carries from step to step.

    ``delta`` (batch, 3, H, W): the perturbation of free training. ``collapsed``: the epoch after
    which N-FGSM was found to overfit catastrophically, 0 if it was not. The average of the weights.
    """
    weights, attack = weights_of_classes(setup), TRAINING_ATTACKS[config.method]
    plan = TrainingPlan(NaturalTraining(model, weights))
    budget = growing(config, setup.total_steps)
    if config.method == "free":
        shape = (config.batch_size, 3, config.image_size, config.image_size)
        delta = torch.zeros(shape, device=setup.device)
        objective = FreeTraining(outer_loss(model, config, weights), budget, delta)
        plan = TrainingPlan(objective, {DELTA: delta}, phase=budget.steps)
    elif attack.code is not None:
        collapsed = torch.tensor(0)
        looked_at = collapsed if attack.single_step else None
        plan = TrainingPlan(
            adversarial_training(model, config, budget, looked_at, weights),
            phase=lambda step: (budget.steps(step), int(collapsed)),
        )
        if attack.single_step:
            epoch_done = guard(model, setup, budget, collapsed, say)
            plan = replace(plan, state={COLLAPSED: collapsed}, epoch_done=epoch_done)
    return weight_average.averaged(plan, model, config.ema)


def growing(config: PretrainConfig, total_steps: int) -> Growing:
    """What the training attack may do, step by step."""
    full = Budget(config.eps, config.attack_step, config.pgd_steps)
    return Growing(full, total_steps, config.eps_warmup)


def outer_loss(
    model: BlockModel, config: PretrainConfig, weights: torch.Tensor | None = None
) -> OuterLoss:
    """What the weights minimise, given adversarial images; ``weights`` of each class, if any."""
    ks = config.fdm_ks or (config.k,)
    return OuterLoss(model, ks, config.fdm_lambda, config.divergence_weight, weights)


def adversarial_training(
    model: BlockModel,
    config: PretrainConfig,
    budget: Growing,
    collapsed: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> AdversarialTraining:
    """Adversarial training by the configured attack; by PGD once ``collapsed`` is not 0."""
    code = TRAINING_ATTACKS[config.method].code
    assert code is not None
    return AdversarialTraining(
        model=model,
        outer=outer_loss(model, config, weights),
        attack=resolve_name(code)(model),
        budget=budget,
        seed=config.seed,
        awp_gamma=config.awp_gamma,
        show_clean=config.method == "at" and config.fdm_lambda == 0,
        fallback=pgd_attack(model) if collapsed is not None else None,
        collapsed=collapsed,
    )
