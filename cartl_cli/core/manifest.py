"""What a run knows of itself: the validated content of its ``manifest.json``."""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import torch
import torchvision
from pydantic import BaseModel, Field

from cartl_cli import __version__
from cartl_cli.core.config import SETTINGS, PretrainConfig, TransferConfig
from cartl_cli.core.data.split import DataSet
from cartl_cli.core.errors import RunError

NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"

Kind = Literal["pretrain", "transfer"]
Status = Literal["running", "completed", "failed", "diverged", "interrupted"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelSpec(BaseModel):
    """What rebuilds the network that the weights belong to."""

    model_config = SETTINGS

    arch: str
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=10_000)]
    image_size: Annotated[int, Field(ge=8, le=512)]
    convex_blocks: Annotated[int, Field(ge=0)] = 0


class DataRecord(BaseModel):
    """The data a run was trained and measured on."""

    model_config = SETTINGS

    name: str
    fingerprint: str
    train_images: int
    measured: str
    measured_images: int
    augment: tuple[str, ...]
    notes: tuple[str, ...]


class SourceRecord(BaseModel):
    """The run a target model started from, and the sha256 of that model."""

    model_config = SETTINGS

    run: str
    sha256: str
    k: int
    fdm_lambda: float


class FileRecord(BaseModel):
    """Size in bytes and sha256 of a file of the run."""

    model_config = SETTINGS

    name: Annotated[str, Field(pattern=rf"^{NAME}$")]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Results(BaseModel):
    """What a finished training measured. Accuracies are fractions; robust under PGD, n images."""

    model_config = SETTINGS

    clean_accuracy: Fraction
    robust_accuracy: Fraction | None = None
    pgd_steps: int | None = None
    n: int
    seconds: float
    spectral_norms: dict[str, float] = {}


class Manifest(BaseModel):
    """A run, as stored in its ``manifest.json``."""

    model_config = SETTINGS

    schema_version: Literal[1] = 1
    kind: Kind
    number: Annotated[int, Field(ge=0)] = 0
    status: Status = "running"
    created: str
    config: PretrainConfig | TransferConfig
    k: Annotated[int, Field(ge=1)]
    model: ModelSpec
    data: DataRecord
    source: SourceRecord | None = None
    weights: FileRecord | None = None
    results: Results | None = None
    versions: dict[str, str] = {}


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
    def results(self) -> Results:
        """What it measured. Raises RunError if the run has not finished."""
        if self.manifest.results is None:
            raise RunError(f"run {self.name!r} is not complete (status {self.manifest.status})")
        return self.manifest.results


def versions(device: torch.device, precision: str) -> dict[str, str]:
    """Software and hardware that a number was measured with."""
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    return {
        "cartl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": str(device),
        "hardware": hardware,
        "precision": precision,
    }


def data_record(data: DataSet, augment: tuple[str, ...]) -> DataRecord:
    """What the manifest keeps of a data set."""
    return DataRecord(
        name=data.name,
        fingerprint=data.fingerprint(),
        train_images=len(data.train),
        measured=data.measured,
        measured_images=len(data.evaluation),
        augment=augment,
        notes=data.notes,
    )


def source_record(source: Run) -> SourceRecord:
    """What a target run keeps of its source run. Raises RunError if that has no weights."""
    manifest = source.manifest
    if manifest.weights is None or not isinstance(manifest.config, PretrainConfig):
        raise RunError(f"run {source.name!r} is not a finished pretrain run")
    return SourceRecord(
        run=source.name,
        sha256=manifest.weights.sha256,
        k=manifest.k,
        fdm_lambda=manifest.config.fdm_lambda,
    )


def now() -> str:
    """UTC time stamp."""
    return datetime.now(UTC).isoformat(timespec="seconds")
