"""What the folders of a data set mean: its splits and classes, and what belongs to none of them."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cartl_cli.core.data.listings import Entry, Listing, Parts, is_hidden
from cartl_cli.core.errors import DataError

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
READ = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".dib", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".webp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".j2k", ".tga"),
}
UNREAD = {
    *(".heic", ".heif", ".jxl", ".svg", ".psd", ".eps"),
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf"),
}
"""Endings of images that are not read."""
NO_IMAGES = ("thumbs.db", "desktop.ini")

Members = Mapping[str, Mapping[str, tuple[Entry, ...]]]
"""Split → class → its images."""


@dataclass(frozen=True)
class Layout:
    """The images of a data set by split and class, and what was left out.

    ``folders`` has each split's own folder name.
    """

    members: Members
    classes: tuple[str, ...]
    folders: Mapping[str, str]
    left: "LeftOut"


def layout_of(listing: Listing, shown: str, training_alone: bool = False) -> Layout:
    """The layout of a folder or archive that is named ``shown``.

    With ``training_alone``, ``val`` and ``test`` need not have the same classes, or any.

    ``train``, ``val`` and ``test`` are found by their usual names, in any case and at any depth. A
    folder of class folders without them is all training data. Raises DataError, with what to do,
    for a layout that could be read in two ways.
    """
    entries = [entry for entry in listing.entries if not is_hidden(entry[0])]
    nested = {parts[:depth] for parts in listing.folders for depth in range(1, len(parts) + 1)}
    nested |= {parts[:depth] for parts, _ in entries for depth in range(1, len(parts))}
    folders = {parts for parts in nested if not is_hidden(parts)}
    root = _root(folders, entries, shown)
    children = sorted(parts[-1] for parts in folders if parts[:-1] == root)
    splits = _splits(children, shown)
    if splits:
        _check_training_split(splits["train"], root, folders, entries, shown)
        depth, named = len(root) + 1, {own: split for split, own in splits.items()}
    else:
        _refuse_splits_as_classes(children, shown)
        depth, named = len(root), {}
    members: dict[str, dict[str, list[Entry]]] = {split: {} for split in splits or ("train",)}
    own_names: dict[tuple[str, str], str] = {}
    for parts in sorted(folders):
        if len(parts) == depth + 1 and parts[:-1][: len(root)] == root:
            split = named.get(parts[len(root)]) if splits else "train"
            if split:
                name = class_name(parts[depth])
                members[split].setdefault(name, [])
                _check_same(own_names.setdefault((split, name), parts[depth]), parts[depth])
    left = LeftOut(Counter(), Counter(), Counter())
    for entry in entries:
        parts = entry[0]
        inside = parts[: len(root)] == root and len(parts) > len(root)
        split = named.get(parts[len(root)]) if splits and inside else "train"
        if not inside or split is None:
            left.outside[_place(parts, root, inside)] += ending(parts[-1]) in READ
        elif ending(parts[-1]) not in READ:
            if len(parts) > depth + 1 and parts[-1].lower() not in NO_IMAGES:
                left.endings[ending(parts[-1])] += 1
        elif len(parts) <= depth + 1:
            left.loose["/".join(parts[len(root) : -1]) or "the folder itself"] += 1
        else:
            members[split][class_name(parts[depth])].append(entry)
    if not members["train"]:
        raise DataError(f"no class folders in {shown!r}; expected train/<class>/<image>{left.said}")
    _check_names(members["train"])
    if not training_alone:
        _check_splits(members, splits, left, shown)
    fixed = {
        split: {name: tuple(found) for name, found in classes.items()}
        for split, classes in members.items()
    }
    return Layout(fixed, tuple(sorted(members["train"])), splits, left)


@dataclass(frozen=True)
class LeftOut:
    """What a layout has no use for, counted: files by place, by ending, images in no class."""

    outside: Counter[str]
    endings: Counter[str]
    loose: Counter[str]

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each kind."""
        found = []
        if self.endings:
            warned = "warning: " if self.endings.keys() & UNREAD else ""
            kinds = (f"{n:,} {kind or 'without one'}" for kind, n in self.endings.most_common())
            heic = self.endings.keys() & {".heic", ".heif"}
            hint = " (convert them first: the package pillow-heif reads HEIC)" if heic else ""
            found.append(f"{warned}files left out by their ending: {', '.join(kinds)}{hint}")
        for place, count in sorted(self.loose.items()):
            found.append(f"warning: {count:,} images in {place} are in no class folder, left out")
        for place, count in sorted((+self.outside).items()):
            found.append(f"{count:,} images in {place} belong to no split, left out")
        # a name that is no UTF-8 could not be written in a manifest
        return tuple(note.encode("utf-8", "backslashreplace").decode() for note in found)

    @property
    def said(self) -> str:
        """The same, behind an error."""
        return "".join(f"; {note.removeprefix('warning: ')}" for note in self.notes)


