"""What a training wrote down at the end of each epoch, one line of JSON each."""

import json
import math

from cartl_cli.core import storage
from cartl_cli.core.errors import RunError
from cartl_cli.core.runs.manifest import Run

METRICS = "metrics.jsonl"
LARGEST = 64 * 2**20  # bytes; a line has about 200

Line = dict[str, float]
"""``epoch``, ``step``, ``loss``, ``learning_rate``, and fractions named ``…_accuracy``."""


def read_metrics(run: Run) -> tuple[Line, ...]:
    """The lines of a training, in order. Raises RunError where they are missing or damaged."""
    path = run.folder / METRICS
    content, size = storage.read(path, "record of epochs", LARGEST)
    try:
        if size > LARGEST:
            raise ValueError("too large")
        return tuple(_line(text) for text in content.decode().splitlines())
    except ValueError as error:
        raise RunError(f"record of epochs is damaged: {path}: {error}") from None


def _line(text: str) -> Line:
    found = json.loads(text)
    if not isinstance(found, dict) or not {"epoch", "loss"} <= found.keys():
        raise ValueError("a line has no epoch and loss")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in found.values()):
        raise ValueError("a value is no number")
    return found
