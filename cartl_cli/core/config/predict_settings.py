"""The settings of ``cartl predict``."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from cartl_cli.core.config import fields
from cartl_cli.core.config.fields import Pixels, Whole
from cartl_cli.core.config.values import SETTINGS


class PredictConfig(BaseModel):
    """Answers for images, and whether each would survive an attack in the l-infinity ball."""

    model_config = SETTINGS

    top: Annotated[Whole, Field(ge=1, description="Likeliest classes to tell of each image.")] = 1
    format: Annotated[
        Literal["table", "csv", "jsonl"],
        Field(description="csv and jsonl are written line by line, as images are done."),
    ] = "table"
    mistakes: Annotated[
        bool,
        Field(
            description="Show only the images whose answer is not the name of their folder, where "
            "that is a class."
        ),
    ] = False
    attack: Annotated[
        Literal["pgd", "pgd-margin"] | None,
        Field(description="Tell whether each answer survives this attack."),
    ] = None
    eps: Annotated[
        Pixels | None,
        Field(gt=0, description="Radius of the l-infinity ball (default: as of cartl attack)."),
    ] = None
    pgd_steps: Annotated[Whole, Field(ge=1, description="Steps of gradient ascent.")] = 20
    batch_size: fields.BatchSize = 64
    seed: fields.Seed = 0
    device: fields.Device = "auto"

    @model_validator(mode="after")
    def _of_an_attack(self) -> Self:
        for name in ("eps", "pgd_steps", "seed"):
            if self.attack is None and name in self.model_fields_set:
                raise ValueError(f"{name}: goes with --attack pgd")
        return self
