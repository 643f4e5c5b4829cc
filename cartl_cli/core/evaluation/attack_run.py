"""An attack from start to end: how robust is the model of a run, really?"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

from cartl_cli.core.config import AttackConfig
from cartl_cli.core.errors import DataError, RunError, UsageError
from cartl_cli.core.evaluation.comparison import check_comparable
from cartl_cli.core.evaluation.diagnosis import diagnosed
from cartl_cli.core.evaluation.saved_images import saved_size, write_and_reread
from cartl_cli.core.evaluation.summary import summary
from cartl_cli.core.evaluation.targets import AttackSetup, changed, notes, set_up
from cartl_cli.core.evaluation.trust_checks import checked
from cartl_cli.core.evaluation.verdicts import Verdicts, all_waiting, robustness, share, unattacked
from cartl_cli.core.models.compiling import compiled_passes
from cartl_cli.core.runs import reader, writer
from cartl_cli.core.runs.checkpoints import Keeper, newest, shared, stop_if_asked
from cartl_cli.core.runs.manifest import Manifest, Position, Run, data_record, source_record
from cartl_cli.core.runs.weights import from_bytes
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.devices import versions
from cartl_cli.core.runtime.ranks import Ranks
from cartl_cli.core.runtime.stopping import Asked, stop_signals
from cartl_cli.core.statistics import chance, too_few
from cartl_cli.core.trust.invariants import CleanAccuracy, snapshot

VERDICTS = "verdicts.safetensors"  # of a checkpoint
CHECKING = "while checking the attack, after its last batch"


def attack_model(
    config: AttackConfig,
    attacked: Run,
    session: Session,
    report: Callable[[int, int], None],
    report_check: Callable[[int, int], None],
    force: bool,
    other: Run | None = None,
) -> Run | None:
    """Attack a finished run's model, on the images that measure it or others, as a run of its own.

    Of many processes the first alone gives the run. With ``other``, an attack that is to be
    compared with this one, both must be alike. ``report`` gets (images attacked, in all), an image
    counting once for each eps and attack, and ``report_check`` the same of the checks. Raises
    UsageError, RunError or DataError before any work, StoppedError once a signal asked to stop and
    the verdicts so far are saved.
    """
    setup, ranks, say = set_up(config, attacked, session), session.ranks, session.say
    split = setup.split
    data = data_record(setup.data, ())
    draft = Manifest(
        kind="attack",
        config=config,
        k=attacked.manifest.k,
        model=attacked.manifest.model,
        data=data.model_copy(update={"measured_images": len(split)}),
        source=source_record(attacked),
        versions=versions(setup.device, setup.precision, ranks.size, setup.compile),
    )
    if other is not None:
        check_comparable(draft, setup.indices, other)
    if session.resume is None and not force:
        for run in reader.same_runs(session.runs_dir, draft):
            if run.manifest.status == "completed":
                raise UsageError(
                    f"the same attack is already there: {str(run.folder)!r}; --force to repeat it"
                )
    for note in (
        *setup.data.notes,
        *changed(config, attacked, setup.data),
        *notes(config, setup.data),
    ):
        say(note)
    size = 8 * len(split) + (saved_size(split) if config.save_adversarial else 0)
    with writer.written(session, draft, size) as run, stop_signals(quiet=ranks.size > 1) as asked:
        say(f"run {run.name}: attacking {attacked.name}, {len(split):,} images")
        started, before = time.monotonic(), snapshot(setup.model)
        position, verdicts = _begun(run, setup, session)
        began = started - position.seconds
        clean = check_clean(setup, verdicts, say)
        search(run, setup, verdicts, position, began, asked, report, ranks)
        if ranks.rank > 0:
            return None

        def before_pass(done: int, total: int) -> None:
            report_check(done, total)
            stop_if_asked(run, asked.signal, CHECKING)

        checks = checked(run, setup, verdicts, before, clean, before_pass)
        diagnosis = diagnosed(config, setup, verdicts, say)
        file, saved = None, None
        if config.save_adversarial:
            file, saved = write_and_reread(run, setup, verdicts, say)
        results = summary(setup.plan, verdicts, checks, time.monotonic() - began)
        results = results.model_copy(update={"diagnosis": diagnosis, "saved": saved})
        labels = setup.split.labels.int()
        outcomes = {**verdicts.outcomes(), "labels": labels, "indices": setup.indices}
        return writer.finish_attack(run, outcomes, results, file)


def search(
    run: Run,
    setup: AttackSetup,
    verdicts: Verdicts,
    position: Position,
    began: float,
    asked: Asked,
    report: Callable[[int, int], None],
    ranks: Ranks,
) -> None:
    """Run what is left of the plan; ``verdicts`` are updated in place and saved on the way.

    ``began`` is when the attack did, on the monotonic clock, less the time it was interrupted. Of
    many processes each attacks images of its own. Raises StoppedError as ``attack_model`` does.
    """
    plan, size = setup.plan, setup.plan.batch_size
    own = ranks.own(len(verdicts.clean)).to(setup.device)
    ours = replace(verdicts, clean=verdicts.clean & own)
    keeper = Keeper(run, position, asked, ranks)
    total = all_waiting(plan, verdicts)
    left_of = ranks.gathered(all_waiting(plan, ours))

    def after_batches() -> Iterator[int]:
        """How many of our images wait after each batch, ours and then, as none, the others'."""
        yield from robustness(setup.model, setup.split, plan, setup.autocast, ours)
        while any(left_of):
            yield 0

    with compiled_passes(size) if setup.compile else nullcontext():
        for step, left in enumerate(after_batches(), start=position.step + 1):
            left_of = ranks.gathered(left)
            report(total - sum(left_of), total)
            reached = Position(step=step, seconds=time.monotonic() - began)
            last = step + math.ceil(max(left_of) / size)
            keeper.step_done(step)
            if keeper.is_due(reached, last):
                merge(verdicts, ranks)
                keeper.keep(reached, {VERDICTS: verdicts.tensors()})
            keeper.stop_if_asked(f"at step {step} of {last}")
    merge(verdicts, ranks)


