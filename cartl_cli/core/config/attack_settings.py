"""The settings of ``cartl attack``."""

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cartl_cli.core.choices import Norm
from cartl_cli.core.config import fields, values
from cartl_cli.core.config.fields import Number, Whole
from cartl_cli.core.config.values import SETTINGS
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS, STRONG

SplitName = Literal["test", "val", "train"]


class AttackConfig(BaseModel):
    """Attacks one after another, in the l-infinity or l2 ball, at one or more eps."""

    model_config = SETTINGS

    run: Annotated[
        str,
        Field(
            description="Run: name, number or path (default: the newest finished, sweeps aside).",
            json_schema_extra=values.POSITIONAL,
        ),
    ] = ""
    dataset: Annotated[
        str | None, Field(description="Data set to attack on (default: the run's own).")
    ] = None
    skip_bad: fields.SkipBad = False
    split: Annotated[
        SplitName | None,
        Field(description="Images to attack (default: those the run was measured on)."),
    ] = None
    attack: Annotated[
        tuple[fields.AttackOrGroup, ...],
        BeforeValidator(values.parse_list),
        Field(
            min_length=1,
            description=f"Attacks, as a,b: {', '.join(EVALUATION_ATTACKS)}; strong: "
            f"{' and '.join(STRONG)}.",
        ),
    ] = ("pgd", "strong")
    norm: Annotated[Norm, Field(description="Norm of the ball.")] = "linf"
    eps: Annotated[
        tuple[Number, ...],
        BeforeValidator(values.parse_eps),
        Field(
            min_length=1,
            description="Radius of the ball; several, as 2/255,4/255, one curve (default: the data "
            "set's own, see pretrain; in l2 0.5).",
        ),
    ] = Field(
        default_factory=lambda given: (
            values.own_eps(given.get("dataset"), given.get("norm", "linf")),
        )
    )
    step_size: fields.AttackStepSize = None
    pgd_steps: Annotated[Whole, Field(ge=1, description="Steps of gradient ascent.")] = 100
    restarts: Annotated[Whole, Field(ge=1, description="Random starts for each image.")] = 1
    queries: Annotated[Whole, Field(ge=1, description="Queries of square for each image.")] = 1000
    final_iterate: Annotated[
        bool,
        Field(description="Say what pgd leaves at its last iterate alone, as the paper counts."),
    ] = False
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
    batch_size: fields.BatchSize = 64
    seed: fields.Seed = 0
    device: fields.Device = "auto"
    precision: fields.PrecisionField = "auto"
    compile: fields.Compile = None
    save_every: fields.SaveEvery = "1m"

    @property
    def attacks(self) -> tuple[fields.AttackName, ...]:
        """The attacks in order, ``strong`` spelled out, none twice."""
        spelled = [a for name in self.attack for a in (STRONG if name == "strong" else (name,))]
        return tuple(dict.fromkeys(spelled))

    @property
    def effort(self) -> dict[str, int]:
        """Those of steps, queries and restarts that its attacks take."""
        takes = {EVALUATION_ATTACKS[name].takes for name in self.attacks}
        counts = {"steps": self.pgd_steps, "queries": self.queries}
        found = {name: count for name, count in counts.items() if name in takes}
        return found | {"restarts": self.restarts} if found else {}

    def step(self, eps: float) -> float:
        """Step size at one eps: a quarter of it unless set."""
        return eps / 4 if self.step_size is None else self.step_size

    @field_validator("attack")
    @classmethod
    def _each_once(cls, attack: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        twice = [name for name in attack if attack.count(name) > 1]
        if twice and info.context is not values.STORED:
            raise ValueError(f"{twice[0]!r} is there twice")
        return attack

    @field_validator("eps")
    @classmethod
    def _rising(cls, eps: tuple[float, ...]) -> tuple[float, ...]:
        if min(eps) < 0:
            raise ValueError("must be >= 0")
        return tuple(sorted(set(eps)))

    @model_validator(mode="after")
    def _in_the_box(self, info: ValidationInfo) -> Self:
        values.check_eps(self.eps[-1], info)
        if self.norm == "linf":
            for name, distance in (("eps", self.eps[-1]), ("step_size", self.step_size or 0)):
                try:
                    values.check_pixels(distance)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for eps in self.eps if "eps" in self.model_fields_set else ():  # else see at_own_eps
            values.check_step_size(eps, self.step_size)
        return self
