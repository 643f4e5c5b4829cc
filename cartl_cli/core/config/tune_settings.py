"""The settings of ``cartl sweep tune``."""

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from cartl_cli.core.config import fields, values
from cartl_cli.core.config.fields import Whole
from cartl_cli.core.config.values import SETTINGS
from cartl_cli.core.registry.transfer_methods import TRANSFER_METHODS

Want = Literal["balanced", "robust", "clean"]
UNITS = {"s": 1, "m": 60, "h": 3600}
ADDED = ("neft", "keep")  # additions, each to vanilla transfer

if TYPE_CHECKING:
    Recipe = str
else:
    Recipe = Literal[*TRANSFER_METHODS, *ADDED]


def check_budget(text: str) -> str:
    """``"90s"``, ``"20m"`` or ``"2h"``, above zero. Raises ValueError."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,3})?[smh]", text) or float(text[:-1]) == 0:
        raise ValueError("must be a time above 0, such as 90s, 20m or 2h")
    return text


class TuneConfig(BaseModel):
    """A search for k, the method and its settings, on the training images alone."""

    model_config = SETTINGS

    source: fields.Source = ""
    dataset: fields.Dataset = "shapes-target"
    classes: fields.Classes = ()
    skip_bad: fields.SkipBad = False
    balance: fields.Balance = False
    budget: Annotated[
        str,
        AfterValidator(check_budget),
        Field(description="Time for the whole search, such as 90s, 20m or 2h."),
    ] = "20m"
    want: Annotated[
        Want,
        Field(description="What counts: robust accuracy, clean accuracy, or the mean of both."),
    ] = "balanced"
    methods: Annotated[
        tuple[Recipe, ...],
        BeforeValidator(values.parse_list),
        Field(
            min_length=1,
            description=f"Methods to try, as a,b: {', '.join(TRANSFER_METHODS)}, neft "
            "or keep (both natural).",
        ),
    ] = ("natural", "fast", "latent", "neft", "keep")
    k: Annotated[
        tuple[Annotated[Whole, Field(ge=1)], ...],
        BeforeValidator(values.parse_list),
        Field(description="Values of k to try, as a,b (default: four, up to all blocks)."),
    ] = ()
    batch_size: fields.BatchSize = 64
    seed: fields.Seed = 0
    device: fields.Device = "auto"

    @property
    def seconds(self) -> float:
        """The budget in seconds."""
        return float(self.budget[:-1]) * UNITS[self.budget[-1]]

    @property
    def shared(self) -> dict[str, object]:
        """The settings that every transfer of the search is made with.

        A batch size only if it was given: the source model's images have their own.
        """
        given = "batch_size" in self.model_fields_set
        names = {*TuneConfig.model_fields} & _OF_TRANSFER - (set() if given else {"batch_size"})
        return self.model_dump(include=names)


_OF_TRANSFER = {
    *("source", "dataset", "classes", "skip_bad", "balance", "batch_size", "seed", "device")
}
