"""A data set by name or path."""

import difflib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cartl_cli.core.config import TrainingConfig
from cartl_cli.core.config.fields import BUILT_IN_DATA, BUILT_IN_SIDE
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.config.values import write_list
from cartl_cli.core.data.downloads import NOWHERE, Place
from cartl_cli.core.data.folders import Measured, image_folder
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
PHOTOGRAPHS = ("zoom", "flip")
SMALL = 64  # pixels of a side, above which images are taken for photographs
DEFAULT_HELD_OUT = 0.1
SHOWN = 10  # classes that are shown
UNEVEN = 3  # times as many images in one class as in another: told


@dataclass(frozen=True)
class DataChoice:
    """Which images: a data set, some of its classes, and the part of it that measures.

    ``measured`` asks for a split of the data set's own, ``test`` or ``val``, if it has that one.
    """

    dataset: str
    classes: tuple[str, ...] = ()
    val_fraction: float = 0.0
    split_seed: int = 0
    skip_bad: bool = False
    measured: Measured | None = None


def choice_of(config: TrainingConfig) -> DataChoice:
    """The images that a training asks for."""
    return DataChoice(
        config.dataset, config.classes, config.val_fraction, config.split_seed, config.skip_bad
    )


def load_data_set(
    choice: DataChoice, preprocessing: Preprocessing, place: Place = NOWHERE
) -> DataSet:
    """A data set by name, an image folder or a ``.zip`` of one, as (N, 3, S, S) tensors.

    With ``val_fraction`` > 0, or where it brings neither test images nor others to measure on, the
    part that measures is a seeded stratified part of the training data. Raises UsageError for an
    unknown name or class and DataError for content that cannot be used.
    """
    name, classes = choice.dataset, choice.classes
    check_name(name)
    if name in BUILT_IN:
        data = _chosen(BUILT_IN[name](), classes)
        if preprocessing.image_size != BUILT_IN_SIDE:
            raise UsageError(
                f"--dataset: {name} is drawn at {BUILT_IN_SIDE} pixels, and the model takes "
                f"{preprocessing.image_size}; give a folder of images"
            )
    elif name in PUBLIC:
        choose_classes(PUBLIC[name].classes, classes)  # before anything is downloaded
        data = _chosen(public_data_set(name, PUBLIC[name], preprocessing, place), classes)
    else:
        path = Path(os.path.expanduser(name))
        data = image_folder(
            path,
            classes,
            preprocessing,
            choice.measured,
            choice.skip_bad,
            place,
            training_alone=choice.val_fraction > 0,
        )
    if len(data.classes) < 2:
        found = ", ".join(map(repr, data.classes))
        raise DataError(f"{name}: need at least 2 classes, found {len(data.classes)}: {found}")
    if choice.val_fraction > 0 or len(data.evaluation) == 0:
        data = _hold_out(data, choice.val_fraction or DEFAULT_HELD_OUT, choice.split_seed)
    if shared := shared_images(data.train, data.evaluation):
        total = len(data.evaluation)
        note = f"warning: {shared:,} of {total:,} {data.measured} images are also in train"
        data = replace(data, notes=(*data.notes, note))
    return data


def in_order(data: DataSet, classes: tuple[str, ...]) -> DataSet:
    """The same images, with their classes numbered in another order."""
    if classes == data.classes:
        return data
    numbers = torch.tensor([classes.index(name) for name in data.classes])
    train, evaluation = (
        replace(split, labels=numbers[split.labels]) for split in (data.train, data.evaluation)
    )
    return replace(data, classes=classes, train=train, evaluation=evaluation)


def described(data: DataSet) -> list[str]:
    """The first classes and how many images each has of each split."""
    train, measured = data.class_counts
    some = [
        f"{write_list((name,))} {n:,} + {m:,}"
        for name, n, m in zip(data.classes[:SHOWN], train, measured, strict=False)
    ]
    more = f", … {len(data.classes) - SHOWN} more" if len(data.classes) > SHOWN else ""
    return [
        f"{len(data.classes)} classes (images in train + {data.measured}): {', '.join(some)}{more}"
    ]


def uneven(data: DataSet, split: Split) -> list[str]:
    """What training on a split does not make up for: that its classes differ much in size."""
    train = split.counts(len(data.classes))
    least, most = min(train), max(train)
    if most < UNEVEN * least:
        return []
    rare, common = (data.classes[train.index(count)] for count in (least, most))
    return [
        f"warning: class {common!r} has {most / least:.3g} times as many training images as "
        f"{rare!r}; a model that neglects rare classes may still look accurate; pretrain and "
        "transfer let each class count alike with --balance"
    ]


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


def augmentation(name: str, chosen: tuple[str, ...] | None, image_size: int) -> tuple[str, ...]:
    """The augmentations of a data set: the user's choice, else its own."""
    if chosen is not None:
        return chosen
    usual = PHOTOGRAPHS if image_size > SMALL else FOLDER_AUGMENTATION
    return AUGMENTATION.get(name, usual)


def _chosen(data: DataSet, classes: tuple[str, ...]) -> DataSet:
    kept = choose_classes(data.classes, classes)
    if kept == data.classes:
        return data
    renumber = torch.full((len(data.classes),), -1)
    renumber[[data.classes.index(name) for name in kept]] = torch.arange(len(kept))

    def select(split: Split) -> Split:
        part = split.take((renumber[split.labels] >= 0).nonzero().squeeze(1))
        return replace(part, labels=renumber[part.labels])

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
        train=data.train.part((~held).nonzero().squeeze(1)),
        evaluation=data.train.part(held.nonzero().squeeze(1)),
        measured="held-out",
        notes=data.notes,
    )
