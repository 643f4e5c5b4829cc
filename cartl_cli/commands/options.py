"""The flags: those that commands share, and those made from a config's fields."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cartl_cli.commands.panels import in_panels
from cartl_cli.core.config.configure import flag, is_positional
from cartl_cli.core.config.values import shown_pixels

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="A built-in set of settings: paper; for pretrain also fast-robust and "
        "fast-robust-cpu, for transfer paper-lwf.",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Settings from a TOML or JSON file, or from a run's manifest."),
]
RunName = Annotated[str | None, typer.Option("--name", help="Name of the new run folder.")]
Resume = Annotated[
    str | None, typer.Option("--resume", help="Go on with an unfinished run: name, number or path.")
]
Extend = Annotated[
    bool, typer.Option("--extend", help="With --resume and more --epochs: train longer.")
]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder that holds the runs.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of what is downloaded (default: in the cache)."),
]
NoDownload = Annotated[bool, typer.Option("--no-download", help="Download nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@dataclass(frozen=True)
class Request:
    """What the commands that make a run are asked for; ``settings`` is what was typed, as text."""

    settings: dict[str, Any]
    preset: Preset = None
    config: ConfigFile = None
    name: RunName = None
    runs_dir: RunsDir = Path("runs")
    resume: Resume = None
    data_dir: DataDir = None
    no_download: NoDownload = False


def flags_from(config_type: type[BaseModel]) -> Callable[[Callable[..., Any]], Any]:
    """Give a command one flag for every field of ``config_type``.

    The command's parameter ``settings`` receives what was typed, as text by field name; parsing
    and bounds are the config's. Help text and default come from the field. A command with a
    ``request`` instead gets the options of ``Request``, too.
    """

    def decorate(command: Callable[..., Any]) -> Any:
        fields = config_type.model_fields
        own = dict(inspect.signature(command).parameters)
        shared = dict(inspect.signature(Request).parameters) if "request" in own else {}
        shared.pop("settings", None)

        @functools.wraps(command)
        def wrapper(**given: Any) -> Any:
            typed = {name: given.pop(name) for name in fields}
            settings = {name: text for name, text in typed.items() if text is not None}
            if "request" in own:
                request = Request(settings, **{name: given.pop(name) for name in shared})
                return command(request, **given)
            return command(settings, **given)

        made = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field)
            )
            for name, field in fields.items()
        ]
        kept = [p for name, p in (shared | own).items() if name not in ("settings", "request")]
        in_panels(wrapper, [*kept, *made])
        del wrapper.__wrapped__  # Typer would otherwise read the signature behind it
        return wrapper

    return decorate


def _option(name: str, field: FieldInfo) -> Any:
    parts = _parts(field.annotation)
    choices = next((part for part in parts if get_origin(part) is Literal), None)
    if int in parts or float in parts:  # or a number
        choices = None
    if is_positional(field):
        return Annotated[str | None, typer.Argument(help=field.description, show_default=False)]
    if bool in parts:
        switch = f"{flag(name)}/{flag('no_' + name)}"
        return Annotated[
            bool | None, typer.Option(switch, help=field.description, show_default=False)
        ]
    several = any(get_origin(part) is tuple for part in parts)
    kind: Any = str if choices is None or several else choices
    shown = "" if field.default_factory else _shown_default(name, field.default)
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


def _metavar(kind: Any, parts: tuple[Any, ...]) -> str | None:
    if kind is not str:
        return "|".join(get_args(kind))
    if any(get_origin(part) is tuple for part in parts):
        return "A,B,..."
    return "INTEGER" if int in parts else "NUMBER" if float in parts else "TEXT"


def _shown_default(name: str, default: Any) -> str:
    if default is None or default is False or default == ():
        return ""
    values = default if isinstance(default, tuple) else (default,)
    return ",".join(shown_pixels(value) if name == "eps" else f"{value}" for value in values)
