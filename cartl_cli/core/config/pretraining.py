"""The settings of ``cartl pretrain``."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from cartl_cli.core.architectures import parse_architecture
from cartl_cli.core.config.fields import (
    Augment,
    BatchSize,
    Classes,
    Compile,
    Dataset,
    Device,
    Epochs,
    Eps,
    LearningRate,
    Milestones,
    Momentum,
    Number,
    PrecisionField,
    SaveEvery,
    Schedule,
    Seed,
    StepSize,
    SyncBatchNorm,
    ValFraction,
    WarmupEpochs,
    WeightDecay,
    Whole,
)
from cartl_cli.core.config.shared import (
    SETTINGS,
    check_batch,
    check_schedule,
    check_step_size,
    own_eps,
)


class PretrainConfig(BaseModel):
    """Adversarial training (Eq. 4) with feature distance minimization (Eq. 10)."""

    model_config = SETTINGS

    dataset: Dataset = "shapes"
    classes: Classes = ()
    image_size: Annotated[
        Whole, Field(ge=8, le=512, description="Images are resized to this side in pixels.")
    ] = 32
    val_fraction: ValFraction = 0.0
    augment: Augment = None
    arch: Annotated[str, Field(description="wrn-D-W with D = 6n+4, or resnet-18.")] = "wrn-16-1"
    method: Annotated[
        Literal["at", "fast", "free", "trades", "natural"],
        Field(
            description="Adversarial training with PGD, with N-FGSM, for free, or TRADES; natural: "
            "on clean images."
        ),
    ] = "at"
    replays: Annotated[
        Whole | None,
        Field(ge=1, description="Steps in a row on each batch of --method free (default: 4)."),
    ] = None
    trades_beta: Annotated[
        Number | None,
        Field(gt=0, description="Weight of the divergence of --method trades (default: 6)."),
    ] = None
    awp_gamma: Annotated[
        Number,
        Field(ge=0, description="Adversarial weight perturbation, part of their norm (0: off)."),
    ] = 0.0
    ema: Annotated[
        Number,
        Field(
            ge=0,
            lt=1,
            description="Decay of an average of the weights, then the run's model (0: off).",
        ),
    ] = 0.0
    k: Annotated[
        Whole, Field(ge=1, description="Blocks of the sub-model, counted from the end.")
    ] = 6
    fdm_lambda: Annotated[
        Number,
        Field(ge=0, description="Weight of feature distance minimization at block L-k (0: off)."),
    ] = 0.0
    eps: Eps = Field(default_factory=lambda given: own_eps(given.get("dataset")))
    step_size: StepSize = None
    pgd_steps: Annotated[Whole, Field(ge=1, description="Steps of the training attack.")] = 5
    eps_warmup: Annotated[
        Number,
        Field(ge=0, le=1, description="Part of training over which eps grows from 0."),
    ] = 0.5
    epochs: Epochs = 6
    batch_size: BatchSize = 64
    lr: LearningRate = 0.2
    momentum: Momentum = 0.9
    weight_decay: WeightDecay = 5e-4
    schedule: Schedule = "onecycle"
    milestones: Milestones = (40, 70, 90)
    warmup_epochs: WarmupEpochs = 1.0
    sync_bn: SyncBatchNorm = False
    seed: Seed = 0
    device: Device = "auto"
    precision: PrecisionField = "auto"
    compile: Compile = None
    save_every: SaveEvery = "10m"

    @property
    def attack_step(self) -> float:
        """Step size of the training attack: a quarter of eps unless set."""
        return self.eps / 4 if self.step_size is None else self.step_size

    @property
    def steps_per_batch(self) -> int:
        """Steps in a row on each batch: one but with free training."""
        return (self.replays or 4) if self.method == "free" else 1

    @property
    def divergence_weight(self) -> float:
        """β of TRADES."""
        return 6.0 if self.trades_beta is None else self.trades_beta

    @field_validator("arch")
    @classmethod
    def _known_architecture(cls, arch: str) -> str:
        parse_architecture(arch)
        return arch

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        blocks = parse_architecture(self.arch).block_count
        if self.k > blocks:
            raise ValueError(f"k: {self.arch} has {blocks} blocks, got {self.k}")
        if self.method != "natural" and self.eps == 0:
            raise ValueError("eps: 0 means natural training; use --method natural")
        self._check_method()
        check_step_size(self.eps, self.step_size)
        check_schedule(self.schedule, self.milestones, self.warmup_epochs, self.epochs)
        check_batch(self.batch_size)
        return self

    def _check_method(self) -> None:
        """Refuse what belongs to another method. Raises ValueError."""
        needy = {"fdm_lambda": self.fdm_lambda, "awp_gamma": self.awp_gamma}
        for name in needy:
            if self.method == "natural" and needy[name] > 0:
                raise ValueError(f"{name}: needs adversarial images; drop it or --method natural")
        if self.replays is not None and self.method != "free":
            raise ValueError(f"replays: is of --method free, not of {self.method}; drop it")
        if self.trades_beta is not None and self.method != "trades":
            raise ValueError(f"trades_beta: is of --method trades, not of {self.method}; drop it")
        if self.method == "free" and self.awp_gamma > 0:
            raise ValueError(
                "awp_gamma: needs a backward pass of its own, which free training has not; drop it"
            )
        if self.method == "free" and self.step_size is not None:
            raise ValueError("step_size: steps of free training are as long as eps; drop it")