def merge(verdicts: Verdicts, ranks: Ranks) -> None:
    """Bring together what each process has found of its own images."""
    ours = ranks.own(len(verdicts.clean)).to(verdicts.clean.device)
    ranks.merge(verdicts.fell_at, ours)
    ranks.merge(verdicts.last, ours)
    ranks.merge(verdicts.answers, ours)
    ranks.merge(verdicts.adversarial.movedim(0, -1), ours[verdicts.kept])


def _begun(run: Run, setup: AttackSetup, session: Session) -> tuple[Position, Verdicts]:
    """Where to begin: at the newest checkpoint, else with every image that is right when clean."""
    verdicts, position = unattacked(setup.model, setup.split, setup.plan), Position()
    if session.ranks.rank == 0 and (found := newest(run, session.say)):
        position, files = found
        where = run.folder / f"ckpt-{position.step:06d}"
        if files.keys() != {VERDICTS}:
            raise RunError(f"checkpoint is not that of this attack: {where}")
        stored = from_bytes(files[VERDICTS], verdicts.tensors(), where)
        for name, tensor in verdicts.tensors().items():
            tensor.copy_(stored[name])
        session.say(f"going on after batch {position.step}")
    session.ranks.share(verdicts.tensors().values())
    return shared(position, session.ranks), verdicts


def check_clean(
    setup: AttackSetup, verdicts: Verdicts, say: Callable[[str], None]
) -> CleanAccuracy | None:
    """Compare clean accuracy with chance and, on the same images, with what the run measured.

    Gives both, where they can be compared. Raises DataError where they differ by more than a point:
    then data, labels or normalization are not what they were, and no attack would mean anything.
    """
    data, attacked, n = setup.data, setup.attacked, len(verdicts.clean)
    clean, seen = share(verdicts.clean), attacked.seen
    whole = n == seen.n == len(data.evaluation)
    same = whole and data.fingerprint() == attacked.manifest.data.fingerprint
    expected = seen.clean_accuracy if same else None
    if expected is not None and abs(clean - expected) > 0.01:
        raise DataError(
            f"clean accuracy: expected {100 * expected:.1f} %, got {100 * clean:.1f} %: wrong "
            "data, normalization or labels"
        )
    if found := chance(int(verdicts.clean.sum()), n, int(setup.split.labels.bincount().max())):
        say(f"warning: clean accuracy {found}; robust accuracy means nothing here")
    if few := too_few(n):
        say(few)
    if expected is None:
        return None
    same_device = attacked.manifest.versions.get("device") == str(setup.device)
    return CleanAccuracy(clean, expected, same_device)
