"""The settings of ``cartl pretrain``."""

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from cartl_cli.core.config import fields, values
from cartl_cli.core.config.fields import Number, Whole
from cartl_cli.core.config.preprocessing import Preprocessing, Resize
from cartl_cli.core.config.values import SETTINGS
from cartl_cli.core.registry.architectures import FAMILIES, WHOLE, parse_architecture
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS, owner

_METHODS = "; ".join(f"{one.name}: {one.about}" for one in TRAINING_ATTACKS.values())


class PretrainConfig(BaseModel):
    """Adversarial training (Eq. 4) with feature distance minimization (Eq. 10)."""

    model_config = SETTINGS

    dataset: fields.Dataset = "shapes"
    classes: fields.Classes = ()
    image_size: Annotated[
        Whole, Field(ge=8, le=512, description="Images are resized to this side in pixels.")
    ] = 32
    resize: Annotated[
        Resize,
        Field(description="squash: the whole image becomes a square; crop: its centre square."),
    ] = "squash"
    val_fraction: fields.ValFraction = 0.0
    split_seed: fields.SplitSeed = 0
    skip_bad: fields.SkipBad = False
    augment: fields.Augment = None
    arch: Annotated[
        str, Field(description="; ".join(family.form for family in FAMILIES.values()) + ".")
    ] = "wrn-16-1"
    method: Annotated[
        fields.TrainingAttackName, Field(description=f"How the model is trained. {_METHODS}.")
    ] = "at"
    replays: Annotated[
        Whole | None,
        Field(ge=1, description="Steps in a row on each batch of --method free (default: 4)."),
    ] = None
    trades_beta: fields.TradesBeta = None
    balance: fields.Balance = False
    awp_gamma: fields.AwpGamma = 0.0
    ema: fields.Ema = 0.0
    k: Annotated[
        Whole, Field(ge=1, description="Blocks of the sub-model, counted from the end.")
    ] = 6
    fdm_lambda: Annotated[
        Number,
        Field(ge=0, description="Weight of feature distance minimization at block L-k (0: off)."),
    ] = 0.0
    fdm_at: Annotated[
        fields.FdmAt | None,
        Field(
            description="Values of k whose blocks L-k --fdm-lambda acts on, as 2,4,6, or all: one "
            "source model for each of them (default: k alone)."
        ),
    ] = None
    eps: fields.Eps = Field(default_factory=lambda given: values.own_eps(given.get("dataset")))
    step_size: fields.StepSize = None
    pgd_steps: Annotated[Whole, Field(ge=1, description="Steps of the training attack.")] = 5
    eps_warmup: Annotated[
        Number, Field(ge=0, le=1, description="Part of training over which eps grows from 0.")
    ] = 0.5
    epochs: fields.Epochs = 6
    batch_size: fields.BatchSize = 64
    lr: fields.LearningRate = 0.2
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
    def preprocessing(self) -> Preprocessing:
        """How images are brought to the model's size."""
        return Preprocessing(image_size=self.image_size, resize=self.resize)

    @property
    def attack_step(self) -> float:
        """Step size of the training attack: a quarter of eps unless set."""
        return self.eps / 4 if self.step_size is None else self.step_size

    @property
    def fdm_ks(self) -> tuple[int, ...]:
        """The values of k that the feature distance is minimised for, falling; () without it."""
        if self.fdm_lambda == 0:
            return ()
        if self.fdm_at is None:
            return (self.k,)
        if self.fdm_at == "all":
            given: Iterable[int] = range(1, parse_architecture(self.arch).count())
        else:
            given = map(int, self.fdm_at.split(","))
        return tuple(sorted(set(given), reverse=True))

    @property
    def steps_per_batch(self) -> int:
        """Steps in a row on each batch: one but with free training."""
        return (self.replays or 4) if self.method == "free" else 1

    @property
    def divergence_weight(self) -> float | None:
        """β of TRADES; None of other methods."""
        return values.divergence_weight(self.method, self.trades_beta)

    @field_validator("arch")
    @classmethod
    def _known_architecture(cls, arch: str) -> str:
        parse_architecture(arch)
        if arch.startswith(WHOLE):
            raise ValueError(
                "a network that is taken whole is only attacked; give FILE.py:FUNCTION"
            )
        return arch

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        blocks = parse_architecture(self.arch).block_count
        if blocks is not None:
            self.check_blocks(blocks)
        elif self.fdm_at == "all":
            raise ValueError(
                f"fdm_at: give the values of k, as 2,4: {self.arch} must be built first"
            )
        if self.method != "natural" and self.eps == 0:
            raise ValueError("eps: 0 means natural training; use --method natural")
        values.check_eps(self.eps, info)
        self._check_method()
        if self.fdm_at is not None and self.fdm_lambda == 0:
            raise ValueError("fdm_at: goes with --fdm-lambda; give that too, or drop it")
        values.check_step_size(self.eps, self.step_size)
        values.check_schedule(self.schedule, self.milestones, self.warmup_epochs, self.epochs)
        values.check_batch(self.batch_size)
        return self

    def check_blocks(self, blocks: int) -> None:
        """Refuse a k that is more than the ``blocks`` of the network. Raises ValueError."""
        if self.k > blocks:
            raise ValueError(f"k: {self.arch} has {blocks} blocks, got {self.k}; use 1 to {blocks}")
        if max(self.fdm_ks, default=1) > blocks:
            raise ValueError(f"fdm_at: {self.arch} has {blocks} blocks, got {self.fdm_at}")

    def _check_method(self) -> None:
        """Refuse what belongs to another method. Raises ValueError."""
        method = TRAINING_ATTACKS[self.method]
        for name, field in type(self).model_fields.items():
            if getattr(self, name) == field.default:
                continue
            if (owned_by := owner(name)) not in (None, self.method):
                raise ValueError(
                    f"{name}: is of --method {owned_by}, not of {self.method}; drop it"
                )
            if name in method.refuses:
                raise ValueError(f"{name}: {method.refuses[name]}")
