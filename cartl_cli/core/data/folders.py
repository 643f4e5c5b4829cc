"""The user's own images: a folder or ``.zip`` with ``train/<class>/…`` and ``test/<class>/…``.

Decoded once into one uint8 tensor and kept in a cache under a fingerprint of what was read.
"""

import hashlib
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from cartl_cli.core.data.cache import Content, decoded_once
from cartl_cli.core.data.decoding import decode_image
from cartl_cli.core.data.listings import Entry, Listing, is_hidden, list_folder, list_zip
from cartl_cli.core.data.split import DataSet, choose_classes
from cartl_cli.core.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".gif", ".tif", ".tiff")
DECODER = "2"  # part of the cache key: raise it when decoding changes

Group = tuple[str, str]
"""Split and class."""


def image_folder(
    path: Path, classes: tuple[str, ...], image_size: int, cache_dir: Path | None
) -> DataSet:
    """Read an image folder or zip as RGB at ``image_size``; an absent test split is empty.

    Grayscale becomes three channels, transparency lies on black, other sizes are resized; each is
    counted in ``notes``. Raises DataError naming the first file that cannot be used.
    """
    if path.is_dir():
        return _data_set(path, list_folder(path), classes, image_size, cache_dir)
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(f"{str(path)!r} is neither an image folder nor a .zip of one")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from None
    with archive:
        return _data_set(path, list_zip(archive), classes, image_size, cache_dir)


def _data_set(
    path: Path, listing: Listing, classes: tuple[str, ...], image_size: int, cache_dir: Path | None
) -> DataSet:
    kept, wanted = _choose(path, listing, classes)
    key = hashlib.sha256(f"{DECODER}/{image_size}/{listing.origin!r}".encode())
    for group, members in wanted.items():
        for parts, state in members:
            key.update(repr((group, parts, state)).encode())
    cached = cache_dir and cache_dir / f"images-{key.hexdigest()[:32]}.safetensors"
    return decoded_once(path.name, kept, cached, lambda: _decode(listing, wanted, kept, image_size))


def _choose(
    path: Path, listing: Listing, classes: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[Group, list[Entry]]]:
    """The chosen classes, and the images of each (split, class) that is used."""
    images, groups, has_test = _by_split_and_class(listing)
    known = {split: {label for s, label in groups if s == split} for split in ("train", "test")}
    if not known["train"]:
        raise DataError(f"no class folders in {str(path)!r}; expected train/<class>/<image>")
    _check_names(known["train"])
    if strays := known["test"] - known["train"]:
        raise DataError(f"class {min(strays)!r} is in test but not in train")
    if has_test and not any(split == "test" for split, _ in images):
        raise DataError(f"test split is empty in {str(path)!r}")
    kept = choose_classes(tuple(sorted(known["train"])), classes)
    wanted = {
        (split, label): images.get((split, label), [])
        for split in (("train", "test") if has_test else ("train",))
        for label in kept
    }
    for (split, label), members in wanted.items():
        if not members:
            raise DataError(f"class {label!r} has no images in {split}")
    return kept, wanted


def _check_names(names: Iterable[str]) -> None:
    """Refuse class names that are no text or that another machine may not tell apart."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"class name {name!r} is not valid UTF-8; rename it") from None
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise DataError(f"ambiguous class names: {other!r} and {name!r}; rename one")


def _by_split_and_class(listing: Listing) -> tuple[dict[Group, list[Entry]], set[Group], bool]:
    """Images by (split, class), every class folder, and whether there is a test split.

    A lone outer folder is looked through, and a folder of classes without ``train/`` is all
    training data.
    """
    visible = [
        (parts, state)
        for parts, state in listing.entries
        if not is_hidden(parts) and parts[-1].lower().endswith(ENDINGS)
    ]
    folders = [parts for parts in listing.folders if parts and not is_hidden(parts)]
    folders += [parts[:-1] for parts, _ in visible if len(parts) > 1]
    tops = {parts[0] for parts in folders}
    outer = int(len(tops) == 1 and not tops & {"train", "test"})
    if outer:
        tops = {parts[1] for parts in folders if len(parts) > 1}
    split_named = "train" in tops

    def group(folder: tuple[str, ...]) -> Group | None:
        inner = folder[outer:] if split_named else ("train", *folder[outer:])
        return (inner[0], inner[1]) if len(inner) > 1 and inner[0] in ("train", "test") else None

    images: dict[Group, list[Entry]] = {}
    for parts, state in visible:
        if found := group(parts[:-1]):
            images.setdefault(found, []).append((parts, state))
    groups = {found for folder in folders if (found := group(folder))}
    return images, groups, split_named and "test" in tops


def _decode(
    listing: Listing, wanted: dict[Group, list[Entry]], classes: tuple[str, ...], image_size: int
) -> Content:
    converted: Counter[str] = Counter()
    tensors: dict[str, Tensor] = {}
    for split in ("train", "test"):
        pixels, labels = [], []
        for label, name in enumerate(classes):
            for parts, _ in wanted.get((split, name), []):
                image, changes = decode_image(listing.read(parts), "/".join(parts), image_size)
                converted.update(changes)
                pixels.append(image)
                labels.append(label)
        empty = torch.empty(0, 3, image_size, image_size, dtype=torch.uint8)
        tensors[f"{split}_images"] = torch.stack(pixels) if pixels else empty
        tensors[f"{split}_labels"] = torch.tensor(labels, dtype=torch.int64)
    total = len(tensors["train_labels"]) + len(tensors["test_labels"])
    notes = [f"{count:,} of {total:,} images {what}" for what, count in sorted(converted.items())]
    return tensors, tuple(notes)
