"""What a sweep is asked for: a small TOML file, read and checked before it means anything."""

import difflib
import json
import os
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError

from cartl_cli.core import storage
from cartl_cli.core.config import CONFIGS, SETTINGS, Kind
from cartl_cli.core.config.fields import Seed
from cartl_cli.core.config.presets import sweep_preset, sweep_presets
from cartl_cli.core.config.values import decoded
from cartl_cli.core.errors import RunError, UsageError

MAX_SPEC = 100_000  # bytes
Settings = dict[str, Any]
KINDS: tuple[Kind, ...] = ("pretrain", "transfer", "attack")


class Layer(BaseModel):
    """Settings of each command, on top of a preset's."""

    model_config = SETTINGS

    preset: str | None = None
    pretrain: Settings = {}
    transfer: Settings = {}
    attack: Settings = {}

    def of(self, kind: Kind) -> Settings:
        """The settings of one command."""
        found: Settings = getattr(self, kind)
        return found


class Hours(BaseModel):
    """About how long one run of each kind takes, on what ``on`` names."""

    model_config = SETTINGS

    on: str
    pretrain: Annotated[float, Field(ge=0)]
    transfer: Annotated[float, Field(ge=0)]
    attack: Annotated[float, Field(ge=0)]


class Spec(BaseModel):
    """A sweep: ``base``, ``zipped`` lists, named ``methods``, each method with each seed.

    A list of values where a setting takes one means a run for each: the grid.
    """

    model_config = SETTINGS

    about: str = ""
    table: str | None = None
    hours: Hours | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    base: Layer = Layer()
    zipped: Layer = Layer()
    methods: dict[str, Layer] = {}


def open_spec(given: str) -> tuple[str, Spec]:
    """Name and content of a built-in sweep or a TOML file. Raises UsageError."""
    known = sweep_presets()
    path = Path(given).expanduser()
    if given in known:
        return given, parse_spec(sweep_preset(given), given)
    if not os.path.exists(path):
        close = difflib.get_close_matches(given, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UsageError(f"SPEC: no such file or built-in sweep: {given!r}{hint}")
    if os.path.isdir(path):
        raise UsageError(f"SPEC: {given!r} is a folder; give a TOML file in it")
    try:
        data, size = storage.read(path.resolve(), "SPEC", MAX_SPEC)
    except RunError as error:
        raise UsageError(str(error)) from None
    if size > MAX_SPEC:
        raise UsageError(f"SPEC: too large: {given!r} has {size:,} bytes, at most {MAX_SPEC:,}")
    return path.name.removesuffix(".toml"), parse_spec(data, given)


def parse_spec(data: bytes, shown: str) -> Spec:
    """The spec in a TOML text. Raises UsageError for the first thing that is wrong."""
    try:
        text = decoded(data)
    except ValueError as error:
        raise UsageError(f"SPEC: {shown!r} {error}") from None
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"SPEC: {shown!r} is not valid TOML: {error}") from None
    try:
        spec = Spec.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"SPEC: {shown!r}: {_explain(error.errors()[0])}") from None
    for problem in _problems(spec):
        raise UsageError(f"SPEC: {shown!r}: {problem}")
    return spec


def is_axis(kind: Kind, name: str, value: object) -> bool:
    """Whether a value is several of a setting: a list where one is taken, else a list of lists."""
    field = CONFIGS[kind].model_fields.get(name)
    if field is not None and _takes_list(field.annotation):
        return isinstance(value, list) and any(isinstance(item, list) for item in value)
    return isinstance(value, list)


def _takes_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple or any(map(_takes_list, get_args(annotation)))


def _problems(spec: Spec) -> list[str]:
    """What a grid cannot be made of, in words."""
    found = [f"seeds: {seed} is there twice" for seed in _repeated(list(spec.seeds))]
    layers = {"base": spec.base, "zipped": spec.zipped}
    layers |= {f"methods.{name}": layer for name, layer in spec.methods.items()}
    for place, layer in layers.items():
        for kind in KINDS:
            for name, value in layer.of(kind).items():
                problem = _problem(kind, name, value, place)
                found += [f"{place}.{kind}.{name}: {problem}"] if problem else []
    if spec.zipped.preset:
        found.append("zipped.preset: give it in [base] or a method")
    if found:
        return found
    lengths = {f"{kind}.{n}": len(v) for kind in KINDS for n, v in spec.zipped.of(kind).items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        found.append(f"zipped: lists must have one length, got {listed}")
    return found


def _problem(kind: Kind, name: str, value: Any, place: str) -> str:
    known = CONFIGS[kind].model_fields
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        return "unknown setting" + (f"; did you mean {close[0]!r}?" if close else "")
    if name == "seed":
        return "give seeds = [0, 1, 2] at the top of the file"
    if name == "run":
        return "a sweep attacks its own target models; drop it"
    if name == "k" and "auto" in (value if isinstance(value, list) else [value]):
        return "a sweep takes numbers, such as [4, 6]; to choose k: cartl sweep tune"
    if not is_axis(kind, name, value) and place != "zipped":
        return ""
    if not isinstance(value, list):
        return "must be a list, one value for each of the others'"
    if not value:
        return "an empty list leaves nothing to do"
    if place != "zipped":
        for twice in _repeated(value):
            return f"{twice!r} is there twice"
    return ""


def _repeated(values: list[Any]) -> list[Any]:
    counts = Counter(json.dumps(value, default=str) for value in values)
    return [value for value in values if counts[json.dumps(value, default=str)] > 1]


def _explain(error: Any) -> str:
    """One pydantic error as ``place: what is wrong``."""
    *place, last = error["loc"]
    where = ".".join(map(str, error["loc"]))
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']}"
    known = (Spec if not place else Hours if place[0] == "hours" else Layer).model_fields
    close = difflib.get_close_matches(str(last), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
    return f"unknown key {where!r}{hint}"
