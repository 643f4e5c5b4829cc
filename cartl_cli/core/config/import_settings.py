"""The settings of ``cartl import``."""

from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cartl_cli.core.config import fields, values
from cartl_cli.core.config.fields import Number, Whole
from cartl_cli.core.config.preprocessing import Interpolation, Preprocessing, Resize
from cartl_cli.core.config.values import ADDRESSES, SETTINGS
from cartl_cli.core.registry.architectures import FAMILIES, WHOLE, parse_architecture


def _three(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if len(numbers) != 3:
        raise ValueError("give three numbers, as R,G,B")
    return numbers


ThreeNumbers = Annotated[
    tuple[Number, ...], BeforeValidator(values.parse_list), AfterValidator(_three)
]


class ImportConfig(BaseModel):
    """A model that was trained elsewhere, and the images on which to look at it."""

    model_config = SETTINGS

    checkpoint: Annotated[
        str,
        Field(
            description="File of weights (safetensors, or PyTorch's .pt, .pth, .ckpt), folder of a "
            f"run or of a hub, or {ADDRESSES}; none, if a network that is taken whole has its own.",
            json_schema_extra=values.POSITIONAL,
        ),
    ] = ""
    arch: Annotated[
        str,
        Field(
            description=", ".join(family.form for family in FAMILIES.values())
            + " (default: what stands beside the weights)."
        ),
    ] = ""
    classes: Annotated[
        tuple[str, ...],
        BeforeValidator(values.parse_names),
        Field(
            description="Names of its outputs in their order, as a,b,c or @FILE with one a line "
            "(default: the classes of --dataset in order, else numbers)."
        ),
    ] = ()
    mean: Annotated[
        ThreeNumbers | None,
        Field(description="Mean that it takes off pixels in 0..1, as R,G,B (default: the file's)."),
    ] = None
    std: Annotated[
        ThreeNumbers | None,
        Field(description="What it divides them by then, as R,G,B (default: the file's)."),
    ] = None
    image_size: Annotated[
        Whole | None,
        Field(ge=8, le=512, description="Side of its images (default: what --arch is made for)."),
    ] = None
    resize: Annotated[
        Resize | None,
        Field(
            description="squash: the whole image becomes a square; crop: its centre (default: "
            "crop above 64 pixels)."
        ),
    ] = None
    shorter_side: Annotated[
        Whole | None,
        Field(
            ge=8,
            le=1024,
            description="Of --resize crop: the shorter side before it (default: 8/7 of the size).",
        ),
    ] = None
    interpolation: Annotated[Interpolation, Field(description="How its images are resized.")] = (
        "bilinear"
    )
    member: Annotated[
        str | None, Field(description="Which weights, where the file holds several networks.")
    ] = None
    k: Annotated[
        Whole, Field(ge=1, description="Blocks that a transfer tunes unless it is told.")
    ] = 6
    origin: Annotated[str, Field(description="Where the file is from, to keep with it.")] = ""
    licence: Annotated[str, Field(description="Its licence, to keep with it.")] = ""
    threat: Annotated[
        str, Field(description="What it is said to resist, as 'linf 8/255', to keep with it.")
    ] = ""
    dataset: Annotated[
        str | None,
        Field(description="Images like those it was trained on, to measure it (default: none)."),
    ] = None
    skip_bad: fields.SkipBad = False
    limit: Annotated[Whole, Field(ge=1, description="Images to measure it on, at most.")] = 200
    eps: fields.Eps = Field(default_factory=lambda given: values.own_eps(given.get("dataset")))
    pgd_steps: Annotated[Whole, Field(ge=1, description="Steps of the attack on them.")] = 20
    batch_size: fields.BatchSize = 64
    seed: fields.Seed = 0
    device: fields.Device = "auto"
    precision: fields.PrecisionField = "auto"

    @property
    def whole(self) -> bool:
        """Whether its network is a file's, taken as it is."""
        return self.arch.startswith(WHOLE)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are brought to the model's size."""
        size = self.image_size or parse_architecture(self.arch).image_size
        resize = self.resize or ("crop" if size > 64 else "squash")
        shorter = self.shorter_side or (round(size * 8 / 7) if resize == "crop" else None)
        return Preprocessing(
            image_size=size, resize=resize, interpolation=self.interpolation, shorter_side=shorter
        )

    @field_validator("arch")
    @classmethod
    def _known_architecture(cls, arch: str) -> str:
        if arch:
            parse_architecture(arch)
        return arch

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        values.check_eps(self.eps, info)
        if not self.checkpoint and not self.whole:
            raise ValueError("checkpoint: name the file of weights: cartl import FILE --arch NAME")
        if self.whole and self.mean is not None:
            raise ValueError("mean: a network that is taken whole normalizes its images itself")
        if self.whole and not self.dataset and not self.classes:
            raise ValueError("classes: name them, or images of them with --dataset")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean: goes with --std; give both, or neither")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std: must be above 0")
        if self.mean is not None and max(*self.mean, *(self.std or ())) > 1:
            raise ValueError("mean: with --std it is of pixels in 0..1; divide both by 255")
        if 0 < len(self.classes) < 2:
            raise ValueError("classes: a model has at least two")
        if twice := [name for name in self.classes if self.classes.count(name) > 1]:
            raise ValueError(f"classes: {twice[0]!r} is there twice")
        if self.arch:
            _ = self.preprocessing
        return self
