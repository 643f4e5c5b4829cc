"""Every setting, its default, its bounds and its description: the only place that has them.

The command line is made from these models (field → flag, description → help text), a stored
configuration is a valid ``--config`` file, and a preset is a partial one.
"""

import itertools
import re
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from cartl_cli.core.architectures import parse_architecture
from cartl_cli.core.fields import (
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
from cartl_cli.core.values import check_pixels, parse_eps, parse_list

SETTINGS = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

FreezeBatchNorm = Literal["none", "affine", "stats", "all"]
Method = Literal["vanilla", "neft", "lwf"]
Kind = Literal["pretrain", "transfer", "attack"]
AttackName = Literal[
    "fgsm", "pgd", "pgd-margin", "apgd-ce", "apgd-t", "square", "feature", "autoattack"
]
Norm = Literal["linf", "l2"]
SplitName = Literal["test", "val", "train"]
POSITIONAL = {"positional": True}  # of a field: an argument of the command line, not a flag


def own_eps(dataset: str | None) -> float:
    """The radius that a data set is trained and attacked with unless another is given."""
    return 0.15 if dataset in ("mnist", "fashion-mnist") else 8 / 255


def _check_step_size(eps: float, step_size: float | None) -> None:
    if step_size is not None and eps > 0 and step_size > 2 * eps:
        raise ValueError(f"step_size: must be at most 2 x eps = {2 * eps:g}, got {step_size:g}")


def _check_schedule(schedule: str, milestones: tuple[int, ...], warmup: float, epochs: int) -> None:
    if schedule != "step":
        return
    rising = all(a < b for a, b in itertools.pairwise(milestones))
    if not rising or any(not 0 < milestone < epochs for milestone in milestones):
        shown = ",".join(map(str, milestones))
        raise ValueError(f"milestones: must rise and be < epochs ({epochs}), got {shown}")
    if warmup >= epochs:
        raise ValueError(f"warmup_epochs: must be < epochs ({epochs}), got {warmup:g}")


def _check_batch(batch_size: int) -> None:
    if batch_size < 2:
        raise ValueError("batch_size: batch norm needs at least 2 images per batch, got 1")


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
        _check_step_size(self.eps, self.step_size)
        _check_schedule(self.schedule, self.milestones, self.warmup_epochs, self.epochs)
        _check_batch(self.batch_size)
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
        _check_schedule(self.schedule, self.milestones, self.warmup_epochs, self.epochs)
        _check_batch(self.batch_size)
        return self


STRONG: tuple[AttackName, ...] = ("pgd-margin", "apgd-t")
"""What ``--attack strong`` is made of."""


class AttackConfig(BaseModel):
    """Attacks one after another, in the l-infinity or l2 ball, at one or more eps."""

    model_config = SETTINGS

    run: Annotated[
        str,
        Field(
            description="Run: name, number or path (default: the newest finished run).",
            json_schema_extra=POSITIONAL,
        ),
    ] = ""
    dataset: Annotated[
        str | None, Field(description="Data set to attack on (default: the run's own).")
    ] = None
    split: Annotated[
        SplitName | None,
        Field(description="Images to attack (default: those the run was measured on)."),
    ] = None
    attack: Annotated[
        tuple[AttackName | Literal["strong"], ...],
        BeforeValidator(parse_list),
        Field(
            min_length=1,
            description="Attacks, as a,b: fgsm, pgd, pgd-margin, apgd-ce, apgd-t, square, feature, "
            "autoattack; strong: pgd-margin and apgd-t.",
        ),
    ] = ("pgd", "strong")
    norm: Annotated[Norm, Field(description="Norm of the ball.")] = "linf"
    eps: Annotated[
        tuple[Number, ...],
        BeforeValidator(parse_eps),
        Field(
            min_length=1,
            description="Radius of the ball; several, as 2/255,4/255, one curve (default: the data "
            "set's own, see pretrain).",
        ),
    ] = Field(default_factory=lambda given: (own_eps(given.get("dataset")),))
    step_size: StepSize = None
    pgd_steps: Annotated[Whole, Field(ge=1, description="Steps of gradient ascent.")] = 100
    restarts: Annotated[Whole, Field(ge=1, description="Random starts for each image.")] = 1
    queries: Annotated[Whole, Field(ge=1, description="Queries of square for each image.")] = 1000
    checks: Annotated[
        Literal["off", "fast", "default", "thorough"],
        Field(description="Checks that the attack worked, by what they may cost."),
    ] = "fast"
    diagnose: Annotated[
        bool, Field(description="Say how far adversarial images move the features of each block.")
    ] = False
    limit: Annotated[
        Whole | None, Field(ge=1, description="Attack a seeded stratified subset of this size.")
    ] = None
    save_adversarial: Annotated[
        bool, Field(description="Keep the adversarial images of the largest eps, with a picture.")
    ] = False
    batch_size: BatchSize = 64
    seed: Seed = 0
    device: Device = "auto"
    precision: PrecisionField = "auto"
    compile: Compile = None
    save_every: SaveEvery = "1m"

    @property
    def attacks(self) -> tuple[AttackName, ...]:
        """The attacks in order, ``strong`` spelled out, none twice."""
        spelled = [a for name in self.attack for a in (STRONG if name == "strong" else (name,))]
        return tuple(dict.fromkeys(spelled))

    def step(self, eps: float) -> float:
        """Step size at one eps: a quarter of it unless set."""
        return eps / 4 if self.step_size is None else self.step_size

    @field_validator("eps")
    @classmethod
    def _rising(cls, eps: tuple[float, ...]) -> tuple[float, ...]:
        if min(eps) < 0:
            raise ValueError("must be >= 0")
        return tuple(sorted(set(eps)))

    @model_validator(mode="after")
    def _in_the_box(self) -> Self:
        if self.norm == "linf":
            try:
                check_pixels(self.eps[-1])
            except ValueError as error:
                raise ValueError(f"eps: {error}") from None
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for eps in self.eps if "eps" in self.model_fields_set else ():  # else see at_own_eps
            _check_step_size(eps, self.step_size)
        return self


TrainingConfig = PretrainConfig | TransferConfig


class SweepConfig(BaseModel):
    """Where the runs of a sweep are carried out, and how many at a time."""

    model_config = SETTINGS

    executor: Annotated[
        Literal["local", "ray"],
        Field(description="local: processes of this machine; ray: tasks of a Ray cluster."),
    ] = "local"
    jobs: Annotated[
        Whole | None,
        Field(
            ge=1,
            description="Runs at a time (default: 1; ray: as many as the cluster has room for).",
        ),
    ] = None
    cpus: Annotated[Whole, Field(ge=1, description="CPUs, and threads, of each run on Ray.")] = 1
    gpus: Annotated[
        Number, Field(ge=0, le=1, description="GPUs of each run on Ray; 0.5: two runs share one.")
    ] = 0.0
    ray_address: Annotated[
        str,
        Field(
            description="Ray cluster, as HOST:PORT; auto: the one that this machine belongs to; "
            "local: a new one, of this machine alone."
        ),
    ] = "auto"

    @field_validator("ray_address")
    @classmethod
    def _address(cls, address: str) -> str:
        if not re.fullmatch(r"auto|local|[^/\s]+:\d{1,5}", address):
            raise ValueError("must be auto, local or HOST:PORT")
        return address

    @model_validator(mode="after")
    def _only_on_ray(self) -> Self:
        for name in ("cpus", "gpus", "ray_address"):
            if self.executor == "local" and name in self.model_fields_set:
                raise ValueError(f"{name}: goes with --executor ray")
        return self
