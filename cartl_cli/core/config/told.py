"""The settings of a run, to be shown to a reader of what it made."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from cartl_cli.core.config.idle import idle
from cartl_cli.core.config.values import shown_pixels, write_list

UNTOLD = {
    *("dataset", "source", "checkpoint", "origin", "licence", "threat"),  # told in sentences
    *("arch", "classes", "device", "save_every"),
}


class Told(NamedTuple):
    """A setting, its value as text, and what it means: the start of its description."""

    name: str
    value: str
    meaning: str


def last_blocks(k: int) -> str:
    """``the last 3 blocks``, or ``the last block``."""
    return "the last block" if k == 1 else f"the last {k} blocks"


def told_settings(config: BaseModel) -> Iterator[Told]:
    """Each setting that had an effect, without those told elsewhere (``UNTOLD``).

    A part, weight or decay of 0 had none.
    """
    untold = UNTOLD | idle(config).keys()
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name in untold or (not value and type(value) is not int):  # 0 is a seed too
            continue
        shown = write_list(value) if isinstance(value, tuple) else f"{value}"
        if name in ("eps", "step_size"):
            shown = shown_pixels(value)
        meaning = re.sub(r" \(default: .*\)", "", field.description or "").partition(". ")[0]
        yield Told(name, shown, meaning.rstrip("."))
