"""Public data sets, kept as they were read; the cache can be deleted at any time."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor

from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.errors import CartlError
from cartl_cli.core.storage import make_cache, write_whole

Content = tuple[dict[str, Tensor], tuple[str, ...]]
"""Images (N, 3, S, S) and labels (N,) of train and test by name, and notes."""


def read_once(
    name: str, classes: tuple[str, ...], cached: Path | None, decode: Callable[[], Content]
) -> DataSet:
    """The data set that ``decode`` gives, from the file ``cached`` if it is there."""
    content = read_cache(cached) if cached else None
    if content is None:
        content = decode()
        if cached:
            write_cache(cached, content)
    tensors, notes = content
    return DataSet(
        name=name,
        classes=classes,
        train=Split(tensors["train_images"], tensors["train_labels"]),
        evaluation=Split(tensors["test_images"], tensors["test_labels"]),
        measured="test",
        notes=notes,
    )


def read_cache(path: Path) -> Content | None:
    """The cached tensors, or None where there are none or they cannot be read: decode again."""
    try:
        tensors = parse_tensors(path.read_bytes())
        notes = json.loads(bytes(tensors.pop("notes").tolist()))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return tensors, tuple(notes)


def write_cache(path: Path, content: Content) -> None:
    """Keep the tensors, if the system lets us."""
    tensors, notes = content
    text = torch.tensor(list(json.dumps(notes).encode()), dtype=torch.uint8)
    try:
        make_cache(path.parent)
        write_whole(path, format_tensors({**tensors, "notes": text}))
    except (OSError, CartlError):
        return  # a cache that cannot be written costs time, not the run
