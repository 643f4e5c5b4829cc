"""The user's own images: a folder or ``.zip`` of splits and classes (see ``layout``)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch

from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.decoding import decode_image
from cartl_cli.core.data.downloads import Place
from cartl_cli.core.data.layout import Layout, layout_of
from cartl_cli.core.data.listings import Entry, Listing, listed
from cartl_cli.core.data.pixel_cache import Decoded, decoded_once
from cartl_cli.core.data.split import DataSet, Split, choose_classes
from cartl_cli.core.errors import DataError

DECODER = "3"  # part of the cache key: raise it when decoding changes
SHOWN = 20  # bad files that an error names

Measured = Literal["val", "test"]


@dataclass(frozen=True)
class Wanted:
    """What is taken of a layout: the images of each class and split, in the order of decoding."""

    classes: tuple[str, ...]
    splits: tuple[str, ...]
    members: Mapping[tuple[str, str], Sequence[Entry]]

    @property
    def entries(self) -> list[Entry]:
        """All images, one split after the other."""
        return [e for s in self.splits for c in self.classes for e in self.members[s, c]]

    def labels(self, split: str) -> torch.Tensor:
        """The class of each image of a split, by number, (N,)."""
        counts = torch.tensor([len(self.members[split, name]) for name in self.classes])
        return torch.arange(len(self.classes)).repeat_interleave(counts)


def image_folder(
    path: Path,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    measured: Measured | None,
    skip_bad: bool,
    place: Place,
    training_alone: bool = False,
) -> DataSet:
    """Read an image folder or zip as RGB squares.

    ``measured`` names the split that measures, if it is there; else it is ``test``, else ``val``.
    Without any, and where the training split is wanted alone, ``evaluation`` is empty. What had to
    be changed in images is counted in ``notes``. Raises DataError for a layout that is not clear,
    and for files that cannot be used, which ``skip_bad`` leaves out.
    """
    with listed(path) as listing:
        layout = layout_of(listing, str(path), training_alone)
        wanted = chosen(layout, classes, measured, training_alone)
        pixels, state = _decoded(listing, wanted.entries, preprocessing, place)
    if state.bad and not skip_bad:
        raise DataError(_named(state.bad))
    parts = _splits(pixels, wanted, state)
    _check_none_is_empty(wanted, parts)
    split = wanted.splits[-1]
    empty = Split(pixels[:0], torch.empty(0, dtype=torch.int64))
    return DataSet(
        name=path.name,
        classes=wanted.classes,
        train=parts["train"],
        evaluation=empty if split == "train" else parts[split],
        measured=split,
        notes=(*_notes(layout, wanted, state), *layout.left.notes),
    )


def chosen(
    layout: Layout,
    classes: tuple[str, ...],
    measured: Measured | None,
    training_alone: bool = False,
) -> Wanted:
    """The chosen classes of the training split and of the one that measures.

    Raises UsageError for an unknown class, DataError for one without images.
    """
    kept = choose_classes(layout.classes, classes)
    held = [split for split in ("test", "val") if split in layout.members]
    if measured in held:
        held = [measured]
    splits = ("train", *(() if training_alone else held[:1]))
    members = {(s, name): layout.members[s].get(name, ()) for s in splits for name in kept}
    for (split, label), found in members.items():
        if not found:
            raise DataError(
                f"class {label!r} has no images in {split}{layout.left.said}; add some, or choose "
                "other classes with --classes"
            )
    return Wanted(kept, splits, members)


def _decoded(
    listing: Listing, entries: Sequence[Entry], preprocessing: Preprocessing, place: Place
) -> tuple[torch.Tensor, Decoded]:
    """The pixels of all images, from the cache if nothing has changed since."""
    key = hashlib.sha256(f"{DECODER}/{preprocessing!r}/{listing.origin!r}".encode())
    for entry in entries:
        key.update(repr(entry).encode())

    def decode(number: int) -> tuple[torch.Tensor, tuple[str, ...]]:
        parts, _ = entries[number]
        return decode_image(listing.read(parts), "/".join(parts), preprocessing)

    kept = place.cache and place.cache / f"images-{key.hexdigest()[:32]}"
    return decoded_once(kept, len(entries), preprocessing.image_size, decode, place.progress)


def _splits(pixels: torch.Tensor, wanted: Wanted, state: Decoded) -> dict[str, Split]:
    """The splits by name: slices of the pixels, or rows of them where some are bad."""
    labels = [wanted.labels(split) for split in wanted.splits]
    ends = list(accumulate(map(len, labels)))
    parts = {}
    for split, of_split, end in zip(wanted.splits, labels, ends, strict=True):
        first = end - len(of_split)
        good = torch.tensor([n not in state.bad for n in range(first, end)], dtype=torch.bool)
        whole = Split(pixels[first:end], of_split)
        parts[split] = whole if good.all() else whole.part(good.nonzero().squeeze(1))
    return parts


def _check_none_is_empty(wanted: Wanted, parts: Mapping[str, Split]) -> None:
    for split, part in parts.items():
        counts = part.labels.bincount(minlength=len(wanted.classes)).tolist()
        if 0 in counts:
            name = wanted.classes[counts.index(0)]
            raise DataError(f"class {name!r} has no images in {split} that can be used")


def _named(bad: Mapping[int, str]) -> str:
    """The files that cannot be used, as an error says them."""
    said = [bad[number] for number in sorted(bad)]
    if len(said) == 1:
        return f"{said[0]}; --skip-bad leaves it out"
    more = f"; and {len(said) - SHOWN:,} more" if len(said) > SHOWN else ""
    return (
        f"{len(said):,} images cannot be used; mend them, or leave them out with --skip-bad: "
        f"{'; '.join(said[:SHOWN])}{more}"
    )


def _notes(layout: Layout, wanted: Wanted, state: Decoded) -> list[str]:
    total = sum(map(len, wanted.members.values()))
    found = [f"{n:,} of {total:,} images {what}" for what, n in sorted(state.changes.items())]
    if state.bad:
        found.append(
            f"warning: {len(state.bad):,} of {total:,} images cannot be used and are left out: "
            f"{'; '.join([state.bad[n] for n in sorted(state.bad)][:SHOWN])}"
        )
    for split, folder in layout.folders.items():
        if split not in wanted.splits:
            count = sum(map(len, layout.members[split].values()))
            if count > 0:
                found.append(f"{folder}/ is not used ({count:,} images)")
    return found
