"""The evaluation recipe: how robust is a run's model, really?"""

import math
import time
from collections.abc import Callable

import torch
from torch import nn

from cartl_cli.core import recording, runs
from cartl_cli.core.attacks.pgd import Budget
from cartl_cli.core.checkpoints import Keeper, newest
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.data.registry import load_data_set
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.devices import resolve_device
from cartl_cli.core.errors import DataError, RunError, UsageError
from cartl_cli.core.evaluation import (
    Loss,
    Plan,
    Robustness,
    clean_correct,
    robustness,
    share,
    stratified,
    unattacked,
)
from cartl_cli.core.manifest import (
    AttackResults,
    Manifest,
    Position,
    Run,
    data_record,
    now,
    source_record,
    versions,
)
from cartl_cli.core.precision import autocast_for, resolve_precision
from cartl_cli.core.recording import Session
from cartl_cli.core.statistics import wilson_interval
from cartl_cli.core.stopping import stop_signals
from cartl_cli.core.tensors import from_bytes, to_bytes
from cartl_cli.core.values import shown_pixels

SMALL = 100  # images below which an interval is too wide to say much
LARGE_EPS = 16 / 255  # above it, a change of a colour image is plain to see


def attack(
    config: AttackConfig,
    attacked: Run,
    session: Session,
    report: Callable[[int, int], None],
    force: bool,
) -> Run:
    """Attack a finished run's model on the images that measure it, as a run of its own.

    ``report`` gets (images attacked, in all), an image counting once for each loss and restart.
    Raises UsageError, RunError or DataError before any work, StoppedError once a signal asked to
    stop and the verdicts so far are saved.
    """
    device = resolve_device(config.device)
    recording.check_place(session)
    model = runs.read_model(attacked).to(device)
    trained = attacked.manifest
    data = load_data_set(
        config.dataset or attacked.training.dataset,
        attacked.training.classes,
        trained.model.image_size,
        attacked.training.val_fraction,
        attacked.training.seed,
        session.cache_dir,
    )
    check_classes(attacked, data)
    indices = chosen_images(config, data.evaluation)
    split = data.evaluation.take(indices).to(device)
    losses: tuple[Loss, ...] = ("ce", "margin") if config.loss == "both" else (config.loss,)
    budget = Budget(config.eps, config.attack_step, config.pgd_steps)
    plan = Plan(budget, losses, config.restarts, config.seed, config.batch_size)
    precision = resolve_precision(config.precision, device)

    draft = Manifest(
        kind="attack",
        created=now(),
        config=config,
        k=trained.k,
        model=trained.model,
        data=data_record(data, ()).model_copy(update={"measured_images": len(split)}),
        source=source_record(attacked),
        versions=versions(device, precision),
    )
    if session.resume is None and not force:
        _refuse_repeat(session, draft)
    for note in data.notes:
        session.say(note)
    if config.eps > LARGE_EPS:
        session.say(f"note: eps {shown_pixels(config.eps)} is unusual for images of this kind")
    with recording.written(session, draft, 8 * len(split)) as run, stop_signals() as asked:
        session.say(f"run {run.name}: attacking {attacked.name}, {len(split):,} images")
        began = time.monotonic()
        position, verdicts = _begun(run, model, split, plan, session)
        check_clean(attacked, data, verdicts, session.say)
        keeper = Keeper(run, lambda: {VERDICTS: to_bytes(verdicts.tensors())}, position, asked)
        total = plan.batches(len(split))

        def seconds() -> float:
            return position.seconds + time.monotonic() - began

        def batch_done(number: int) -> None:
            report(*_images(plan, len(split), number))
            keeper.step_done(Position(step=number, seconds=seconds()), total)

        autocast = autocast_for(device, precision)
        robustness(model, split, plan, autocast, verdicts, batch_done, position.step)
        results = summary(verdicts, seconds())
        return recording.finish_attack(run, {**verdicts.tensors(), "indices": indices}, results)


VERDICTS = "verdicts.safetensors"


