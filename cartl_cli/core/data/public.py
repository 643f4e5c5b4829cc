"""Public data sets by name: downloaded once, verified, read in memory, kept decoded.

``data/public.json`` has what is published where, and what reads it. The sha256 of GTSRB's files are
those that torchvision's own prototype data sets have, all others those of TensorFlow Datasets. An
archive that differs is never opened.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor

from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data import public_formats
from cartl_cli.core.data.downloads import Archive, Place, Store, verified
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.errors import CartlError, DataError
from cartl_cli.core.storage import make_cache, write_whole

DECODER = "2"  # part of the cache key: raise it when decoding changes
Content = tuple[dict[str, Tensor], tuple[str, ...]]
"""Images (N, 3, S, S) and labels (N,) of train and test by name, and notes."""


@dataclass(frozen=True)
class Published:
    """A public data set: its class names in the order of its labels, its archives, their reader."""

    classes: tuple[str, ...]
    archives: tuple[Archive, ...]
    read: Callable[
        [public_formats.Files, Preprocessing], tuple[public_formats.Images, public_formats.Images]
    ]


def _published(entry: dict[str, Any]) -> Published:
    archives = (Archive(**one | {"urls": tuple(one["urls"])}) for one in entry["archives"])
    read = getattr(public_formats, entry["read"])
    return Published(tuple(entry["classes"]), tuple(archives), read)


_FILE = resources.files("cartl_cli") / "data" / "public.json"
PUBLIC = {
    name: _published(entry) for name, entry in json.loads(_FILE.read_text(encoding="utf-8")).items()
}


def public_data_set(
    name: str, published: Published, preprocessing: Preprocessing, place: Place
) -> DataSet:
    """A public data set as RGB squares, measured on its own test part.

    Archives come from the store (see ``downloads.verified``); once decoded, the cache will do.
    Raises DataError for an archive that cannot be had or used, StorageError where it cannot be
    kept.
    """
    key = hashlib.sha256(f"{DECODER}/{name}/{preprocessing!r}".encode())
    for archive in published.archives:
        key.update(archive.sha256.encode())
    cached = place.cache and place.cache / f"{name}-{key.hexdigest()[:32]}.safetensors"
    return read_once(
        name, published.classes, cached, lambda: _read(name, published, preprocessing, place.store)
    )


def _read(name: str, published: Published, preprocessing: Preprocessing, store: Store) -> Content:
    with verified(name, published.archives, store) as files:
        try:
            parts = published.read(files, preprocessing)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        except Exception as error:  # every format has errors of its own
            raise DataError(f"{name}: cannot read its archive: {error}") from None
    tensors: dict[str, Tensor] = {}
    notes = set()
    for split, (images, labels) in zip(("train", "test"), parts, strict=True):
        _check(f"{name} {split}", images, labels, len(published.classes))
        if images.shape[1] == 1:
            notes.add("all images were grayscale, made RGB")
        side = preprocessing.image_size
        if images.shape[2] != side:
            notes.add(f"all images were resized to {side}x{side}")
        tensors[f"{split}_images"] = public_formats.as_squares(images, preprocessing)
        tensors[f"{split}_labels"] = labels
    return tensors, tuple(sorted(notes))


def _check(where: str, images: Tensor, labels: Tensor, classes: int) -> None:
    if len(images) != len(labels) or not len(labels):
        raise DataError(f"{where}: {len(images):,} images, but {len(labels):,} labels")
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < classes:
            raise DataError(f"{where}: label {label}; classes are 0..{classes - 1}")


# The cache, which can be deleted at any time


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
