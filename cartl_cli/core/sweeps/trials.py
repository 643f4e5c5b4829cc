"""A trial: a target model trained in memory without a fold of the training images, judged on it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cartl_cli.core.config import TransferConfig, own_eps
from cartl_cli.core.config.configure import configure, fitting
from cartl_cli.core.data.split import DataSet, Split, folds, stratified
from cartl_cli.core.errors import CartlError, DivergedError, UsageError
from cartl_cli.core.evaluation.verdicts import Plan, robustness, unattacked
from cartl_cli.core.method.keeping import kept_blocks
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.evaluation_attacks import STRONG
from cartl_cli.core.registry.transfer_methods import check_network
from cartl_cli.core.runs.manifest import Run, source_record
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.devices import resolve_compile
from cartl_cli.core.sweeps.candidates import Candidate, blocks_grid
from cartl_cli.core.sweeps.halving import FOLDS, K_RUNGS, Outcome, Search, Task
from cartl_cli.core.sweeps.points import identity_of
from cartl_cli.core.sweeps.search_file import Strength, Trial
from cartl_cli.core.training import radius
from cartl_cli.core.training.loop import count_steps
from cartl_cli.core.training.target_model import begin, source_model, tune
from cartl_cli.core.training.training_plan import TrainingSetup
from cartl_cli.core.training.training_run import set_up

JUDGED = 250  # images of a fold at most
ATTACKS: dict[Strength, tuple[tuple[str, ...], int]] = {
    "quick": (("pgd-margin",), 10),
    "strong": (STRONG, 50),
}
"""The attacks of a trial, and their steps."""


@dataclass(frozen=True)
class Bench:
    """What every trial begins with: shared settings, the source model, all training images.

    ``folds``: the images of each part, by number. ``radii``: of ``--method latent``, by k.
    ``between`` is told the trial under way between two of its steps, and may raise to stop.
    """

    config: TransferConfig
    original: BlockModel
    setup: TrainingSetup
    folds: Sequence[Tensor]
    radii: Mapping[int, float]
    between: Callable[[Task], None] = lambda task: None

    def identity(self, source: Run) -> str:
        """12 hex digits that are the same wherever these trials would give the same."""
        config, setup = self.config, self.setup
        return identity_of(
            source_record(source).sha256,
            setup.data.fingerprint(),
            setup.augment,
            config.batch_size,
            config.seed,
            own_eps(config.dataset),
            *(("balance",) if config.balance else ()),
        )


def prepared(config: TransferConfig, source: Run, session: Session) -> Bench:
    """Everything that trials begin with, but the radii. Raises UsageError, RunError or DataError.

    The images that measure a run are dropped: nothing that is chosen can depend on them.
    """
    original = source_model(source)
    setup = set_up(config, source.manifest.model.preprocessing, session, config.fraction)
    data = replace(setup.data, evaluation=setup.data.evaluation.take(torch.arange(0)))
    check_counts(data, setup.split)
    setup = replace(setup, data=data)
    parts = folds(setup.split.labels, FOLDS, config.seed)
    return Bench(fitting(config, len(setup.split)), original.to(setup.device), setup, parts, {})


def check_counts(data: DataSet, split: Split) -> None:
    """Refuse what cannot be cut into folds that each have every class. Raises UsageError."""
    counts = split.labels.bincount(minlength=len(data.classes)).tolist()
    if min(counts) < FOLDS:
        raise UsageError(
            f"--dataset: class {data.classes[counts.index(min(counts))]!r} has {min(counts)} "
            f"training images; to choose on them takes {FOLDS} of each class"
        )


def with_radii(bench: Bench, source: Run, ks: Sequence[int], session: Session) -> Bench:
    """The same, with the radius of ``--method latent`` at each k: measured once.

    Raises UsageError where the source's images are not there.
    """
    moved = radius.distances(bench.config, source, bench.original, session)
    blocks = len(bench.original.blocks)
    radii = {k: radius.radius_from(moved[blocks - k], source) for k in ks}
    return replace(bench, radii=radii)


def refused(bench: Bench, candidate: Candidate) -> str | None:
    """Why the network does not allow what a candidate asks for, None if it does."""
    config = configure(TransferConfig, bench.config.model_dump(), candidate.settings)
    try:
        check_network(bench.original, candidate.k, config.model_dump())
        if config.keep_lambda is not None:
            kept_blocks(bench.original, candidate.k, config.keep_at or "last")
    except UsageError as error:
        return str(error)
    except ValueError as error:
        return f"--keep-at: {error}"
    return None


def allowed(
    bench: Bench, candidates: Sequence[Candidate], say: Callable[[str], None]
) -> list[Candidate]:
    """Those that the network allows; says how many are left out. Raises UsageError if all are."""
    reasons = {number: refused(bench, one) for number, one in enumerate(candidates)}
    out = [reason for reason in reasons.values() if reason is not None]
    if len(out) == len(candidates):
        raise UsageError(out[0])
    if out:
        say(f"note: {len(out)} of {len(candidates)} candidates are left out: {out[0]}")
    return [candidates[number] for number, reason in reasons.items() if reason is None]


def config_of(bench: Bench, task: Task) -> TransferConfig:
    """The settings of a trial's transfer, with all that is counted in epochs scaled to its own."""
    whole = configure(TransferConfig, bench.config.model_dump(), task.candidate.settings)
    part = task.epochs / whole.epochs
    head = whole.head_first and min(math.ceil(part * whole.head_first), task.epochs - 1)
    return whole.model_copy(
        update={
            "epochs": task.epochs,
            "head_first": head,
            "milestones": tuple(round(part * milestone) for milestone in whole.milestones),
            "warmup_epochs": part * whole.warmup_epochs,
        }
    )


