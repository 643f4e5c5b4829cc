"""cartl: transfer robust image classifiers. Importing this loads no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.2.0"


def load_model(run: str | Path) -> "nn.Module":
    """The trained network of a finished run folder, in evaluation mode.

    It takes images (B, 3, S, S) in [0, 1] and returns logits (B, classes); normalization is inside.
    For images of whole numbers, such as uint8, it raises TypeError. Weights and gradients have
    torch's usual memory layout, which other libraries expect. Raises RunError for a folder that
    cannot be trusted.
    """
    import torch

    from cartl_cli.core.runs.reader import read_run
    from cartl_cli.core.runs.weights import read_model

    return read_model(read_run(Path(run))).to(memory_format=torch.contiguous_format)
