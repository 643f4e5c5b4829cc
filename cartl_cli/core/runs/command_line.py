"""The command that makes a run again, from the settings it stored, or that goes on with it."""

import shlex
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cartl_cli.core.config import Kind, RunConfig, TransferConfig, own_eps
from cartl_cli.core.config.configure import flag, is_positional, own_batch_size
from cartl_cli.core.config.values import shown_pixels, write_list
from cartl_cli.core.runs.manifest import Run

PIXELS = {"eps", "step_size"}  # settings that are distances between images


def command_of(run: Run) -> str:
    """``cartl pretrain …`` with every setting that is no default, quoted for a shell."""
    manifest = run.manifest
    return command_line(manifest.kind, manifest.config, run.name, manifest.model.image_size)


def command_line(kind: Kind, config: RunConfig, name: str, side: int) -> str:
    """The same from settings, for a run of a name with images of a ``side``."""
    words: list[str] = ["cartl", kind]
    fields = type(config).model_fields
    for setting, value in config:
        if is_positional(fields[setting]):
            words += [value] if value else []
        elif value != _default(config, setting, fields[setting], side):
            words += _words(setting, value)
    return shlex.join([*words, "--name", name])


def _default(config: BaseModel, name: str, field: FieldInfo, side: int) -> object:
    """What a setting is when nobody gives it; the eps of an attack is always told."""
    if name == "batch_size" and isinstance(config, TransferConfig):
        return own_batch_size(side)
    if field.default_factory is None:
        return field.default
    settings = dict(config)
    return own_eps(settings["dataset"], settings.get("norm", "linf")) if name == "eps" else None


def _words(name: str, value: object) -> Iterator[str]:
    if isinstance(value, bool):
        yield flag(name) if value else flag("no_" + name)
        return
    yield flag(name)
    text = _pixels if name in PIXELS else _text
    if isinstance(value, tuple):
        yield write_list(map(text, value)) or "none"
    else:
        yield text(value)


def _text(value: object) -> str:
    """A value as text that is read back as exactly that value."""
    return repr(value) if isinstance(value, float) else str(value)


def _pixels(value: object) -> str:
    """The same of a distance between images: in 255ths where it is so many."""
    steps = shown_pixels(value) if isinstance(value, float) else ""
    exact = "/" in steps and int(steps.removesuffix("/255")) / 255 == value
    return steps if exact else _text(value)


def resuming(run: Run) -> str:
    """The command that goes on with an unfinished run."""
    return f"cartl {run.manifest.kind} --resume {shlex.quote(str(run.folder))}"