def carried_out(bench: Bench, task: Task) -> Trial:
    """Train a model on all folds but one, and attack it on that one.

    A training that diverges gets nothing right. Raises CartlError where memory is too small.
    """
    config, held = config_of(bench, task), bench.folds[task.fold]
    others = torch.cat([part for fold, part in enumerate(bench.folds) if fold != task.fold])
    everything, judged = bench.setup.split, judged_of(bench, held, config.seed)
    began = time.monotonic()
    trained, clean, robust = began, 0, 0
    try:
        split = everything.take(others.sort().values)
        model = trained_on(bench, config, split, partial(bench.between, task))
        trained = time.monotonic()
        clean, robust = right(bench, model, config, judged, task)
    except DivergedError:
        trained = time.monotonic()
    except torch.OutOfMemoryError:
        raise CartlError(
            f"out of memory at batch size {config.batch_size}; give a smaller --batch-size, or "
            "another --device"
        ) from None
    return Trial(
        settings=dict(task.settings),
        fold=task.fold,
        attack=task.attack,
        n=len(judged),
        clean=clean,
        robust=robust,
        training_seconds=trained - began,
        attack_seconds=time.monotonic() - trained,
    )


def judged_of(bench: Bench, fold: Tensor, seed: int) -> Split:
    """The images of a fold that models are judged on; of a large one each class has as many."""
    held = bench.setup.split.take(fold)
    return held.take(stratified(held.labels, min(JUDGED, len(held)), seed, "judged"))


def trained_on(
    bench: Bench, config: TransferConfig, split: Split, between: Callable[[], None]
) -> BlockModel:
    """The target model of some images, in evaluation mode. ``between`` is called as in ``tune``."""
    config = fitting(config, len(split))
    k, steps = config.k, count_steps(config, len(split))
    assert isinstance(k, int)
    setup = replace(
        bench.setup,
        config=config,
        split=split,
        total_steps=steps,
        compile=resolve_compile(config.compile, bench.setup.device, steps, 1),
    )
    size = config.radius if isinstance(config.radius, float) else bench.radii.get(k)
    target = begin(config, bench.original, k, setup, size, lambda line: None)
    return tune(target, setup, between)


def right(
    bench: Bench, model: BlockModel, config: TransferConfig, judged: Split, task: Task
) -> tuple[int, int]:
    """How many images the model gets right: clean, and under the attacks of the task."""
    attacks, steps = ATTACKS[task.attack]
    eps, split = own_eps(config.dataset), judged.to(bench.setup.device)
    budget = Budget(eps, eps / 4, steps)
    plan = Plan(attacks, (budget,), 1, 1, task.candidate.k, config.seed, config.batch_size, probe=0)
    verdicts = unattacked(model, split, plan)
    for _ in robustness(model, split, plan, bench.setup.autocast, verdicts):
        bench.between(task)
    return int(verdicts.clean.sum()), int(verdicts.worst(0).sum())


def largest_class(bench: Bench, n: int) -> int:
    """Images of the largest class among ``n`` that are judged, by its share of all folds."""
    judged = [judged_of(bench, fold, bench.config.seed).labels for fold in bench.folds]
    counts = torch.cat(judged).bincount()
    return round(n * float(counts.max() / counts.sum()))


def k_search(
    config: TransferConfig,
    source: Run,
    session: Session,
    between: Callable[[Task], None],
    tell: Callable[[Task, Trial], None],
) -> Outcome:
    """A search for k alone: the transfer as it is to be, at a few values of k.

    It is the same on every machine but for rounding: no time decides. ``between`` is that of the
    ``Bench``; ``tell`` is called after each trial. Raises UsageError, RunError or DataError.
    """
    quiet = replace(session, say=lambda line: None)
    bench = replace(prepared(config, source, quiet), between=between)
    ks = blocks_grid(len(bench.original.blocks))
    if config.method == "latent" and not isinstance(config.radius, float):
        bench = with_radii(bench, source, ks, session)
    added = {one.setting: getattr(config, one.setting) for one in config.additions}
    own = {"method": config.method, **added, "lr": config.lr, "epochs": config.epochs}

    def carry_out(task: Task) -> Trial:
        tell(task, trial := carried_out(bench, task))
        return trial

    search = Search(math.inf, carry_out)
    everything = allowed(bench, [Candidate({**own, "k": k}) for k in ks], session.say)
    return search.run(everything, K_RUNGS, "balanced")
