"""The settings of ``cartl sweep``, besides what each run's own are."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from cartl_cli.core.config.fields import Number, Whole
from cartl_cli.core.config.values import SETTINGS


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
