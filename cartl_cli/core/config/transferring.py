"""The settings of ``cartl transfer``."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from cartl_cli.core.config.fields import (
    Augment,
    BatchSize,
    Classes,
    Compile,
    Dataset,
    Device,
    Epochs,
    LearningRate,
    Milestones,
    Momentum,
    Number,
    PrecisionField,
    SaveEvery,
    Schedule,
    Seed,
    SyncBatchNorm,
    ValFraction,
    WarmupEpochs,
    WeightDecay,
    Whole,
)
from cartl_cli.core.config.shared import SETTINGS, check_batch, check_schedule

FreezeBatchNorm = Literal["none", "affine", "stats", "all"]
Method = Literal["vanilla", "neft", "lwf"]


class TransferConfig(BaseModel):
    """Fine-tuning of the last k blocks: vanilla, non-expansive (NEFT, Eq. 11), or LwF."""

    model_config = SETTINGS

    source: Annotated[
        str,
        Field(description="Source run: name, number or path (default: the newest pretrain run)."),
    ] = ""
    dataset: Dataset = "shapes-target"
    classes: Classes = ()
    val_fraction: ValFraction = 0.0
    fraction: Annotated[
        Number,
        Field(gt=0, le=1, description="Part of the training images to use, each class alike."),
    ] = 1.0
    augment: Augment = None
    k: Annotated[
        Whole | None,
        Field(
            ge=1, description="Blocks to fine-tune (default: the source run's k; with LwF, all)."
        ),
    ] = None
    neft_beta: Annotated[
        Number | None,
        Field(gt=0, le=1, description="Spectral norm of every tuned weight (default: vanilla)."),
    ] = None
    lwf_lambda: Annotated[
        Number | None,
        Field(
            ge=0,
            description="Weight of the distance to the source's features (LwF; default: vanilla).",
        ),
    ] = None
    head_epochs: Annotated[
        Whole | None,
        Field(ge=0, description="First epochs of LwF, of the classifier alone (default: half)."),
    ] = None
    freeze_bn: Annotated[
        FreezeBatchNorm | None,
        Field(
            description="Batch norm kept as it is (default: vanilla all, NEFT affine, LwF none)."
        ),
    ] = None
    epochs: Epochs = 60
    batch_size: BatchSize = 64
    lr: LearningRate = 0.02
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
    def frozen_bn(self) -> FreezeBatchNorm:
        """The batch-norm case, with the default of the official scripts filled in."""
        if self.freeze_bn is not None:
            return self.freeze_bn
        defaults: dict[Method, FreezeBatchNorm] = {
            "vanilla": "all",
            "neft": "affine",
            "lwf": "none",
        }
        return defaults[self.method]

    @property
    def method(self) -> Method:
        """What the settings ask for."""
        if self.neft_beta is not None:
            return "neft"
        return "vanilla" if self.lwf_lambda is None else "lwf"

    @property
    def head_phase(self) -> int:
        """Epochs in which the classifier alone is trained: none but with LwF."""
        if self.method != "lwf":
            return 0
        return self.epochs // 2 if self.head_epochs is None else self.head_epochs

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        if self.neft_beta is not None and self.lwf_lambda is not None:
            raise ValueError("lwf_lambda: is another method than --neft-beta; give one of the two")
        if self.head_epochs is not None and self.lwf_lambda is None:
            raise ValueError("head_epochs: is a phase of LwF; give --lwf-lambda too, or drop it")
        if self.head_phase >= self.epochs:
            raise ValueError(
                f"head_epochs: must be < epochs ({self.epochs}), got {self.head_epochs}"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_schedule(self.schedule, self.milestones, self.warmup_epochs, self.epochs)
        check_batch(self.batch_size)
        return self
