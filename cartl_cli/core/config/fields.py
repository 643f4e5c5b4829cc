"""The types of settings that several commands share: bounds and description once.

Defaults are where they are used, in ``config``.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cartl_cli.core.choices import Precision
from cartl_cli.core.config import values
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS
from cartl_cli.core.registry.transfer_methods import TRANSFER_METHODS

BUILT_IN_DATA = ("shapes", "shapes-target")
BUILT_IN_SIDE = 32
"""Pixels of a side of the images of those."""
PUBLIC_DATA = ("cifar10", "cifar100", "svhn", "gtsrb", "mnist", "fashion-mnist", "stl10")


if TYPE_CHECKING:
    TrainingAttackName = str
    TransferMethodName = str
    AttackName = str
    AttackOrGroup = str
else:  # what is in the registries when the settings are made
    TrainingAttackName = Literal[*TRAINING_ATTACKS]
    TransferMethodName = Literal[*TRANSFER_METHODS]
    AttackName = Literal[*EVALUATION_ATTACKS]
    AttackOrGroup = Literal[*EVALUATION_ATTACKS, "strong"]

Whole = Annotated[int, BeforeValidator(values.parse_whole)]
Number = Annotated[float, BeforeValidator(values.parse_number)]
Pixels = Annotated[float, BeforeValidator(values.parse_pixels)]
Names = Annotated[tuple[str, ...], BeforeValidator(values.parse_list)]
Augmentations = Annotated[
    tuple[Literal["crop", "flip", "rotate", "zoom"], ...], BeforeValidator(values.parse_list)
]

KeepAt = Annotated[
    str, AfterValidator(lambda text: values.check_numbers(text, ("last", "all"), "5,6"))
]
FdmAt = Annotated[str, AfterValidator(lambda text: values.check_numbers(text, ("all",), "2,4,6"))]

Source = Annotated[
    str,
    Field(
        description=f"Source run: name, number or path, or {values.ADDRESSES}, which is imported "
        "first (default: the newest finished source run, sweeps aside)."
    ),
]
Dataset = Annotated[
    str,
    Field(
        description=f"Data set: {', '.join((*BUILT_IN_DATA, *PUBLIC_DATA))}, an image folder or a "
        ".zip of one."
    ),
]
Classes = Annotated[
    Names,
    Field(
        description="Only these classes, as a,b; one with a comma in quotes, as 'a,\"b,c\"' "
        "(default: all)."
    ),
]
ValFraction = Annotated[
    Number, Field(ge=0, le=0.5, description="Part of the training data held out to measure on.")
]
SplitSeed = Annotated[
    Whole,
    Field(
        ge=0,
        le=2**32 - 1,
        description="Seed of which images are held out, so that runs of other seeds share them.",
    ),
]
SkipBad = Annotated[
    bool, Field(description="Go on without images that cannot be used; they are counted.")
]
Balance = Annotated[
    bool,
    Field(
        description="Weigh the images in the loss so that each class counts alike, however many "
        "images it has."
    ),
]
Augment = Annotated[
    Augmentations | None,
    Field(
        description="crop, flip, rotate and zoom, as a,b; none; default: the data set's own choice."
    ),
]
Eps = Annotated[
    Pixels,
    Field(
        ge=0,
        description="Radius of the l-infinity ball (default: the data set's own, 8/255, of mnist "
        "and fashion-mnist 0.15).",
    ),
]
OwnEps = Annotated[
    Pixels | None,
    Field(
        ge=0,
        description="Radius of the l-infinity ball of the training attack (default: the data set's "
        "own, see pretrain).",
    ),
]
StepSize = Annotated[
    Pixels | None, Field(gt=0, description="Step of the attack (default: a quarter of eps).")
]
OwnStepSize = Annotated[
    Pixels | None,
    Field(gt=0, description="Step of the training attack (default: 1.5 eps / its steps)."),
]
AttackStepSize = Annotated[
    Number | None, Field(gt=0, description="Step of the attack (default: a quarter of eps).")
]
TradesBeta = Annotated[
    Number | None,
    Field(gt=0, description="Weight of the divergence of --method trades (default: 6)."),
]
AwpGamma = Annotated[
    Number, Field(ge=0, description="Adversarial weight perturbation, part of their norm (0: off).")
]
Ema = Annotated[
    Number,
    Field(
        ge=0, lt=1, description="Decay of an average of the weights, then the run's model (0: off)."
    ),
]
Epochs = Annotated[Whole, Field(ge=1, description="Passes over the training data.")]
BatchSize = Annotated[Whole, Field(ge=1, description="Images in one batch.")]
LearningRate = Annotated[Number, Field(gt=0, description="Peak learning rate of SGD.")]
Momentum = Annotated[Number, Field(ge=0, lt=1, description="Momentum of SGD.")]
WeightDecay = Annotated[Number, Field(ge=0, description="Weight decay of SGD.")]
SyncBatchNorm = Annotated[
    bool,
    Field(
        description="Under torchrun on CUDA: batch-norm statistics of the whole batch, not of each "
        "process's part."
    ),
]
Schedule = Annotated[
    Literal["onecycle", "step"],
    Field(description="Learning rate: one triangle, or x0.2 at each milestone."),
]
Milestones = Annotated[
    tuple[Whole, ...],
    BeforeValidator(values.parse_list),
    Field(description="Epochs after which --schedule step cuts the learning rate, as a,b,c."),
]
WarmupEpochs = Annotated[
    Number, Field(ge=0, description="Epochs of linear warm-up under --schedule step.")
]
Seed = Annotated[Whole, Field(ge=0, le=2**32 - 1, description="Seed of every random draw.")]
Device = Annotated[str, Field(description="auto, cpu, cuda, cuda:N or mps.")]
PrecisionField = Annotated[
    Precision, Field(description="auto: bfloat16 where it is native. Verdicts are always fp32.")
]
Compile = Annotated[
    bool | None,
    Field(
        description="Compile the passes of full batches (torch.compile): 10 to 40 s at first, "
        "then faster; the same but for rounding (default: for long trainings on CUDA)."
    ),
]
SaveEvery = Annotated[
    str,
    AfterValidator(values.check_interval),
    Field(description="Save the state every so many minutes (10m) or steps (500), to resume."),
]
