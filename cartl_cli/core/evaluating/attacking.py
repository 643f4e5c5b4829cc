"""The evaluation recipe: how robust is a run's model, really?"""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from cartl_cli.core.compiling import compiled_passes
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.data.split import DataSet
from cartl_cli.core.errors import DataError, RunError, UsageError
from cartl_cli.core.evaluating.comparing import check_comparable
from cartl_cli.core.evaluating.diagnosing import diagnosed
from cartl_cli.core.evaluating.evaluation import (
    Verdicts,
    all_waiting,
    robustness,
    share,
    unattacked,
)
from cartl_cli.core.evaluating.saving import saved_size, write_and_reread
from cartl_cli.core.evaluating.setup import Setup, notes, set_up
from cartl_cli.core.evaluating.summary import summary
from cartl_cli.core.evaluating.trusting import checked
from cartl_cli.core.ranks import Ranks
from cartl_cli.core.records import recording, runs
from cartl_cli.core.records.checkpoints import Keeper, newest, shared, stop_if_asked
from cartl_cli.core.records.manifest import (
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
from cartl_cli.core.trust.invariants import CleanAccuracy, snapshot

VERDICTS = "verdicts.safetensors"  # of a checkpoint
SMALL = 100  # images below which an interval is too wide to say much


def attack(
    config: AttackConfig,
    attacked: Run,
    session: Session,
    report: Callable[[int, int], None],
    force: bool,
    other: Run | None = None,
) -> Run:
    """Attack a finished run's model, on the images that measure it or others, as a run of its own.

    With ``other``, an attack that is to be compared with this one, both must be alike.
    ``report`` gets (images attacked, in all), an image counting once for each eps and attack.
    Raises UsageError, RunError or DataError before any work, StoppedError once a signal asked to
    stop and the verdicts so far are saved.
    """
    setup, ranks, say = set_up(config, attacked, session), session.ranks, session.say
    model, split, plan = setup.model, setup.split, setup.plan
    draft = drafted(config, attacked, setup, ranks)
    if other is not None:
        check_comparable(draft, setup.indices, other)
    if session.resume is None and not force:
        _refuse_repeat(session, draft)
    for note in (*setup.data.notes, *notes(config, setup.data)):
        say(note)
    size = 8 * len(split) + (saved_size(split) if config.save_adversarial else 0)
    with (
        recording.written(session, draft, size) as run,
        stop_signals(quiet=not ranks.alone) as asked,
    ):
        say(f"run {run.name}: attacking {attacked.name}, {len(split):,} images")
        started, before = time.monotonic(), snapshot(model)
        position, verdicts = _begun(run, setup, session)
        began = started - position.seconds
        clean = check_clean(attacked, setup.data, verdicts, setup.device, say)
        search(run, setup, verdicts, position, began, asked, report, ranks)
        if not ranks.first:
            return run
        checks = checked(
            run,
            attacked,
            plan,
            model,
            split,
            verdicts,
            before,
            clean,
            setup.autocast,
            lambda: stop_if_asked(run, asked, "while checking the attack, after its last batch"),
        )
        diagnosis = diagnosed(config, attacked, model, split, verdicts, say)
        file, saved = None, None
        if config.save_adversarial:
            file, saved = write_and_reread(run, attacked, split, setup.indices, verdicts, say)
        results = summary(plan, verdicts, checks, time.monotonic() - began)
        results = results.model_copy(update={"diagnosis": diagnosis, "saved": saved})
        outcomes = {**verdicts.outcomes(), "indices": setup.indices}
        return recording.finish_attack(run, outcomes, results, file)


def drafted(config: AttackConfig, attacked: Run, setup: Setup, ranks: Ranks) -> Manifest:
    """The manifest that the attack begins with."""
    trained, measured = attacked.manifest, {"measured_images": len(setup.split)}
    return Manifest(
        kind="attack",
        created=now(),
        config=config,
        k=trained.k,
        model=trained.model,
        data=data_record(setup.data, ()).model_copy(update=measured),
        source=source_record(attacked),
        versions=versions(setup.device, setup.precision, ranks.size, setup.compile),
    )


def search(
    run: Run,
    setup: Setup,
    verdicts: Verdicts,
    position: Position,
    began: float,
    asked: Callable[[], int | None],
    report: Callable[[int, int], None],
    ranks: Ranks,
) -> None:
    """Run what is left of the plan; ``verdicts`` are updated in place and saved on the way.

    ``began`` is when the attack did, on the monotonic clock, less the time it was interrupted. Of
    many processes each attacks images of its own. Raises StoppedError as ``attack`` does.
    """
    plan, size = setup.plan, setup.plan.batch_size
    own = ranks.own(len(verdicts.clean)).to(setup.device)
    ours = replace(verdicts, clean=verdicts.clean & own)

    def contents() -> dict[str, bytes]:
        merge(verdicts, ranks)
        return {VERDICTS: to_bytes(verdicts.tensors())} if ranks.first else {}

    keeper = Keeper(run, contents, position, asked, ranks)
    step, total = position.step, all_waiting(plan, verdicts)
    left_of = ranks.gathered(all_waiting(plan, ours))

    def batch_done(left: int) -> None:
        nonlocal step, left_of
        step += 1
        left_of = ranks.gathered(left)
        report(total - sum(left_of), total)
        reached = Position(step=step, seconds=time.monotonic() - began)
        keeper.step_done(step)
        keeper.look(reached, step + math.ceil(max(left_of) / size))

    with compiled_passes(size if setup.compile else 0):
        robustness(setup.model, setup.split, plan, setup.autocast, ours, batch_done)
    while any(left_of):
        batch_done(0)  # others are still at it
    merge(verdicts, ranks)


def merge(verdicts: Verdicts, ranks: Ranks) -> None:
    """Bring together what each process has found of its own images."""
    ours = ranks.own(len(verdicts.clean)).to(verdicts.clean.device)
    ranks.merge(verdicts.fell_at, ours)
    ranks.merge(verdicts.last, ours)
    ranks.merge(verdicts.adversarial.movedim(0, -1), ours[verdicts.kept])


def _begun(run: Run, setup: Setup, session: Session) -> tuple[Position, Verdicts]:
    """Where to begin: at the newest checkpoint, else with every image that is right when clean."""
    verdicts, position = unattacked(setup.model, setup.split, setup.plan), Position()
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
