"""The evaluation recipe: how robust is a run's model, really?"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from cartl_cli.core.allocation import keep_freed_memory
from cartl_cli.core.attacks.autoattack import require_autoattack
from cartl_cli.core.attacks.pgd import Budget
from cartl_cli.core.attacks.suite import INDEPENDENT, PAPERS
from cartl_cli.core.compiling import compiled_passes
from cartl_cli.core.config import AttackConfig, own_eps
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.devices import resolve_device
from cartl_cli.core.errors import DataError, RunError, UsageError
from cartl_cli.core.evaluating.diagnosing import diagnosed
from cartl_cli.core.evaluating.evaluation import (
    UNTRIED,
    Plan,
    Verdicts,
    all_waiting,
    robustness,
    share,
    unattacked,
)
from cartl_cli.core.evaluating.saving import saved_size, write_and_reread
from cartl_cli.core.evaluating.targets import chosen_images, load_targets
from cartl_cli.core.evaluating.trusting import IMAGES, checked
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.precision import autocast_for, resolve_precision
from cartl_cli.core.ranks import Ranks
from cartl_cli.core.records import recording, runs
from cartl_cli.core.records.checkpoints import Keeper, newest, shared
from cartl_cli.core.records.manifest import (
    Added,
    AttackResults,
    EpsResults,
    Manifest,
    Position,
    Run,
    data_record,
    now,
    source_record,
    versions,
)
from cartl_cli.core.records.recording import Session
from cartl_cli.core.records.tensors import from_bytes, to_bytes
from cartl_cli.core.statistics import accuracy_interval
from cartl_cli.core.stopping import stop_signals
from cartl_cli.core.trust.checks import Check
from cartl_cli.core.trust.invariants import CleanAccuracy, snapshot
from cartl_cli.core.values import shown_pixels

VERDICTS = "verdicts.safetensors"  # of a checkpoint
SMALL = 100  # images below which an interval is too wide to say much
LARGE_EPS = 16 / 255  # above it, a change of a colour image is plain to see


def attack(
    config: AttackConfig,
    attacked: Run,
    session: Session,
    report: Callable[[int, int], None],
    force: bool,
) -> Run:
    """Attack a finished run's model, on the images that measure it or others, as a run of its own.

    ``report`` gets (images attacked, in all), an image counting once for each eps and attack.
    Raises UsageError, RunError or DataError before any work, StoppedError once a signal asked to
    stop and the verdicts so far are saved.
    """
    if "autoattack" in config.attacks:
        require_autoattack()
    ranks = session.ranks
    device = resolve_device(config.device, ranks)
    keep_freed_memory()
    recording.check_place(session)
    model = runs.read_model(attacked).to(device)
    trained = attacked.manifest
    with ranks.in_turn():
        data = load_targets(config, attacked, session)
    indices = chosen_images(config, data.evaluation)
    split = data.evaluation.take(indices).to(device)
    plan = plan_of(config, trained.k)
    precision = resolve_precision(config.precision, device)

    draft = Manifest(
        kind="attack",
        created=now(),
        config=config,
        k=trained.k,
        model=trained.model,
        data=data_record(data, ()).model_copy(update={"measured_images": len(split)}),
        source=source_record(attacked),
        versions=versions(device, precision, ranks.size, bool(config.compile)),
    )
    if session.resume is None and not force:
        _refuse_repeat(session, draft)
    for note in (*data.notes, *notes(config, data)):
        session.say(note)
    size = 8 * len(split) + (saved_size(split) if config.save_adversarial else 0)
    with (
        recording.written(session, draft, size) as run,
        stop_signals(quiet=not ranks.alone) as asked,
    ):
        session.say(f"run {run.name}: attacking {attacked.name}, {len(split):,} images")
        began, before = time.monotonic(), snapshot(model)
        position, verdicts = _begun(run, model, split, plan, session)
        clean = check_clean(attacked, data, verdicts, device, session.say)
        ours = replace(verdicts, clean=verdicts.clean & ranks.own(len(split)).to(device))

        def contents() -> dict[str, bytes]:
            merge(verdicts, ranks)
            return {VERDICTS: to_bytes(verdicts.tensors())} if ranks.first else {}

        keeper = Keeper(run, contents, position, asked, ranks)
        step, total = position.step, all_waiting(plan, verdicts)
        left_of = ranks.gathered(all_waiting(plan, ours))

        def seconds() -> float:
            return position.seconds + time.monotonic() - began

        def batch_done(left: int) -> None:
            nonlocal step, left_of
            step += 1
            left_of = ranks.gathered(left)
            report(total - sum(left_of), total)
            batches = math.ceil(max(left_of) / plan.batch_size)
            reached = Position(step=step, seconds=seconds())
            keeper.step_done(step)
            keeper.look(reached, step + batches)

        autocast = autocast_for(device, precision)
        with compiled_passes(config.batch_size if config.compile else 0):
            robustness(model, split, plan, autocast, ours, batch_done)
        while any(left_of):
            batch_done(0)  # others are still at it
        merge(verdicts, ranks)
        if not ranks.first:
            return run
        checks = checked(run, attacked, plan, model, split, verdicts, before, clean, autocast)
        diagnosis = diagnosed(config, attacked, model, split, verdicts, session.say)
        file, saved = None, None
        if config.save_adversarial:
            file, saved = write_and_reread(run, attacked, split, indices, verdicts, session.say)
        results = summary(plan, verdicts, checks, seconds())
        results = results.model_copy(update={"diagnosis": diagnosis, "saved": saved})
        outcomes = {**verdicts.outcomes(), "indices": indices}
        return recording.finish_attack(run, outcomes, results, file)


def merge(verdicts: Verdicts, ranks: Ranks) -> None:
    """Bring together what each process has found of its own images."""
    ours = ranks.own(len(verdicts.clean)).to(verdicts.clean.device)
    ranks.merge(verdicts.fell_at, ours)
    ranks.merge(verdicts.last, ours)
    ranks.merge(verdicts.adversarial.movedim(0, -1), ours[verdicts.kept])


def plan_of(config: AttackConfig, k: int) -> Plan:
    """What the settings ask for, on a model with a sub-model of ``k`` blocks."""
    budgets = tuple(
        Budget(eps, config.step(eps), config.pgd_steps, config.norm) for eps in config.eps
    )
    return Plan(
        config.attacks,
        budgets,
        config.restarts,
        config.queries,
        k,
        config.seed,
        config.batch_size,
        IMAGES[config.checks],
        config.save_adversarial,
    )


def notes(config: AttackConfig, data: DataSet) -> list[str]:
    """What is unusual about an attack before it begins."""
    found, eps = [], config.eps[-1]
    if "apgd-t" in config.attacks and len(data.classes) < 4:
        found.append("with fewer than 4 classes apgd-t aims with the margin, not the DLR loss")
    if config.norm == "linf" and eps > max(LARGE_EPS, own_eps(data.name)):
        found.append(f"eps {shown_pixels(eps)} is unusual for images of this kind")
    return [f"note: {line}" for line in found]


def summary(plan: Plan, verdicts: Verdicts, checks: list[Check], seconds: float) -> AttackResults:
    """The numbers that the per-image verdicts give."""
    n, right = len(verdicts.clean), int(verdicts.clean.sum())
    by_eps = tuple(
        EpsResults(
            eps=budget.eps,
            step_size=budget.step_size,
            robust_accuracy=share(verdicts.worst(number)),
            interval=accuracy_interval(int(verdicts.worst(number).sum()), n),
            final_iterate_accuracy=(
                share(verdicts.last[number]) if plan.attacks[0] == PAPERS else None
            ),
            added=tuple(
                Added(
                    attack=name,
                    attacked=int((verdicts.fell_at[number, place] != UNTRIED).sum()),
                    fell=int((verdicts.fell_at[number, place] >= 0).sum()),
                    alone=(
                        share(verdicts.stands_alone(number, place)) if name in INDEPENDENT else None
                    ),
                    robust_accuracy=share(verdicts.stands(number, place)),
                )
                for place, name in enumerate(plan.attacks)
            ),
        )
        for number, budget in enumerate(plan.budgets)
    )
    curve = [(0.0, right / n), *((found.eps, found.robust_accuracy) for found in by_eps)]
    return AttackResults(
        n=n,
        clean_accuracy=share(verdicts.clean),
        clean_interval=accuracy_interval(right, n),
        by_eps=by_eps,
        half_eps=half_way(curve) if len(by_eps) > 1 else None,
        trust=tuple(checks),
        seconds=seconds,
    )


def half_way(curve: list[tuple[float, float]]) -> float | None:
    """The eps at which a falling curve of (eps, accuracy) is at half of its first value.

    Linear between the points; None if it never is, or if it begins at 0.
    """
    half = curve[0][1] / 2
    for (eps, accuracy), (next_eps, next_accuracy) in itertools.pairwise(curve):
        if accuracy > half >= next_accuracy:
            return eps + (next_eps - eps) * (accuracy - half) / (accuracy - next_accuracy)
    return None


def _begun(
    run: Run, model: BlockModel, split: Split, plan: Plan, session: Session
) -> tuple[Position, Verdicts]:
    """Where to begin: at the newest checkpoint, else with every image that is right when clean."""
    verdicts, position = unattacked(model, split, plan), Position()
    if session.ranks.first and (found := newest(run, session.say)):
        position = _restore(run, verdicts, *found)
        session.say(f"going on after batch {position.step}")
    session.ranks.share(verdicts.tensors().values())
    return shared(position, session.ranks), verdicts


def _restore(run: Run, verdicts: Verdicts, position: Position, files: dict[str, bytes]) -> Position:
    """Put a checkpoint into the verdicts; give back its position."""
    where = run.folder / f"ckpt-{position.step:06d}"
    if files.keys() != {VERDICTS}:
        raise RunError(f"checkpoint is not that of this attack: {where}")
    stored = from_bytes(files[VERDICTS], verdicts.tensors(), where)
    for name, tensor in verdicts.tensors().items():
        tensor.copy_(stored[name])
    return position


def _refuse_repeat(session: Session, draft: Manifest) -> None:
    for run in runs.same_runs(session.runs_dir, draft):
        if run.manifest.status == "completed":
            raise UsageError(
                f"the same attack is already there: {str(run.folder)!r}; --force to repeat it"
            )


def check_clean(
    attacked: Run,
    data: DataSet,
    verdicts: Verdicts,
    device: torch.device,
    say: Callable[[str], None],
) -> CleanAccuracy | None:
    """Compare clean accuracy with chance and, on the same images, with what the run measured.

    Gives both, where they can be compared. Raises DataError where they differ by more than a point:
    then data, labels or normalization are not what they were, and no attack would mean anything.
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
        low, high = accuracy_interval(round(clean * n), n)
        say(f"warning: with {n} images the 95 % interval is {100 * (high - low):.0f} points wide")
    if not same:
        return None
    same_device = attacked.manifest.versions.get("device") == str(device)
    return CleanAccuracy(clean, expected.clean_accuracy, same_device)
