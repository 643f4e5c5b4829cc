"""What the commands share: flags made from a config's fields, layers of settings, places."""

import functools
import inspect
import json
import os
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cartl_cli.core.config import (
    BUILT_IN_DATA,
    AttackConfig,
    PretrainConfig,
    TransferConfig,
)
from cartl_cli.core.configure import flag
from cartl_cli.core.errors import UsageError
from cartl_cli.core.values import shown_pixels

Located = TypeVar("Located", PretrainConfig, TransferConfig, AttackConfig)

Preset = Annotated[str | None, typer.Option("--preset", help="A built-in set of settings: paper.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Settings from a TOML or JSON file, or from a run's manifest."),
]
RunName = Annotated[str | None, typer.Option("--name", help="Name of the new run folder.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder that holds the runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def flags_from(config_type: type[BaseModel]) -> Callable[[Callable[..., None]], Any]:
    """Give a command one flag for every field of ``config_type``.

    The command's parameter ``settings`` receives what was typed, as text by field name; parsing
    and bounds are the config's. Help text and default come from the field.
    """

    def decorate(command: Callable[..., None]) -> Any:
        fields = config_type.model_fields

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            settings = {name: given.pop(name) for name in fields}
            command({name: text for name, text in settings.items() if text is not None}, **given)

        own = [
            parameter
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "settings"
        ]
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_option(name, field),
            )
            for name, field in fields.items()
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + made
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        del wrapper.__wrapped__  # Typer would otherwise read the signature behind it
        return wrapper

    return decorate


def _option(name: str, field: FieldInfo) -> Any:
    parts = _parts(field.annotation)
    choices = next((part for part in parts if get_origin(part) is Literal), None)
    kind: Any = str if choices is None or get_origin(field.annotation) is tuple else choices
    shown = _shown_default(name, field.default)
    return Annotated[
        kind | None,
        typer.Option(
            flag(name),
            help=f"{field.description} (default: {shown})" if shown else field.description,
            show_default=False,
            metavar=_metavar(kind, parts),
        ),
    ]


def _parts(annotation: Any) -> tuple[Any, ...]:
    """An annotation and everything it is made of."""
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return (annotation, *(found for part in inner for found in _parts(part)))


def _metavar(kind: Any, parts: tuple[Any, ...]) -> str:
    if kind is not str:
        return "|".join(get_args(kind))
    if any(get_origin(part) is tuple for part in parts):
        return "A,B,..."
    return "INTEGER" if int in parts else "NUMBER" if float in parts else "TEXT"


def _shown_default(name: str, default: Any) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return shown_pixels(default) if name == "eps" else f"{default}"


def layers(command: str, preset: str | None, config: Path | None) -> list[dict[str, Any]]:
    """The settings below the flags: the preset, then the file. Raises UsageError."""
    found = []
    if preset is not None:
        found.append(_read_preset(preset, command))
    if config is not None:
        found.append(_read_settings(config))
    return found


def _read_preset(name: str, command: str) -> dict[str, Any]:
    folder = resources.files("cartl_cli") / "presets"
    known = sorted(
        p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")
    )
    if name not in known:
        raise UsageError(f"--preset: no preset {name!r}; known: {', '.join(known)}")
    content = tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))
    settings: dict[str, Any] = content.get(command, {})
    return settings


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"--config: no such file: {str(path)!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: cannot read {str(path)!r}: {error}") from None
    try:
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise UsageError(f"--config: {str(path)!r}: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"--config: {str(path)!r} must hold settings by name")
    settings = content.get("config", content)  # a run's manifest keeps its settings there
    return settings if isinstance(settings, dict) else content


def cache_dir() -> Path:
    """Where decoded images are kept: ``$XDG_CACHE_HOME/cartl`` or ``~/.cache/cartl``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("~/.cache").expanduser()) / "cartl"


def located(config: Located) -> Located:
    """The config with a data set given as a path made absolute, so that the run can be read
    from any folder.
    """
    name = config.dataset
    if name is None or name in BUILT_IN_DATA or not Path(name).exists():
        return config
    return config.model_copy(update={"dataset": str(Path(name).resolve())})