def chosen_images(config: AttackConfig, split: Split) -> torch.Tensor:
    """Indices of the images to attack: all, or a seeded stratified ``limit`` of them.

    Raises UsageError if there are not so many.
    """
    if config.limit is None:
        return torch.arange(len(split))
    if config.limit > len(split):
        raise UsageError(f"--limit: must be 1..{len(split)}, got {config.limit}")
    return stratified(split.labels, config.limit, config.seed, "limit")


def summary(verdicts: Robustness, seconds: float) -> AttackResults:
    """The numbers that the per-image verdicts give."""
    n = len(verdicts.clean)
    by_loss = {loss: share(standing) for loss, standing in verdicts.standing.items()}
    return AttackResults(
        n=n,
        clean_accuracy=share(verdicts.clean),
        robust_accuracy=share(verdicts.worst),
        robust_accuracy_ce=by_loss.get("ce"),
        robust_accuracy_margin=by_loss.get("margin"),
        final_iterate_accuracy=share(verdicts.standing_last),
        interval=wilson_interval(int(verdicts.worst.sum()), n),
        clean_interval=wilson_interval(int(verdicts.clean.sum()), n),
        seconds=seconds,
    )


def _begun(
    run: Run, model: nn.Module, split: Split, plan: Plan, session: Session
) -> tuple[Position, Robustness]:
    """Where to begin: at the newest checkpoint, else with every image that is right when clean."""
    verdicts = unattacked(clean_correct(model, split, plan.batch_size), plan.losses)
    found = newest(run, session.say)
    if found is None:
        return Position(), verdicts
    position, files = found
    where = run.folder / f"ckpt-{position.step:06d}"
    if files.keys() != {VERDICTS} or position.step > plan.batches(len(split)):
        raise RunError(f"checkpoint is not that of this attack: {where}")
    stored = from_bytes(files[VERDICTS], verdicts.tensors(), where)
    for name, tensor in verdicts.tensors().items():
        tensor.copy_(stored[name])
    session.say(f"going on after batch {position.step} of {plan.batches(len(split))}")
    return position, verdicts


def _images(plan: Plan, count: int, batches: int) -> tuple[int, int]:
    """Images attacked after so many batches, and in all."""
    rounds = len(plan.losses) * plan.restarts
    whole, rest = divmod(batches, math.ceil(count / plan.batch_size))
    return whole * count + rest * plan.batch_size, rounds * count


def _refuse_repeat(session: Session, draft: Manifest) -> None:
    for run in runs.same_runs(session.runs_dir, draft):
        if run.manifest.status == "completed":
            raise UsageError(
                f"the same attack is already there: {str(run.folder)!r}; --force to repeat it"
            )


def check_clean(
    attacked: Run, data: DataSet, verdicts: Robustness, say: Callable[[str], None]
) -> None:
    """Compare clean accuracy with chance and, on the same images, with what the run measured.

    Raises DataError where they differ by more than a point: then data, labels or normalization
    are not what they were, and no attack would mean anything.
    """
    n, clean = len(verdicts.clean), share(verdicts.clean)
    expected = attacked.results
    same = data.fingerprint() == attacked.manifest.data.fingerprint and n == expected.n
    if same and abs(clean - expected.clean_accuracy) > 0.01:
        raise DataError(
            f"clean accuracy: expected {100 * expected.clean_accuracy:.1f} %, got "
            f"{100 * clean:.1f} %: wrong data, normalization or labels"
        )
    if clean <= 1.5 / len(data.classes):
        say("warning: clean accuracy is at chance; robust accuracy means nothing here")
    if n < SMALL:
        low, high = wilson_interval(round(clean * n), n)
        say(f"warning: with {n} images the 95 % interval is {100 * (high - low):.0f} points wide")


def check_classes(run: Run, data: DataSet) -> None:
    """Refuse data whose classes are not the run's, in the run's order. Raises DataError."""
    expected, found = run.manifest.model.classes, data.classes
    if len(expected) != len(found):
        raise DataError(f"run {run.name!r} has {len(expected)} classes, data has {len(found)}")
    for place, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if ours != theirs and set(expected) == set(found):
            raise DataError(
                f"class order differs: {ours!r} is {found.index(ours)} in the data, {place} in "
                f"run {run.name!r}"
            )
        if ours != theirs:
            raise DataError(f"class names differ: {ours!r} in run {run.name!r}, {theirs!r} in data")
