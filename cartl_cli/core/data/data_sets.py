"""A data set by name or path."""

import difflib
import os
from dataclasses import replace
from pathlib import Path

import torch

from cartl_cli.core.config.fields import BUILT_IN_DATA
from cartl_cli.core.data.downloads import NOWHERE, Store
from cartl_cli.core.data.folders import image_folder
from cartl_cli.core.data.public import PUBLIC, public_data_set
from cartl_cli.core.data.shapes import shapes, shapes_target
from cartl_cli.core.data.split import DataSet, Split, choose_classes, shared_images
from cartl_cli.core.errors import DataError, UsageError
from cartl_cli.core.runtime.randomness import generator

BUILT_IN = dict(zip(BUILT_IN_DATA, (shapes, shapes_target), strict=True))
KNOWN = (*BUILT_IN, *PUBLIC)
AUGMENTATION: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(KNOWN, ()),
    "cifar10": ("crop", "flip", "rotate"),
    "cifar100": ("crop", "flip", "rotate"),
    "stl10": ("crop", "flip"),
}
FOLDER_AUGMENTATION = ("crop",)
DEFAULT_HELD_OUT = 0.1


def load_data_set(
    name: str,
    classes: tuple[str, ...],
    image_size: int,
    val_fraction: float,
    seed: int,
    cache_dir: Path | None = None,
    store: Store = NOWHERE,
) -> DataSet:
    """A data set by name, an image folder or a ``.zip`` of one, as (N, 3, S, S) tensors.

    With ``val_fraction`` > 0, or without a test split, the part that measures is a seeded
    stratified part of the training data. Raises UsageError for an unknown name or class and
    DataError for content that cannot be used.
    """
    check_name(name)
    if name in BUILT_IN:
        data = _chosen(BUILT_IN[name](), classes)
        if image_size != data.train.images.shape[-1]:
            raise UsageError(f"--image-size: {name} is drawn at 32 pixels, got {image_size}")
    elif name in PUBLIC:
        choose_classes(PUBLIC[name].classes, classes)  # before anything is downloaded
        data = _chosen(public_data_set(name, PUBLIC[name], image_size, cache_dir, store), classes)
    else:
        data = image_folder(Path(os.path.expanduser(name)), classes, image_size, cache_dir)
    if len(data.classes) < 2:
        raise DataError(f"{name}: need at least 2 classes, found {len(data.classes)}")
    if val_fraction > 0 or len(data.evaluation) == 0:
        data = _hold_out(data, val_fraction or DEFAULT_HELD_OUT, seed)
    if shared := shared_images(data.train, data.evaluation):
        total = len(data.evaluation)
        note = f"warning: {shared:,} of {total:,} {data.measured} images are also in train"
        data = replace(data, notes=(*data.notes, note))
    return data


def check_name(name: str) -> None:
    """Refuse a data set that is neither known nor at a path. Raises UsageError."""
    if name in KNOWN or Path(os.path.expanduser(name)).exists():
        return
    if len(Path(name).parts) > 1 or name.endswith(".zip"):
        raise UsageError(f"--dataset: no image folder or .zip at {name!r}")
    close = difflib.get_close_matches(name, KNOWN, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(
        f"--dataset: unknown data set {name!r}{hint}; known: {', '.join(KNOWN)}, or the "
        "path of an image folder or .zip"
    )


def augmentation(name: str, chosen: tuple[str, ...] | None) -> tuple[str, ...]:
    """The augmentations of a data set: the user's choice, else its own."""
    return AUGMENTATION.get(name, FOLDER_AUGMENTATION) if chosen is None else chosen


def _chosen(data: DataSet, classes: tuple[str, ...]) -> DataSet:
    kept = choose_classes(data.classes, classes)
    renumber = torch.full((len(data.classes),), -1)
    renumber[[data.classes.index(name) for name in kept]] = torch.arange(len(kept))

    def select(split: Split) -> Split:
        part = split.take((renumber[split.labels] >= 0).nonzero().squeeze(1))
        return Split(part.images, renumber[part.labels])

    train, evaluation = select(data.train), select(data.evaluation)
    return DataSet(data.name, kept, train, evaluation, data.measured, data.notes)


def _hold_out(data: DataSet, fraction: float, seed: int) -> DataSet:
    held = torch.zeros(len(data.train), dtype=torch.bool)
    for label, name in enumerate(data.classes):
        members = (data.train.labels == label).nonzero().squeeze(1)
        if len(members) < 2:
            raise DataError(f"{data.name}: class {name!r} has 1 image; cannot split")
        order = torch.randperm(len(members), generator=generator(seed, "held-out", label))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[members[order[:count]]] = True
    return DataSet(
        name=data.name,
        classes=data.classes,
        train=data.train.take((~held).nonzero().squeeze(1)),
        evaluation=data.train.take(held.nonzero().squeeze(1)),
        measured="held-out",
        notes=data.notes,
    )
