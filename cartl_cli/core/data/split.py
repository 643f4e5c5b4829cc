"""A data set in memory: pixels as one uint8 tensor, cut into batches by index."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from cartl_cli.core.config.values import write_list
from cartl_cli.core.errors import UsageError
from cartl_cli.core.runtime.randomness import generator


@dataclass(frozen=True)
class Split:
    """Images as uint8 (N, C, H, W) and labels as int64 (N,).

    For training, features of images can take their place: floating point, (N, …).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The images at ``indices`` (M,)."""
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> "Split":
        """The same images on a device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DataSet:
    """Classes, a training part, and the part that measures (``measured`` names it).

    ``measured`` is ``"test"`` where the data set brings a test split and ``"held-out"`` where a
    stratified part of the training data was set aside.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    evaluation: Split
    measured: str
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """sha256 over class names, labels and pixels: the same wherever the same data are."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split in (self.train, self.evaluation):
            for tensor in (split.images, split.labels):
                digest.update(f"{tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def stratified(labels: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """Sorted indices of ``count`` images, spread over the classes as evenly as they allow.

    Images are taken in rounds, one of each class a round, in a seeded order.
    """
    order = torch.randperm(len(labels), generator=generator(seed, purpose))
    seen: dict[int, int] = {}
    ranks = []
    for label in labels.cpu()[order].tolist():
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    by_round = torch.tensor(ranks).argsort(stable=True)
    return order[by_round[:count]].sort().values


def folds(labels: Tensor, count: int, seed: int) -> list[Tensor]:
    """All images in ``count`` parts, each class spread evenly: sorted indices, seeded."""
    order = torch.randperm(len(labels), generator=generator(seed, "folds"))
    by_class = order[labels.cpu()[order].argsort(stable=True)]
    return [by_class[part::count].sort().values for part in range(count)]


def fraction_of(data: DataSet, fraction: float, seed: int) -> Split:
    """A seeded part of the training images, as many of each class as the data allow.

    A smaller part of the same seed lies within a larger one. Raises UsageError where a class would
    be left without an image.
    """
    if fraction == 1:
        return data.train
    count = round(fraction * len(data.train))
    part = data.train.take(stratified(data.train.labels, count, seed, "fraction"))
    counts = part.labels.bincount(minlength=len(data.classes)).tolist()
    if 0 in counts:
        empty, classes = data.classes[counts.index(0)], len(data.classes)
        raise UsageError(
            f"--fraction: {fraction:g} of {len(data.train)} training images leaves class "
            f"{empty!r} empty; use at least {classes}/{len(data.train)}"
        )
    return part


def shared_images(train: Split, evaluation: Split) -> int:
    """How many images of ``evaluation`` are in ``train``, pixel for pixel."""

    def digests(split: Split) -> list[bytes]:
        return [hashlib.sha256(image.tobytes()).digest() for image in split.images.numpy()]

    known = set(digests(train))
    return sum(digest in known for digest in digests(evaluation))


def to_pixels(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [0, 1], same shape."""
    return images.float() / 255


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the 0..1 scale."""
    std, mean = torch.std_mean(to_pixels(split.images).double(), dim=(0, 2, 3), correction=0)
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-3).tolist())


def choose_classes(known: tuple[str, ...], chosen: tuple[str, ...]) -> tuple[str, ...]:
    """The chosen classes in the data set's own order (all, if none is chosen).

    Raises UsageError for a class the data set does not have or one named twice.
    """
    for name in chosen:
        if name not in known:
            some = ", ".join(write_list([name]) for name in known[:12]) + (
                ", …" if len(known) > 12 else ""
            )
            raise UsageError(f"--classes: no class {name!r}; the data has {len(known)}: {some}")
    if len(set(chosen)) < len(chosen):
        raise UsageError("--classes: a class is named twice")
    return tuple(name for name in known if name in chosen) if chosen else known
