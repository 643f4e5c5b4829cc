"""A finished attack beside the trainings behind it: what was trained, and how it was attacked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from cartl_cli.core.config import AttackConfig, PretrainConfig, TransferConfig
from cartl_cli.core.configure import HARMLESS
from cartl_cli.core.records.manifest import Run
from cartl_cli.core.records.results import AttackResults

MethodName = Literal["source", "vanilla", "LwF", "NEFT", "CARTL"]
SHOWN = {"k", "neft_beta", "lwf_lambda", "fdm_lambda", "fraction", "freeze_bn", "dataset", "arch"}
UNTOLD = HARMLESS | {"seed", "source"}
GONE = "?"  # the data of a source model whose run is not there


@dataclass(frozen=True)
class Setting:
    """What was trained, and how: runs that agree in it differ by their seeds alone.

    ``others`` has every setting of the training, and of its source's, that has no field here.
    """

    method: MethodName
    k: int
    neft_beta: float | None
    fdm_lambda: float | None
    lwf_lambda: float | None
    fraction: float
    freeze_bn: str | None
    source_data: str
    target_data: str | None
    arch: str
    others: tuple[tuple[str, str], ...]


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
    norm: str
    eps: tuple[float, ...]
    step_size: float | None
    pgd_steps: int
    restarts: int
    queries: int


@dataclass(frozen=True)
class Result:
    """A finished attack; ``trainings`` are the run it attacked and, before it, that one's source.

    ``seed`` is that of the training, as source/target where the two differ.
    """

    run: Run
    trainings: tuple[Run, ...]
    setting: Setting
    conditions: Conditions
    seed: str

    @property
    def numbers(self) -> AttackResults:
        """What the attack found."""
        return self.run.attack_results

    @property
    def order(self) -> tuple[int, ...]:
        """The seeds as numbers, to sort by."""
        return tuple(training.training.seed for training in self.trainings)

    @property
    def attacked(self) -> str:
        """The name of the attacked run."""
        return self.trainings[-1].name


def setting_of(trainings: Sequence[Run]) -> Setting:
    """What the trainings, in the order they were made, have in common with those of other seeds."""
    last = trainings[-1]
    config, before = last.training, trainings[0].training
    source = before if isinstance(before, PretrainConfig) else None
    if isinstance(config, PretrainConfig):
        return Setting(
            method="source",
            k=config.k,
            neft_beta=None,
            fdm_lambda=config.fdm_lambda,
            lwf_lambda=None,
            fraction=1.0,
            freeze_bn=None,
            source_data=config.dataset,
            target_data=None,
            arch=config.arch,
            others=_others(config),
        )
    record = last.manifest.source
    assert record is not None
    fdm_lambda = record.fdm_lambda
    gone = () if source else (("source model", record.sha256[:12]),)
    return Setting(
        method=method_of(config, fdm_lambda),
        k=last.manifest.k,
        neft_beta=config.neft_beta,
        fdm_lambda=fdm_lambda,
        lwf_lambda=config.lwf_lambda,
        fraction=config.fraction,
        freeze_bn=config.frozen_bn,
        source_data=source.dataset if source else GONE,
        target_data=config.dataset,
        arch=last.manifest.model.arch,
        others=(*_others(config), *gone, *(_of_source(source, last.manifest.k) if source else ())),
    )


def method_of(config: TransferConfig, fdm_lambda: float | None) -> MethodName:
    """The paper's name for a transfer: CARTL is NEFT from a source trained with FDM."""
    if config.method == "neft":
        return "CARTL" if fdm_lambda else "NEFT"
    return "vanilla" if config.method == "vanilla" else "LwF"


def _others(config: BaseModel) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value))
        for name, value in config
        if name not in SHOWN | UNTOLD
    )


def _of_source(config: PretrainConfig, k: int) -> tuple[tuple[str, str], ...]:
    """The source's settings; its k if FDM acted on it and the transfer took another."""
    moved = (("source k", str(config.k)),) if config.fdm_lambda and config.k != k else ()
    return (*moved, *((f"source {name}", value) for name, value in _others(config)))


def conditions_of(run: Run) -> Conditions:
    """The images and the attack of a finished attack."""
    manifest, config = run.manifest, run.manifest.config
    assert isinstance(config, AttackConfig)
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
