"""The settings of ``cartl transfer``."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, model_validator

from cartl_cli.core.choices import FreezeBatchNorm, HeadInit
from cartl_cli.core.config import fields, values
from cartl_cli.core.config.fields import Number, Whole
from cartl_cli.core.config.values import SETTINGS
from cartl_cli.core.registry.transfer_methods import (
    ADDITIONS,
    TRANSFER_METHODS,
    Addition,
    Look,
    TransferMethod,
    additions_of,
    look_of,
)

_METHODS = "; ".join(f"{m.name}: {m.about}" for m in TRANSFER_METHODS.values())
_CASES = {m.look.label: m.freeze_bn for m in TRANSFER_METHODS.values()}
_CASES |= {one.look.label: one.freeze_bn for one in ADDITIONS.values()}
_DEFAULT_CASES = ", ".join(f"{label} {case}" for label, case in _CASES.items() if case != "all")


def _default(setting: Literal["epochs", "lr"], about: str) -> Any:
    """The value of a setting that belongs to the method, once that is known."""
    usual = getattr(TRANSFER_METHODS["natural"], setting)
    others: dict[object, list[str]] = {}
    for method in TRANSFER_METHODS.values():
        others.setdefault(getattr(method, setting), []).append(method.name)
    del others[usual]
    cases = [f"{', '.join(names)} {value}" for value, names in others.items()]

    def value(given: Mapping[str, Any]) -> Any:
        method = TRANSFER_METHODS.get(given.get("method", "natural"))
        return getattr(method, setting) if method else usual

    description = f"{about} (default: {'; '.join([str(usual), *cases])})."
    return Field(default_factory=value, description=description)


class TransferConfig(BaseModel):
    """Fine-tuning of the last k blocks: a method, and what is added to it."""

    model_config = SETTINGS

    source: fields.Source = ""
    dataset: fields.Dataset = "shapes-target"
    classes: fields.Classes = ()
    val_fraction: fields.ValFraction = 0.0
    split_seed: fields.SplitSeed = 0
    skip_bad: fields.SkipBad = False
    fraction: Annotated[
        Number,
        Field(gt=0, le=1, description="Part of the training images to use, each class alike."),
    ] = 1.0
    augment: fields.Augment = None
    k: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"] | None,
        BeforeValidator(values.parse_blocks),
        Field(
            description="Blocks to fine-tune; auto: tried on a part of the training images "
            "(default: the source run's k; with LwF, all)."
        ),
    ] = None
    method: Annotated[
        fields.TransferMethodName,
        Field(description=f"On what the sub-model is trained. {_METHODS}."),
    ] = "natural"
    radius: Annotated[
        Annotated[float, Field(gt=0)] | Literal["auto"] | None,
        BeforeValidator(values.parse_radius),
        Field(
            description="Of --method latent: radius of the ball of features, part of their norm; "
            "auto: measured on the source model (default: auto)."
        ),
    ] = None
    latent_steps: Annotated[
        Whole | None, Field(ge=1, description="Gradient steps of --method latent (default: 1).")
    ] = None
    eps: fields.OwnEps = None
    step_size: fields.OwnStepSize = None
    pgd_steps: Annotated[
        Whole | None,
        Field(
            ge=1,
            description="Steps of the training attack (default: 3). fast takes one step, and these "
            "only after it was found to overfit.",
        ),
    ] = None
    eps_warmup: Annotated[
        Number,
        Field(
            ge=0, le=1, description="Part of training over which eps or the radius grows from 0."
        ),
    ] = 0.0
    trades_beta: fields.TradesBeta = None
    balance: fields.Balance = False
    awp_gamma: fields.AwpGamma = 0.0
    ema: fields.Ema = 0.0
    neft_beta: Annotated[
        Number | None, Field(gt=0, le=1, description="NEFT: spectral norm of every tuned weight.")
    ] = None
    lwf_lambda: Annotated[
        Number | None,
        Field(ge=0, description="LwF: weight of the l1 distance to the source's last features."),
    ] = None
    keep_lambda: Annotated[
        Number | None,
        Field(ge=0, description="Weight of the distance of clean features to the source's."),
    ] = None
    keep_at: Annotated[
        fields.KeepAt | None,
        Field(
            description="Where --keep-lambda compares features: last (what enters the "
            "classifier), all tuned blocks, or the numbers of some, as a,b (default: last)."
        ),
    ] = None
    keep_distance: Annotated[
        Literal["cosine", "l1"] | None,
        Field(description="Distance of --keep-lambda (default: cosine)."),
    ] = None
    head_first: Annotated[
        Whole | None,
        Field(
            ge=0,
            validation_alias=AliasChoices("head_first", "head_epochs"),
            description="First epochs, of the classifier alone (default: none; half with LwF and "
            "--interpolate).",
        ),
    ] = None
    interpolate: Annotated[
        Number | None,
        Field(
            gt=0,
            lt=1,
            description="The model so far of the way from the weights with the classifier alone "
            "trained to those at the end.",
        ),
    ] = None
    freeze_bn: Annotated[
        FreezeBatchNorm | None,
        Field(description=f"Batch norm kept as it is (default: all; {_DEFAULT_CASES})."),
    ] = None
    head_init: Annotated[
        HeadInit,
        Field(
            description="How the new classifier is drawn; uniform: from U(0, 1), as in the paper's "
            "official code."
        ),
    ] = "linear"
    epochs: fields.Epochs = _default("epochs", "Passes over the training data")
    batch_size: fields.BatchSize = 64
    lr: fields.LearningRate = _default("lr", "Peak learning rate of SGD")
    momentum: fields.Momentum = 0.9
    weight_decay: fields.WeightDecay = 5e-4
    schedule: fields.Schedule = "onecycle"
    milestones: fields.Milestones = (40, 70, 90)
    warmup_epochs: fields.WarmupEpochs = 1.0
    sync_bn: fields.SyncBatchNorm = False
    seed: fields.Seed = 0
    device: fields.Device = "auto"
    precision: fields.PrecisionField = "auto"
    compile: fields.Compile = None
    save_every: fields.SaveEvery = "10m"

    @property
    def tuning(self) -> TransferMethod:
        """The method that the settings ask for."""
        return TRANSFER_METHODS[self.method]

    @property
    def additions(self) -> tuple[Addition, ...]:
        """What they add to it."""
        return additions_of(self)

    def look(self, fdm_lambda: float | None) -> Look:
        """How the model is called and drawn, by the λ of its source model's training."""
        return look_of(self.tuning, self.additions, fdm_lambda)

    @property
    def attack_eps(self) -> float:
        """Radius of the training attack: the data set's own unless set."""
        return values.own_eps(self.dataset) if self.eps is None else self.eps

    @property
    def attack_step(self) -> float:
        """Step size of the training attack: with its steps it crosses the ball, unless set."""
        return (
            1.5 * self.attack_eps / self.attack_steps if self.step_size is None else self.step_size
        )

    @property
    def attack_steps(self) -> int:
        """Steps of the training attack."""
        return self.pgd_steps or 3

    @property
    def divergence_weight(self) -> float | None:
        """β of TRADES; None of other methods."""
        return values.divergence_weight(self.method, self.trades_beta)

    @property
    def frozen_bn(self) -> FreezeBatchNorm:
        """The batch-norm case, with the default of the method filled in."""
        if self.freeze_bn is not None:
            return self.freeze_bn
        cases = [one.freeze_bn for one in self.additions if one.freeze_bn != "all"]
        return cases[0] if cases and self.method == "natural" else self.tuning.freeze_bn

    @property
    def head_phase(self) -> int:
        """Epochs in which the classifier alone is trained."""
        if self.head_first is not None:
            return self.head_first
        parts = [one.head_first for one in self.additions]
        return int(self.epochs * max([0.5 if self.interpolate else 0.0, *parts]))

    def blocks_to_tune(self, source_k: int, blocks: int) -> int:
        """k: as given, else all ``blocks`` or those of the source model, as the method has it."""
        if isinstance(self.k, int):
            return self.k
        return blocks if any(one.all_blocks for one in self.additions) else source_k

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        given = {
            name for name, f in type(self).model_fields.items() if self._is_set(name, f.default)
        }
        takers: dict[str, list[str]] = {}
        for method in TRANSFER_METHODS.values():
            for name in method.takes:
                takers.setdefault(name, []).append(method.name)
        for name in given & takers.keys():
            if self.method not in takers[name]:
                *some, last = takers[name]
                words = f"{', '.join(some)} or {last}" if some else last
                raise ValueError(f"{name}: is of --method {words}, not of {self.method}; drop it")
        for addition in ADDITIONS.values():
            for name, what in addition.takes.items():
                if name in given and addition not in self.additions:
                    raise ValueError(f"{name}: {what}; give that too, or drop it")
        for addition in self.additions:
            for name, why in addition.excludes.items():
                if name in given:
                    flag = addition.setting.replace("_", "-")
                    raise ValueError(f"{name}: does not go with --{flag}: {why}")
        if self.keep_distance == "l1" and self.neft_beta is not None:
            raise ValueError(
                "keep_distance: NEFT changes the size of features, so that l1 means nothing; use "
                "cosine"
            )
        if self.head_phase >= self.epochs:
            raise ValueError(f"head_first: must be < epochs ({self.epochs}), got {self.head_phase}")
        if self.interpolate is not None and self.head_phase == 0:
            raise ValueError(
                "head_first: --interpolate begins at the classifier alone; use 1 or more"
            )
        return self

    def _is_set(self, name: str, default: object) -> bool:
        return name in self.model_fields_set and getattr(self, name) != default

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.eps == 0:
            raise ValueError("eps: 0 means training on clean images; use --method natural")
        values.check_step_size(self.attack_eps, self.step_size)
        values.check_schedule(self.schedule, self.milestones, self.warmup_epochs, self.epochs)
        values.check_batch(self.batch_size)
        return self
