"""Layers of settings → one configuration, and one clear line for what is wrong with it."""

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cartl_cli.core.config import (
    POSITIONAL,
    AttackConfig,
    ImportConfig,
    PretrainConfig,
    TransferConfig,
    own_eps,
)
from cartl_cli.core.errors import UsageError

Config = TypeVar("Config", PretrainConfig, TransferConfig, AttackConfig, ImportConfig)
AnyConfig = TypeVar("AnyConfig", bound=BaseModel)

HARMLESS = {"device", "save_every"}  # may change when a run goes on


def configure(config_type: type[AnyConfig], *layers: Mapping[str, Any]) -> AnyConfig:
    """One configuration from layers of settings, a later one overrides an earlier one.

    Raises UsageError with one line for the first setting that is wrong.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    try:
        return config_type.model_validate(merged)
    except ValidationError as error:
        raise UsageError(_explain(error.errors()[0], list(config_type.model_fields))) from None


def at_own_eps(config: AttackConfig, dataset: str) -> AttackConfig:
    """The attack with the eps of the data set that is attacked, unless one was given."""
    if "eps" in config.model_fields_set:
        return config
    return configure(AttackConfig, config.model_dump(), {"eps": [own_eps(dataset, config.norm)]})


def at_own_batch_size(config: TransferConfig, side: int) -> TransferConfig:
    """The training with the batch size of images of this side, unless one was given."""
    if "batch_size" in config.model_fields_set:
        return config
    return config.model_copy(update={"batch_size": own_batch_size(side)})


def own_batch_size(side: int) -> int:
    """What a transfer of images of this side takes.

    Above 64 pixels a batch has as many pixels as 16 images of 224, or fewer: it bounds the memory.
    """
    usual: int = TransferConfig.model_fields["batch_size"].default
    fits = usual if side <= 64 else 1 << int(math.log2(16 * 224**2 / side**2))
    return min(usual, max(2, fits))


def fitting(config: Config, images: int) -> Config:
    """The settings with no batch larger than the images that a training has; others as they are."""
    if isinstance(config, AttackConfig | ImportConfig) or config.batch_size <= images:
        return config
    return config.model_copy(update={"batch_size": images})


def check_same(stored: BaseModel, given: BaseModel, extend: bool) -> None:
    """Refuse to go on with a run under other settings than its own.

    Only what is ``HARMLESS`` may differ and, with ``extend``, ``epochs`` may grow. Raises
    UsageError naming every other difference.
    """
    old, new = stored.model_dump(), given.model_dump()
    changed = {name for name in old if old[name] != new[name]} - HARMLESS
    longer = "epochs" in changed and new["epochs"] > old["epochs"]
    if longer and extend:
        changed.remove("epochs")
    elif longer and changed == {"epochs"}:
        raise UsageError(
            f"--epochs: the run has {old['epochs']}, you gave {new['epochs']}; add --extend to "
            "train longer"
        )
    if changed:
        listed = ", ".join(f"{flag(name)} {old[name]} -> {new[name]}" for name in sorted(changed))
        raise UsageError(f"differs from the run: {listed}; drop it, or start a new run")
    if longer:
        _check_phases(stored, given)


def _check_phases(stored: BaseModel, given: BaseModel) -> None:
    """Refuse more epochs where the phase of the classifier alone would move under the run."""
    if isinstance(stored, TransferConfig) and isinstance(given, TransferConfig):
        old, new = stored.head_phase, given.head_phase
        if old != new:
            raise UsageError(
                f"--extend: the classifier alone is trained for half of --epochs, which would move "
                f"from {old} to {new}; start a new run (one with --head-first can be extended)"
            )


def flag(field: str) -> str:
    """``fdm_lambda`` → ``--fdm-lambda``."""
    return "--" + field.replace("_", "-")


def is_positional(field: FieldInfo) -> bool:
    """Whether a field is an argument of the command line rather than a flag."""
    return field.json_schema_extra == POSITIONAL


def _explain(error: Any, known: list[str]) -> str:
    """One pydantic error as ``--flag: what is wrong``."""
    kind, context = error["type"], error.get("ctx", {})
    field = str(error["loc"][0]) if error["loc"] else ""
    given = f", got {error['input']!r}"
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(field, known, n=1)
        return f"unknown setting {field!r}" + (f"; did you mean {close[0]!r}?" if close else "")
    if kind == "value_error":
        reason = str(context["error"])
        if not field:  # a check of several fields names the one to mend itself
            field, _, reason = reason.partition(": ")
            given = ""
        elif reason.startswith("--"):
            return reason
        return f"{flag(field)}: {reason}{given}"
    symbols = {
        "greater_than": ("gt", ">"),
        "greater_than_equal": ("ge", ">="),
        "less_than": ("lt", "<"),
        "less_than_equal": ("le", "<="),
    }
    if kind in symbols:
        key, symbol = symbols[kind]
        return f"{flag(field)}: must be {symbol} {context[key]:g}{given}"
    if kind == "finite_number":
        return f"{flag(field)}: must be a finite number{given}"
    if kind == "literal_error":
        names = [name.strip(" '") for name in re.split(r",| or ", context["expected"])]
        close = difflib.get_close_matches(str(error["input"]), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{flag(field)}: choose {context['expected']}{given}{hint}"
    return f"{flag(field)}: {error['msg']}{given}"