def split_named(name: str) -> str | None:
    """The split that a folder's name means, in any case."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def ending(name: str) -> str:
    """``.jpg`` of the file name ``B.JPG``; nothing where there is none, as of ``.jpg``."""
    stem, dot, last = name.rpartition(".")
    return f".{last.lower()}" if dot and stem else ""


def class_name(name: str) -> str:
    """The class that a folder's name means.

    It is composed: file systems and archivers of Apple store letters and their accents apart.
    """
    return unicodedata.normalize("NFC", name)


def _place(parts: Parts, root: Parts, inside: bool) -> str:
    shown = parts[: len(root) + 1] if inside else parts[:1]
    return "/".join(shown) if len(parts) > 1 else "the outermost folder"


def _root(folders: set[Parts], entries: Iterable[Entry], shown: str) -> Parts:
    """The folder that holds the splits, else that of the class folders. Raises DataError."""
    filled = {parts[:depth] for parts, _ in entries for depth in range(len(parts))}
    trains = {parts for parts in folders if split_named(parts[-1]) == "train"}
    holders = {parts[:-1] for parts in trains & filled or trains}
    if holders:
        depth = min(map(len, holders))
        found = sorted(parts for parts in holders if len(parts) == depth)
        if len(found) > 1:
            first, second = ("/".join(parts) for parts in found[:2])
            raise DataError(
                f"{shown!r} holds two data sets: {first!r} and {second!r}; give the path of one"
            )
        return found[0]
    root: Parts = ()
    with_images = {parts[:-1] for parts, _ in entries if ending(parts[-1]) in READ}
    while True:
        inner = [parts for parts in folders if parts[:-1] == root]
        if len(inner) != 1 or inner[0] in with_images or split_named(inner[0][-1]):
            return root
        if not any(parts[:-1] == inner[0] for parts in folders):
            return root
        root = inner[0]


def _splits(children: Iterable[str], shown: str) -> dict[str, str]:
    """Split → the folder that is it; nothing without a training split. Raises DataError."""
    found: dict[str, str] = {}
    for child in children:
        split = split_named(child)
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"{found[split]!r} and {child!r} of {shown!r} both mean the {split} split; keep one"
            )
        found[split] = child
    return found if "train" in found else {}


def _refuse_splits_as_classes(children: Iterable[str], shown: str) -> None:
    if splits := [child for child in children if split_named(child)]:
        names = " and ".join(f"{name}/" for name in splits)
        raise DataError(
            f"{shown!r} has {names} but no train/; name the folder with the training images train/ "
            "(a class of that name must be renamed)"
        )


def _check_training_split(
    name: str, root: Parts, folders: set[Parts], entries: Iterable[Entry], shown: str
) -> None:
    """Refuse a training split of images without classes: it may be a class. Raises DataError."""
    train = (*root, name)
    if any(parts[:-1] == train for parts in folders):
        return
    if count := sum(p[:-1] == train and ending(p[-1]) in READ for p, _ in entries):
        raise DataError(
            f"{name}/ of {shown!r} is the training split by its name, but holds {count:,} images "
            f"and no class folders; put them into {name}/<class>/, or rename it if it is a class"
        )


def _check_names(names: Iterable[str]) -> None:
    """Refuse class names that are no text or that another machine may not tell apart."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"class name {name!r} is not valid UTF-8; rename it") from None
        _check_same(seen.setdefault(name.casefold(), name), name)


def _check_same(name: str, other: str) -> None:
    if name != other:
        raise DataError(f"ambiguous class names: {name!r} and {other!r}; rename one")


def _check_splits(
    members: Mapping[str, Mapping[str, list[Entry]]],
    splits: Mapping[str, str],
    left: LeftOut,
    shown: str,
) -> None:
    """Refuse measuring splits that do not match the training split. Raises DataError."""
    for split, classes in members.items():
        if strays := classes.keys() - members["train"].keys():
            raise DataError(f"class {min(strays)!r} is in {splits[split]} but not in train")
        loose = sum(n for place, n in left.loose.items() if place == splits.get(split))
        if split != "train" and not any(classes.values()):
            if loose:
                raise DataError(
                    f"{splits[split]}/ of {shown!r} holds {loose:,} images but no class folders; "
                    f"put each into {splits[split]}/<class>/, or hold out training images instead: "
                    "--val-fraction 0.2"
                )
            raise DataError(f"{split} split is empty in {shown!r}{left.said}")
