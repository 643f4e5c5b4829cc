"""A finished attack beside the trainings behind it: what was trained, and how it was attacked."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from cartl_cli.core.choices import Norm
from cartl_cli.core.config import ImportConfig, PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import HARMLESS
from cartl_cli.core.config.values import write_list
from cartl_cli.core.evaluation.confusion import Confusion
from cartl_cli.core.registry.transfer_methods import ADDITIONS, SOURCE, symbols
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.results import AttackResults

SHOWN = {"k", "fraction", "freeze_bn", "dataset", "arch"}
UNTOLD = HARMLESS | {"seed", "source"}
GONE = "?"  # the data of a source model whose run is not there


@dataclass(frozen=True)
class TrainingSetting:
    """What was trained, and how: runs that agree in it differ by their seeds alone.

    ``method`` is the label of a ``Look``. ``numbers``: the settings named in ``symbols()`` that
    have a value. ``others`` has every setting of the training, and of its source's, that has no
    field here.
    """

    method: str
    k: int
    numbers: tuple[tuple[str, float], ...]
    fraction: float
    freeze_bn: str | None
    source_data: str
    target_data: str | None
    arch: str
    others: tuple[tuple[str, str], ...]

    def number(self, name: str) -> float | None:
        """One of the numbers, None if it has no value."""
        return dict(self.numbers).get(name)

    @property
    def fdm_lambda(self) -> float | None:
        """λ of the source model's training."""
        return self.number("fdm_lambda")


@dataclass(frozen=True)
class Conditions:
    """What must agree before accuracies are averaged or compared: images and attack.

    ``subset`` is (--limit, the seed that drew it), None where all ``n`` images were attacked.
    """

    data: str
    fingerprint: str
    classes: tuple[str, ...]
    measured: str
    n: int
    subset: tuple[int, int] | None
    attacks: tuple[str, ...]
    norm: Norm
    eps: tuple[float, ...]
    step_size: float | None
    pgd_steps: int
    restarts: int
    queries: int


@dataclass(frozen=True)
class Result:
    """A finished attack; ``trainings`` are the run it attacked and, before it, that one's source.

    ``seed`` is that of the training, as source/target where the two differ. ``answered``: see
    ``confusions``.
    """

    run: Run
    trainings: tuple[Run, ...]
    setting: TrainingSetting
    conditions: Conditions
    seed: str
    answered: tuple[Confusion, ...] = ()

    @property
    def numbers(self) -> AttackResults:
        """What the attack found."""
        return self.run.attack_results

    @property
    def order(self) -> tuple[int, ...]:
        """The seeds as numbers, to sort by."""
        return tuple(training.making.seed for training in self.trainings)

    @property
    def attacked(self) -> str:
        """The name of the attacked run."""
        return self.trainings[-1].name


def setting_of(trainings: Sequence[Run]) -> TrainingSetting:
    """What the trainings, in the order they were made, have in common with those of other seeds."""
    last = trainings[-1]
    config, before = last.making, trainings[0].making
    source = before if isinstance(before, PretrainConfig) else None
    if isinstance(config, PretrainConfig):
        return TrainingSetting(
            method=SOURCE.label,
            k=config.k,
            numbers=(("fdm_lambda", config.fdm_lambda),),
            fraction=1.0,
            freeze_bn=None,
            source_data=config.dataset,
            target_data=None,
            arch=config.arch,
            others=_others(config),
        )
    if isinstance(config, ImportConfig):
        return TrainingSetting(
            method=SOURCE.label,
            k=last.manifest.k,
            numbers=(),
            fraction=1.0,
            freeze_bn=None,
            source_data=origin_of(last),
            target_data=None,
            arch=config.arch,
            others=(("model", last.manifest.weights.sha256[:12]),) if last.manifest.weights else (),
        )
    record, fdm_lambda = last.source, last.source.fdm_lambda
    values = {"fdm_lambda": fdm_lambda, **{name: getattr(config, name) for name in ADDITIONS}}
    origin = [("source model", record.sha256[:12])]
    if source is not None:  # its k, too, if FDM acted on it and the transfer took another
        moved = source.fdm_ks and source.fdm_ks != (last.manifest.k,)
        origin = [("source k", str(source.k))] if moved else []
        origin += [(f"source {name}", value) for name, value in _others(source)]
    return TrainingSetting(
        method=config.look(fdm_lambda).label,
        k=last.manifest.k,
        numbers=tuple((name, value) for name, value in values.items() if value is not None),
        fraction=config.fraction,
        freeze_bn=config.frozen_bn,
        source_data=origin_of(trainings[0]),
        target_data=config.dataset,
        arch=last.manifest.model.arch,
        others=(*_others(config), *origin),
    )


def origin_of(source: Run) -> str:
    """What a source model was trained on: a data set, or the name of an imported model."""
    making = source.making
    if isinstance(making, TransferConfig):
        return GONE
    return making.dataset if isinstance(making, PretrainConfig) else f"import {source.name}"


def _others(config: BaseModel) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, write_list(value) if isinstance(value, tuple) else str(value))
        for name, value in config
        if name not in SHOWN | UNTOLD | symbols().keys()
        and not (name == "method" and isinstance(config, TransferConfig))
    )


def conditions_of(run: Run) -> Conditions:
    """The images and the attack of a finished attack."""
    manifest, config = run.manifest, run.attack
    return Conditions(
        data=manifest.data.name,
        fingerprint=manifest.data.fingerprint,
        classes=manifest.model.classes,
        measured=manifest.data.measured,
        n=run.attack_results.n,
        subset=None if config.limit is None else (config.limit, config.seed),
        attacks=config.attacks,
        norm=config.norm,
        eps=config.eps,
        step_size=config.step_size,
        pgd_steps=config.pgd_steps,
        restarts=config.restarts,
        queries=config.queries,
    )
