"""What a search has tried so far, as kept in a JSON file: the same command goes on from it.

runs/sweeps/tune-0a1b2c3d/search.json   the trials
runs/sweeps/tune-0a1b2c3d/front.png     clean against robust accuracy
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from cartl_cli.core import storage
from cartl_cli.core.config import SETTINGS
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.runs.parsing import read_json
from cartl_cli.core.runs.results import Count
from cartl_cli.core.sweeps.points import SWEEP_NAME

SEARCH = "search.json"
Strength = Literal["quick", "strong"]
Seconds = Annotated[float, Field(ge=0)]


class Trial(BaseModel):
    """One model, trained without a fold of the training images and judged on that fold.

    ``settings``: those of its transfer that not all trials share, its epochs among them. ``clean``,
    ``robust``: how many of ``n`` images it gets right, none if its training diverged.
    """

    model_config = SETTINGS

    settings: Annotated[dict[str, int | float | str], Field(max_length=20)]
    fold: Count
    attack: Strength
    n: Annotated[int, Field(ge=1)]
    clean: Count
    robust: Count
    training_seconds: Seconds
    attack_seconds: Seconds

    @property
    def epochs(self) -> int:
        """Epochs of its training."""
        return int(self.settings["epochs"])

    @property
    def seconds(self) -> float:
        """Seconds of training and attack."""
        return self.training_seconds + self.attack_seconds

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.robust <= self.clean <= self.n:
            raise ValueError(f"robust {self.robust}, clean {self.clean} of {self.n}")
        if not (_is_count(self.settings.get("k")) and _is_count(self.settings.get("epochs"))):
            raise ValueError("settings: k and epochs are whole numbers from 1 on")
        return self


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


class SearchRecord(BaseModel):
    """A search: ``identity`` is of its source model, its training images and shared settings."""

    model_config = SETTINGS

    schema_version: Literal[1] = 1
    identity: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    trials: Annotated[tuple[Trial, ...], Field(max_length=1000)] = ()

    @property
    def seconds(self) -> float:
        """Of all trials, in whatever session they were made."""
        return sum(trial.seconds for trial in self.trials)


def check_name(name: str) -> None:
    """Refuse what is no name of a search. Raises UsageError."""
    if not re.fullmatch(SWEEP_NAME, name):
        raise UsageError(
            f"--name: {name!r} is no name of a search; use letters, digits, '.', '_' and '-'"
        )


def read_search(folder: Path, identity: str) -> SearchRecord:
    """The stored search of a folder, or an empty one.

    Raises RunError for a damaged file, UsageError for that of another search.
    """
    path = folder / SEARCH
    if not os.path.lexists(path):
        return SearchRecord(identity=identity)
    try:
        found = SearchRecord.model_validate(read_json(path, "search"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"search is not valid: {where}: {first['msg']}: {path}") from None
    if found.identity != identity:
        raise UsageError(
            f"--name: {folder.name!r} is a search with another source, data or settings; give "
            "another --name"
        )
    return found


def write_search(folder: Path, search: SearchRecord) -> None:
    """Keep a search in its folder. Raises StorageError."""
    storage.make_folder(folder)
    storage.write_whole(folder / SEARCH, search.model_dump_json(indent=1).encode())
