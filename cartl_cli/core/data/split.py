"""A data set in memory: pixels as one uint8 tensor, cut into batches by index."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from cartl_cli.core.errors import UsageError


@dataclass(frozen=True)
class Split:
    """Images as uint8 (N, C, H, W) and labels as int64 (N,)."""

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
            some = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
            raise UsageError(f"--classes: no class {name!r}; the data has {len(known)}: {some}")
    if len(set(chosen)) < len(chosen):
        raise UsageError("--classes: a class is named twice")
    return tuple(name for name in known if name in chosen) if chosen else known
