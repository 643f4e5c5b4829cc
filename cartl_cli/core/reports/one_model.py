"""One model: its run, the runs before it, the attacks on it, and how its training went."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cartl_cli.core.config import Kind
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.metrics import METRICS, Line, read_metrics
from cartl_cli.core.runs.reader import attacks_on, find_run, source_beside, state


@dataclass(frozen=True)
class OneModel:
    """The finished run of a model, and what lies beside it.

    ``source``: the run whose model it started from, None where that is not there. ``attacks``: the
    finished ones on exactly its weights, the newest first. ``epochs``: none of an import.
    """

    run: Run
    source: Run | None
    attacks: tuple[Run, ...]
    epochs: tuple[Line, ...]

    @property
    def makings(self) -> tuple[Run, ...]:
        """The runs that made the model, in order."""
        return (self.run,) if self.source is None else (self.source, self.run)


def one_named(selectors: Sequence[str], runs_dir: Path) -> Run | None:
    """The run of a model, if that is what was named, and nothing else."""
    if len(selectors) == 1:
        with suppress(UsageError, RunError):  # a sweep, or what is told with the others
            run = find_run(selectors[0], runs_dir, "RUN", get_args(Kind))
            return None if run.manifest.kind == "attack" else run
    return None


def one_model(run: Run, runs_dir: Path) -> OneModel:
    """What there is to tell of a run's model; attacks may be in ``runs_dir``, too.

    Raises RunError if it is unfinished or damaged.
    """
    if run.manifest.status != "completed":
        raise RunError(f"run {run.name!r} is not complete: {state(run)}")
    has_epochs = os.path.lexists(run.folder / METRICS)
    epochs = read_metrics(run) if has_epochs else ()
    return OneModel(run, source_beside(run), attacks_on(run, runs_dir), epochs)
