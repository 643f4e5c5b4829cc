"""The evaluation recipe: how robust is a run's model, really?"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from cartl_cli.core import runs
from cartl_cli.core.attacks.pgd import Budget
from cartl_cli.core.config import SETTINGS, AttackConfig
from cartl_cli.core.data.registry import load_data_set
from cartl_cli.core.data.split import DataSet
from cartl_cli.core.devices import resolve_device
from cartl_cli.core.errors import DataError, UsageError
from cartl_cli.core.evaluation import Loss, robustness, share, stratified
from cartl_cli.core.manifest import Fraction, Run, now, versions
from cartl_cli.core.precision import autocast_for, resolve_precision
from cartl_cli.core.statistics import wilson_interval

Interval = tuple[Fraction, Fraction]


class AttackResult(BaseModel):
    """An attack on a run, as stored in ``attack-NNN.json``. Accuracies are fractions of ``n``.

    ``robust_accuracy`` is the per-image worst over losses, restarts and iterates: an upper bound
    under this attack. ``final_iterate_accuracy`` counts only the last iterate of the first restart
    under the first loss, as the paper does. Intervals are 95 % Wilson.
    """

    model_config = SETTINGS

    schema_version: Literal[1] = 1
    run: str
    created: str
    model_sha256: str
    config: AttackConfig
    data: str
    data_fingerprint: str
    measured: str
    n: Annotated[int, Field(ge=1)]
    eps: float
    step_size: float
    steps: int
    restarts: int
    clean_accuracy: Fraction
    robust_accuracy: Fraction
    robust_accuracy_ce: Fraction | None
    robust_accuracy_margin: Fraction | None
    final_iterate_accuracy: Fraction
    interval: Interval
    clean_interval: Interval
    seconds: float
    versions: dict[str, str]


def attack(
    config: AttackConfig,
    run: Run,
    cache_dir: Path | None,
    say: Callable[[str], None],
    report: Callable[[int, int], None],
) -> tuple[AttackResult, Path]:
    """Attack a finished run's model on the images that measure it; store the result beside it.

    ``report`` gets (attacks done, attacks in all). Raises UsageError, RunError or DataError.
    """
    device = resolve_device(config.device)
    model = runs.read_model(run).to(device)
    manifest = run.manifest
    data = load_data_set(
        config.dataset or manifest.config.dataset,
        manifest.config.classes,
        manifest.model.image_size,
        manifest.config.val_fraction,
        manifest.config.seed,
        cache_dir,
    )
    check_classes(run, data)
    for note in data.notes:
        say(note)
    split = data.evaluation
    if config.limit is not None:
        if config.limit > len(split):
            raise UsageError(f"--limit: must be 1..{len(split)}, got {config.limit}")
        split = split.take(stratified(split.labels, config.limit, config.seed, "limit"))
    n = len(split)
    losses: tuple[Loss, ...] = ("ce", "margin") if config.loss == "both" else (config.loss,)
    precision = resolve_precision(config.precision, device)
    total = n * len(losses) * config.restarts
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    began = time.monotonic()
    measured = robustness(
        model,
        split.to(device),
        Budget(config.eps, config.attack_step, config.pgd_steps),
        losses,
        config.restarts,
        config.seed,
        config.batch_size,
        autocast_for(device, precision),
        advance,
    )

    result = AttackResult(
        run=run.name,
        created=now(),
        model_sha256=manifest.weights.sha256 if manifest.weights else "",
        config=config,
        data=data.name,
        data_fingerprint=data.fingerprint(),
        measured=data.measured,
        n=n,
        eps=config.eps,
        step_size=config.attack_step,
        steps=config.pgd_steps,
        restarts=config.restarts,
        clean_accuracy=share(measured.clean),
        robust_accuracy=share(measured.worst),
        robust_accuracy_ce=share(measured.standing["ce"]) if "ce" in losses else None,
        robust_accuracy_margin=share(measured.standing["margin"]) if "margin" in losses else None,
        final_iterate_accuracy=share(measured.standing_last),
        interval=wilson_interval(int(measured.worst.sum()), n),
        clean_interval=wilson_interval(int(measured.clean.sum()), n),
        seconds=time.monotonic() - began,
        versions=versions(device, precision),
    )
    return result, runs.write_attack(run, result)


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
