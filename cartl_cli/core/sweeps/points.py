"""What a sweep knows of itself: its points, each of them one run, as kept in a JSON file.

runs/sweeps/table2.json     the plan
runs/pretrain-0a1b2c3d4e5f/ the run of the point 0a1b2c3d4e5f, of every sweep that has it
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from cartl_cli.core import storage
from cartl_cli.core.config import CONFIGS, SETTINGS, Kind, RunConfig
from cartl_cli.core.config.configure import HARMLESS
from cartl_cli.core.config.values import STORED
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.runs.parsing import parse_json, read_json

FOLDER = "sweeps"  # in the folder of the runs
MAX_POINTS = 500
SWEEP_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,59}"
PLACES = HARMLESS | {"source", "run", "sync_bn", "final_iterate"}
"""Settings that say where a run is made or found, not what it is; each is made by one process.

``final_iterate`` adds a number of no report; once it was always there.
"""

_OF_TRAINING: dict[str, object] = {"split_seed": 0, "skip_bad": False, "balance": False}
ADDED: dict[Kind, dict[str, object]] = {
    "pretrain": {
        "replays": None,
        "trades_beta": None,
        "awp_gamma": 0.0,
        "ema": 0.0,
        "fdm_at": None,
        "resize": "squash",
        **_OF_TRAINING,
    },
    "transfer": {
        "method": "natural",
        "eps_warmup": 0.0,
        "awp_gamma": 0.0,
        "ema": 0.0,
        "head_init": "linear",
        **_OF_TRAINING,
        **dict.fromkeys(
            (
                *("radius", "latent_steps", "eps", "step_size", "pgd_steps", "trades_beta"),
                *("keep_lambda", "keep_at", "keep_distance", "interpolate"),
            )
        ),
    },
    "attack": {"skip_bad": False},
}
"""Settings that came later, as all was before them: such a value leaves an id as it was."""

PointId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = str | int | float | bool | None


class Point(BaseModel):
    """One run of a sweep: ``needs`` is the id of the run whose model it takes.

    A transfer from a run that was there before needs none, and has the sha256 of that run's
    weights. ``labels`` says in flat words what distinguishes it, for tables.
    """

    model_config = SETTINGS

    id: PointId
    kind: Kind
    config: RunConfig
    needs: PointId | None = None
    source_sha256: Sha256 | None = None
    labels: Annotated[dict[str, Label], Field(max_length=40)] = {}

    @property
    def run(self) -> str:
        """The name of its run folder."""
        return f"{self.kind}-{self.id}"

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        if not isinstance(self.config, CONFIGS[self.kind]):
            raise ValueError(f"config is not that of a {self.kind} run")
        if self.source_sha256 is not None and self.kind != "transfer":
            raise ValueError(f"source_sha256: a {self.kind} point has one")
        taken = [model for model in (self.needs, self.source_sha256) if model is not None]
        if len(taken) != (0 if self.kind == "pretrain" else 1):
            raise ValueError(f"needs: a {self.kind} point has {' and '.join(taken) or None}")
        return self


class Sweep(BaseModel):
    """A planned sweep: its points, what is needed before what needs it.

    ``table`` names the table or figure of the paper that it repeats.
    """

    model_config = SETTINGS

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=rf"^{SWEEP_NAME}$")]
    created: str
    points: Annotated[tuple[Point, ...], Field(min_length=1, max_length=MAX_POINTS)]
    table: Annotated[str, Field(max_length=60)] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        kinds: dict[str, str] = {}
        for point in self.points:
            if point.id in kinds:
                raise ValueError(f"points: {point.id} is there twice")
            needed = {"transfer": ("pretrain",), "attack": ("pretrain", "transfer")}
            if point.needs and kinds.get(point.needs) not in needed[point.kind]:
                raise ValueError(f"points: {point.id} comes before what it needs, {point.needs}")
            kinds[point.id] = point.kind
        return self


def point_id(kind: Kind, config: RunConfig, taken: str | None) -> str:
    """12 hex digits that are the same wherever and whenever the same run is asked for.

    ``taken`` is whose model it takes: the id of a point, or the sha256 of a run's weights.
    """
    dumped = config.model_dump(mode="json", exclude=PLACES)
    if kind == "transfer":  # a setting that had another name
        dumped["head_epochs"] = dumped.pop("head_first")
    added = {"compile": None, **ADDED.get(kind, {})}
    settings = {name: v for name, v in dumped.items() if name not in added or v != added[name]}
    return identity_of(kind, settings, taken)


def identity_of(*what: object) -> str:
    """12 hex digits that are the same wherever the same is asked for."""
    content = json.dumps(what, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def sweep_path(runs_dir: Path, name: str) -> Path:
    """Where a sweep of this name is kept."""
    return runs_dir / FOLDER / f"{name}.json"


def sweep_runs(runs_dir: Path) -> set[str]:
    """The names of the runs of all sweeps: the points of each plan, and what else one started."""
    folder = runs_dir / FOLDER
    names = {settings.stem for settings in folder.glob("*/*.json")}
    for path in folder.glob("*.json"):
        with suppress(RunError):
            names |= {point.run for point in read_sweep(path).points}
    return names


def read_sweep(path: Path) -> Sweep:
    """A stored sweep. Raises RunError with the first thing that is wrong."""
    return _parse(read_json(path, "sweep"), path)


def write_sweep(runs_dir: Path, sweep: Sweep) -> Path:
    """Keep a sweep beside its runs. Raises UsageError if it is too large to be read again."""
    path = sweep_path(runs_dir, sweep.name)
    data = sweep.model_dump_json().encode()
    try:
        parse_json(data, "sweep", path)
    except RunError as error:
        raise UsageError(f"{error}; split the sweep") from None
    storage.make_folder(path.parent)
    storage.write_whole(path, data)
    return path


def _parse(content: object, path: Path) -> Sweep:
    try:
        return Sweep.model_validate(content, context=STORED)
    except UsageError as error:  # an unknown architecture
        raise RunError(f"sweep: {error}: {path}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise RunError(f"sweep is not valid: {reason}: {path}") from None
