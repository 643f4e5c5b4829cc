"""The settings of a run, to be shown to a reader of what it made."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from cartl_cli.core.config.values import shown_pixels, write_list

UNTOLD = {
    *("dataset", "source", "checkpoint", "origin", "licence", "threat"),  # told in sentences
    *("arch", "classes", "device", "save_every"),
}
OF_STEPS = {"milestones", "warmup_epochs"}
"""What only ``--schedule step`` looks at."""


class Told(NamedTuple):
    """A setting, its value as text, and what it means: the start of its description."""

    name: str
    value: str
    meaning: str


def told_settings(config: BaseModel) -> Iterator[Told]:
    """Each setting that had an effect, without those told elsewhere (``UNTOLD``).

    A part, weight or decay of 0 had none.
    """
    untold = UNTOLD if getattr(config, "schedule", "step") == "step" else UNTOLD | OF_STEPS
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name in untold or (not value and type(value) is not int):  # 0 is a seed too
            continue
        shown = write_list(value) if isinstance(value, tuple) else f"{value}"
        if name in ("eps", "step_size"):
            shown = shown_pixels(value)
        meaning = re.sub(r" \(default: .*\)", "", field.description or "").partition(". ")[0]
        yield Told(name, shown, meaning.rstrip("."))
