"""A data set: pixels as one uint8 tensor, in memory or mapped, cut into batches by index."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cartl_cli.core.config.values import write_list
from cartl_cli.core.errors import UsageError
from cartl_cli.core.runtime.randomness import generator

PART = 256  # images looked at together where a whole split would not fit in memory


@dataclass(frozen=True)
class Split:
    """Images as uint8 (M, C, H, W) and labels as int64 (N,).

    ``rows`` (N,) says which of the images are the split's, in its order; without it, N = M and all
    are. So parts of a split too large for the memory share its pixels. For training, features of
    images can take their place: floating point, (N, …). For an attack, so can pixels in [0, 1].
    """

    images: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, classes: int) -> tuple[int, ...]:
        """Images of each of so many classes."""
        return tuple(self.labels.bincount(minlength=classes).tolist())

    def take(self, indices: Tensor) -> "Split":
        """The images at ``indices`` (N,) as a split of its own, copied, where the labels are."""
        rows = indices if self.rows is None else self.rows[indices]
        images = self.images[rows.to(self.images.device)]
        return Split(_moved(images, self.labels.device), self.labels[indices])

    def part(self, indices: Tensor) -> "Split":
        """The images at ``indices`` (N,), not copied."""
        rows = indices if self.rows is None else self.rows[indices]
        return Split(self.images, self.labels[indices], rows)

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, at most ``size`` at a time, where the labels are."""
        for first in range(0, len(self), size):
            part = slice(first, min(first + size, len(self)))
            rows = part if self.rows is None else self.rows[part].to(self.images.device)
            yield _moved(self.images[rows], self.labels.device)

    def to(self, device: torch.device) -> "Split":
        """The same images on a device, or their labels alone where the images do not fit."""
        if self.images.device == device:
            return self
        size = len(self) * self.images[:1].numel()
        if device.type == "cuda" and 2 * size > torch.cuda.mem_get_info(device)[0]:
            rows = None if self.rows is None else self.rows.to(device)
            return Split(self.images, self.labels.to(device), rows)
        images = self.images if self.rows is None else self.images[self.rows]
        return Split(images.to(device), self.labels.to(device))


def _moved(images: Tensor, device: torch.device) -> Tensor:
    """Images on a device; from pinned memory, which a GPU reads while it computes."""
    if device.type == "cuda" and images.device.type == "cpu":
        return images.pin_memory().to(device, non_blocking=True)
    return images.to(device)


@dataclass(frozen=True)
class DataSet:
    """Classes, a training part, and the part that measures (``measured`` names it).

    ``measured`` is ``"test"`` or ``"val"`` where the data set brings such a split, and
    ``"held-out"`` where a stratified part of the training data was set aside.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    evaluation: Split
    measured: str
    notes: tuple[str, ...] = ()

    @property
    def class_counts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Images of each class in the training part, and in the part that measures."""
        return self.train.counts(len(self.classes)), self.evaluation.counts(len(self.classes))

    def fingerprint(self) -> str:
        """sha256 over class names, labels and pixels: the same wherever the same data are."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split in (self.train, self.evaluation):
            digest.update(f"{(len(split), *split.images.shape[1:])}".encode())
            for images in split.batches(PART):
                digest.update(images.contiguous().numpy().data)
            digest.update(f"{tuple(split.labels.shape)}".encode())
            digest.update(split.labels.contiguous().numpy().data)
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
    part = data.train.part(stratified(data.train.labels, count, seed, "fraction"))
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

    def digests(split: Split) -> Iterator[bytes]:
        for images in split.batches(PART):
            for image in images.contiguous().numpy():
                yield hashlib.sha256(image).digest()

    known = set(digests(train))
    return sum(digest in known for digest in digests(evaluation))


def to_pixels(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [0, 1], same shape; images that are such already, as they are."""
    return images if images.is_floating_point() else images.float() / 255


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the 0..1 scale: exact, by counting values."""
    counts = torch.zeros(split.images.shape[1], 256, dtype=torch.int64)
    for images in split.batches(PART):
        for channel, values in enumerate(images.unbind(1)):
            counts[channel] += values.flatten().bincount(minlength=256)
    shares = counts.double() / counts.sum(dim=1, keepdim=True)
    levels = to_pixels(torch.arange(256)).double()
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]) ** 2).sum(dim=1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp_min(1e-3).tolist())


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
