"""The settings of ``cartl transfer``."""

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from cartl_cli.core.choices import FreezeBatchNorm
from cartl_cli.core.config import fields
from cartl_cli.core.config.fields import Number, Whole
from cartl_cli.core.config.values import SETTINGS, check_batch, check_schedule
from cartl_cli.core.registry.transfer_methods import (
    TRANSFER_METHODS,
    TransferMethod,
    chosen_methods,
)

_METHODS = "; ".join(
    f"{m.name}: {m.about}" if m.about else f"{m.look.label}: give {m.flag}"
    for m in TRANSFER_METHODS.values()
)
_DEFAULT_CASES = ", ".join(f"{m.look.label} {m.freeze_bn}" for m in TRANSFER_METHODS.values())


class TransferConfig(BaseModel):
    """Fine-tuning of the last k blocks: vanilla, non-expansive (NEFT, Eq. 11), or LwF."""

    model_config = SETTINGS

    source: Annotated[
        str,
        Field(description="Source run: name, number or path (default: the newest, sweeps aside)."),
    ] = ""
    dataset: fields.Dataset = "shapes-target"
    classes: fields.Classes = ()
    val_fraction: fields.ValFraction = 0.0
    fraction: Annotated[
        Number,
        Field(gt=0, le=1, description="Part of the training images to use, each class alike."),
    ] = 1.0
    augment: fields.Augment = None
    k: Annotated[
        Whole | None,
        Field(
            ge=1, description="Blocks to fine-tune (default: the source run's k; with LwF, all)."
        ),
    ] = None
    method: Annotated[
        fields.TransferMethodName, Field(description=f"How the sub-model is tuned. {_METHODS}.")
    ] = "natural"
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
        Field(description=f"Batch norm kept as it is (default: {_DEFAULT_CASES})."),
    ] = None
    epochs: fields.Epochs = 60
    batch_size: fields.BatchSize = 64
    lr: fields.LearningRate = 0.02
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
        return chosen_methods(self)[0]

    @property
    def own_settings(self) -> dict[str, object]:
        """The settings of that method alone, by name."""
        method = self.tuning
        names = [*([method.chosen_by] if method.chosen_by else []), *method.takes]
        return {name: getattr(self, name) for name in names}

    @property
    def frozen_bn(self) -> FreezeBatchNorm:
        """The batch-norm case, with the default of the method filled in."""
        return self.freeze_bn or self.tuning.freeze_bn

    @property
    def head_phase(self) -> int:
        """Epochs in which the classifier alone is trained."""
        if self.head_epochs is not None:
            return self.head_epochs
        return int(self.epochs * self.tuning.head_first)

    def blocks_to_tune(self, source_k: int, blocks: int) -> int:
        """k: as given, else all ``blocks`` or those of the source model, as the method has it."""
        return self.k or (blocks if self.tuning.all_blocks else source_k)

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        first, *more = chosen_methods(self)
        for other in more:
            raise ValueError(
                f"{other.chosen_by}: is another method than {first.flag}; give one of the two"
            )
        for method in TRANSFER_METHODS.values():
            for name, what in method.takes.items():
                if method is not first and getattr(self, name) is not None:
                    raise ValueError(f"{name}: {what}; give {method.flag} too, or drop it")
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
