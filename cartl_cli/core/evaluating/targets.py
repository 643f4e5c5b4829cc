"""What an attack is aimed at: the data set, the split of it, the images of that."""

from dataclasses import replace

import torch

from cartl_cli.core.config import AttackConfig, SplitName
from cartl_cli.core.data.registry import load_data_set
from cartl_cli.core.data.split import DataSet, Split, stratified
from cartl_cli.core.errors import DataError, UsageError
from cartl_cli.core.records.manifest import Run
from cartl_cli.core.records.recording import Session


def load_targets(config: AttackConfig, attacked: Run, session: Session) -> DataSet:
    """The attacked run's data, or those asked for; ``evaluation`` is the split to attack.

    ``--split test`` is the whole test split, whatever part of the training data a run held out.
    Raises UsageError or DataError.
    """
    training = attacked.training
    data = load_data_set(
        config.dataset or training.dataset,
        training.classes,
        attacked.manifest.model.image_size,
        0.0 if config.split == "test" else training.val_fraction,
        training.seed,
        session.cache_dir,
        session.store,
    )
    check_classes(attacked, data)
    return measured_on(data, config.split)


def measured_on(data: DataSet, split: SplitName | None) -> DataSet:
    """The data set with a split of the user's choice as the one that measures.

    Raises UsageError if it is not there.
    """
    own = "val" if data.measured == "held-out" else "test"
    if split in (None, own):
        return data
    if split == "train":
        return replace(data, evaluation=data.train, measured="train")
    what = "no test split" if split == "test" else "no images that the run held out"
    raise UsageError(f"--split: {data.name!r} has {what}; choose {own} or train")


def chosen_images(config: AttackConfig, split: Split) -> torch.Tensor:
    """Indices of the images to attack: all, or a seeded stratified ``limit`` of them.

    Raises UsageError if there are not so many.
    """
    if config.limit is None:
        return torch.arange(len(split))
    if config.limit > len(split):
        raise UsageError(f"--limit: must be 1..{len(split)}, got {config.limit}")
    return stratified(split.labels, config.limit, config.seed, "limit")


def check_classes(run: Run, data: DataSet) -> None:
    """Refuse data whose classes are not the run's, in the run's order. Raises DataError."""
    expected, found = run.manifest.model.classes, data.classes
    if len(expected) != len(found):
        raise DataError(f"run {run.name!r} has {len(expected)} classes, data has {len(found)}")
    for place, (ours, theirs) in enumerate(zip(expected, found, strict=True)):
        if ours != theirs and set(expected) == set(found):
            raise DataError(
                f"class order differs: {ours!r} is {found.index(ours)} in the data, {place} in "
                f"run {run.name!r}"
            )
        if ours != theirs:
            raise DataError(f"class names differ: {ours!r} in run {run.name!r}, {theirs!r} in data")
