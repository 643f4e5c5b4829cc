"""What stands beside weights about their network: a run's manifest, or a hub's ``config.json``."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cartl_cli.core.config import ImportConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.errors import DataError
from cartl_cli.core.imports.unwrapping import Normalization
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.parsing import read_json
from cartl_cli.core.runs.reader import MANIFEST, read_run
from cartl_cli.core.runs.results import Distances

WEIGHTS, CONFIG = "model.safetensors", "config.json"
Three = Annotated[tuple[float, ...], Field(min_length=3, max_length=3)]
Above0 = Annotated[float, Field(gt=0)]
_Name = Annotated[str, Field(pattern=r"\S")]


@dataclass(frozen=True)
class Told:
    """What is said of a file of weights; nothing, where nothing stands beside it.

    ``settings`` are some of ``ImportConfig``. ``convex_blocks``: last blocks whose residual sums
    are means. ``sha256``: the first digits of the file's. ``claim``: how accurate and robust its
    maker found it, in words. ``moved``: how far adversarial images move each of its blocks.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    normalization: Normalization | None = None
    convex_blocks: int = 0
    sha256: str = ""
    claim: str = ""
    moved: Distances = ()


def completed(config: ImportConfig, told: Told) -> ImportConfig:
    """The settings with what is told where nothing was given. Raises UsageError."""
    given, settings = config.model_dump(exclude_unset=True), dict(told.settings)
    if given.keys() & {"image_size", "resize", "shorter_side"}:
        settings.pop("shorter_side", None)
    return configure(ImportConfig, settings, given)


def told_beside(path: Path) -> Told:
    """What stands beside a file. Raises RunError or DataError for what is damaged."""
    if path.name != WEIGHTS:
        return Told()
    if path.with_name(MANIFEST).is_file():
        return _of_run(read_run(path.parent))
    if path.with_name(CONFIG).is_file():
        where = path.with_name(CONFIG)
        content = read_json(where, CONFIG)
        if not isinstance(content, dict):
            raise DataError(f"{str(where)!r} holds no JSON object; get the folder again")
        try:
            return _of_config(content)
        except ValidationError as error:
            first = error.errors()[0]
            what = ".".join(map(str, first["loc"]))
            wrong = "is missing" if first["type"] == "missing" else f"cannot be {first['input']!r}"
            raise DataError(f"{str(where)!r}: {what} {wrong:.100}; get the folder again") from None
    return Told()


def _of_run(run: Run) -> Told:
    """What a run knows of its model."""
    manifest = run.manifest
    model, weights = manifest.model, manifest.weights
    return Told(
        {"arch": model.arch, "k": manifest.k, "origin": f"run {run.name}"}
        | model.preprocessing.model_dump(),
        model.classes,
        convex_blocks=model.convex_blocks,
        sha256=weights.sha256 if weights else "",
        moved=run.seen.moved,
    )


class _Foreign(BaseModel):
    """Of what somebody else wrote only the fields here count."""

    model_config = ConfigDict(extra="ignore", strict=False)


class _Preprocessing(Preprocessing):
    model_config = ConfigDict(extra="ignore")


class _Measured(_Foreign):
    data: str
    n: Annotated[int, Field(gt=0)]
    clean_accuracy: Annotated[float, Field(ge=0, le=1)]
    robust_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    attacks: tuple[str, ...] = ()
    steps: int = 0
    eps: Annotated[float, Field(ge=0)] = 0.0
    checks: str = ""

    @property
    def claim(self) -> str:
        """In words."""
        found = f"{100 * self.clean_accuracy:.1f} % clean"
        if self.robust_accuracy is not None:
            stepping = {name for name, one in EVALUATION_ATTACKS.items() if one.takes == "steps"}
            attacks = ", ".join(
                f"{attack}-{self.steps}" if attack in stepping else attack
                for attack in self.attacks
            )
            eps = shown_pixels(self.eps)
            found += f", {100 * self.robust_accuracy:.1f} % under {attacks} at eps {eps}"
        checks = f"; checks of the attack: {self.checks}" if self.checks else ""
        return f"{found} ({self.n:,} images of {self.data}{checks})"


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("a name comes twice")
    return names


def _at_largest_eps(attack: Any) -> Any:
    """What an exported attack found, as ``_Measured`` has it: the last eps is the largest."""
    match attack:
        case {"by_eps": [*_, {**largest}]}:
            return {**attack, **largest}
    return attack


class _Exported(_Foreign):
    """The ``config.json`` of ``cartl export --format hub``."""

    run: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    architecture: str
    convex_blocks: Annotated[int, Field(ge=0)] = 0
    classes: Annotated[tuple[_Name, ...], AfterValidator(_each_once)]
    preprocessing: _Preprocessing
    licence: str = ""
    threat: str = ""
    claim: str = ""
    measured: _Measured | None = None
    attack: Annotated[_Measured | None, BeforeValidator(_at_largest_eps)] = None
    moved: Distances = ()

    @property
    def claims(self) -> str:
        """All figures in words, those of its own making before what it repeats of another's."""
        worked = self.attack if self.attack and self.attack.checks != "invalid" else None
        figures = [found.claim for found in (self.measured, worked) if found]
        return "; ".join(figures) or self.claim


class _Pretrained(_Foreign):
    input_size: Annotated[tuple[int, ...], Field(min_length=3, max_length=3)]
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    crop_mode: str = "center"
    interpolation: str = "bicubic"
    mean: Three
    std: Annotated[tuple[Above0, ...], Field(min_length=3, max_length=3)]
    license: str = ""


class _Timm(_Foreign):
    """The ``config.json`` of a network of timm on a hub."""

    architecture: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    label_names: tuple[str, ...] = ()
    pretrained_cfg: _Pretrained


def _of_config(content: dict[str, Any]) -> Told:
    """What a ``config.json`` says, if it is of cartl or of timm. Raises ValidationError."""
    if "cartl" in content:
        ours = _Exported.model_validate(content)
        return Told(
            {
                "arch": ours.architecture,
                "origin": f"run {ours.run}",
                "licence": ours.licence,
                "threat": ours.threat,
            }
            | ours.preprocessing.model_dump(),
            ours.classes,
            convex_blocks=ours.convex_blocks,
            sha256=ours.sha256,
            claim=ours.claims,
            moved=ours.moved,
        )
    if "pretrained_cfg" not in content:
        return Told()
    theirs = _Timm.model_validate(content)
    taken = theirs.pretrained_cfg
    return Told(
        {"arch": f"timm:{theirs.architecture}", "licence": taken.license}
        | preprocessed(
            taken.input_size[-1],
            None if taken.crop_mode == "squash" else taken.input_size[-1] / taken.crop_pct,
            taken.interpolation,
        ),
        theirs.label_names,
        Normalization(taken.mean, taken.std),
    )


def preprocessed(size: int, shorter: float | None, interpolation: str) -> dict[str, Any]:
    """The settings of images of a ``size`` that are cropped of a ``shorter`` side, or squashed."""
    known = {"interpolation": interpolation} if interpolation in ("bilinear", "bicubic") else {}
    if shorter is None:
        return {"image_size": size, "resize": "squash", **known}
    return {"image_size": size, "resize": "crop", "shorter_side": math.floor(shorter), **known}
