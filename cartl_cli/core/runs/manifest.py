"""What a run knows of itself: the content of its JSON files.

To read them loads no torch, so that thousands are read in seconds.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, Field, SkipValidation, model_validator

from cartl_cli.core.config import (
    CONFIGS,
    SETTINGS,
    AttackConfig,
    ImportConfig,
    Kind,
    PretrainConfig,
    RunConfig,
    TransferConfig,
)
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.errors import RunError
from cartl_cli.core.runs.results import AttackResults, Count, ImportResults, TrainingResults
from cartl_cli.core.storage import FileRecord

if TYPE_CHECKING:
    from cartl_cli.core.data.split import DataSet

SCHEMA_VERSION = 5

Status = Literal["running", "completed", "failed", "diverged", "interrupted"]
Identity = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ModelSpec(BaseModel):
    """What rebuilds the network that the weights belong to."""

    model_config = SETTINGS

    arch: str
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=25_000)]
    preprocessing: Preprocessing
    convex_blocks: Annotated[int, Field(ge=0)] = 0

    @property
    def image_size(self) -> int:
        """The side of its images in pixels."""
        return self.preprocessing.image_size


class DataRecord(BaseModel):
    """The data a run was trained and measured on.

    The counts are of the images of each class; of an older run there are none.
    """

    model_config = SETTINGS

    name: str
    fingerprint: str
    train_images: int
    measured: str
    measured_images: int
    augment: tuple[str, ...]
    notes: tuple[str, ...]
    train_counts: tuple[Count, ...] = ()
    measured_counts: tuple[Count, ...] = ()


class SourceRecord(BaseModel):
    """The run that a target model started from or that an attack attacks, and its model's sha256.

    ``k`` and ``fdm_lambda`` are those of the source model's training.
    """

    model_config = SETTINGS

    run: str
    sha256: str
    k: int
    fdm_lambda: float | None


class Original(BaseModel):
    """The file that an imported model is from, and what was decided in reading it.

    ``claim``: how accurate and robust its maker found it, in words, if that stands beside it.
    """

    model_config = SETTINGS

    file: str
    size: Count
    sha256: Sha256
    remarks: tuple[str, ...]
    claim: str = ""


class Position(BaseModel):
    """Where a run stands: steps done (batches, of an attack) and seconds spent on them.

    A training also keeps its sums over the images of the epoch so far.
    """

    model_config = SETTINGS

    step: Count = 0
    seconds: Annotated[float, Field(ge=0)] = 0.0
    seen: Count = 0
    loss_sum: float = 0.0
    correct: dict[str, Count] = {}


class Checkpoint(BaseModel):
    """A saved state of the run ``run`` (its id), as stored in ``checkpoint.json``."""

    model_config = SETTINGS

    schema_version: Literal[2] = 2
    run: Identity
    position: Position
    files: Annotated[tuple[FileRecord, ...], Field(max_length=10)]


_RESULTS: dict[Kind, type[BaseModel]] = {
    "pretrain": TrainingResults,
    "transfer": TrainingResults,
    "attack": AttackResults,
    "import": ImportResults,
}


class Manifest(BaseModel):
    """A run, as stored in its ``manifest.json``. ``k`` and ``model`` are those of its model.

    ``radius``: of ``--method latent``, in parts of the features' norm. ``seal``: of a finished run
    (``core.runs.seal``).
    """

    model_config = SETTINGS

    schema_version: Literal[5] = 5
    id: Identity = Field(default_factory=lambda: secrets.token_hex(6))
    kind: Kind
    number: Count = 0
    status: Status = "running"
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    config: SkipValidation[RunConfig]  # it is valid: see ``parse_manifest``
    k: Annotated[int, Field(ge=1)]
    model: ModelSpec
    data: DataRecord
    source: SourceRecord | None = None
    original: Original | None = None
    radius: Annotated[float, Field(gt=0)] | None = None
    weights: FileRecord | None = None
    outcomes: FileRecord | None = None
    adversarial: FileRecord | None = None
    results: TrainingResults | AttackResults | ImportResults | None = None
    versions: dict[str, str] = {}
    seal: Sha256 | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        results = _RESULTS[self.kind]
        if not isinstance(self.config, CONFIGS[self.kind]):
            raise ValueError(f"config is not that of a {self.kind} run")
        if self.results is not None and not isinstance(self.results, results):
            raise ValueError(f"results are not those of a {self.kind} run")
        return self


@dataclass(frozen=True)
class Run:
    """A run folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def making(self) -> PretrainConfig | TransferConfig | ImportConfig:
        """The settings that the run's model was made with. Raises RunError if it has none."""
        if isinstance(self.manifest.config, AttackConfig):
            raise RunError(f"run {self.name!r} is an attack, not a training")
        return self.manifest.config

    @property
    def training(self) -> PretrainConfig | TransferConfig:
        """The settings of a training. Raises RunError if the run is none."""
        config = self.making
        if isinstance(config, ImportConfig):
            raise RunError(f"run {self.name!r} is an import, not a training")
        return config

    @property
    def attack(self) -> AttackConfig:
        """The settings of an attack. Raises RunError if the run is none."""
        if not isinstance(self.manifest.config, AttackConfig):
            raise RunError(f"run {self.name!r} is no attack")
        return self.manifest.config

    @property
    def source(self) -> SourceRecord:
        """The run whose model this one took. Raises RunError if it took none."""
        if self.manifest.source is None:
            raise RunError(f"run {self.name!r} does not say which run its model is from")
        return self.manifest.source

    @property
    def results(self) -> TrainingResults:
        """What a training measured. Raises RunError if the run is no finished training."""
        if not isinstance(self.manifest.results, TrainingResults):
            raise RunError(f"run {self.name!r} has no training results ({self.manifest.status})")
        return self.manifest.results

    @property
    def seen(self) -> "TrainingResults | ImportResults":
        """What was measured when its model was made. Raises RunError if that is not finished."""
        if isinstance(self.manifest.config, ImportConfig):
            return self.import_results
        return self.results

    @property
    def import_results(self) -> ImportResults:
        """What was seen of an imported model. Raises RunError if the run is no finished import."""
        if not isinstance(self.manifest.results, ImportResults):
            raise RunError(f"run {self.name!r} is no finished import ({self.manifest.status})")
        return self.manifest.results

    @property
    def attack_results(self) -> AttackResults:
        """What an attack found. Raises RunError if the run is no finished attack."""
        if not isinstance(self.manifest.results, AttackResults):
            raise RunError(f"run {self.name!r} has no attack results ({self.manifest.status})")
        return self.manifest.results


def data_record(data: "DataSet", augment: tuple[str, ...]) -> DataRecord:
    """What the manifest keeps of a data set."""
    train, measured = data.class_counts
    return DataRecord(
        name=data.name,
        fingerprint=data.fingerprint(),
        train_images=len(data.train),
        measured=data.measured,
        measured_images=len(data.evaluation),
        augment=augment,
        notes=data.notes,
        train_counts=train,
        measured_counts=measured,
    )


def source_record(source: Run) -> SourceRecord:
    """What a run keeps of the run whose model it takes. Raises RunError if that has no weights."""
    manifest = source.manifest
    if manifest.weights is None:
        raise RunError(f"run {source.name!r} has no weights ({manifest.status})")
    config = manifest.config
    return SourceRecord(
        run=source.name,
        sha256=manifest.weights.sha256,
        k=manifest.k,
        fdm_lambda=config.fdm_lambda if isinstance(config, PretrainConfig) else None,
    )
