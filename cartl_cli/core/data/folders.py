"""The user's own images: a folder or ``.zip`` with ``train/<class>/…`` and ``test/<class>/…``.

Decoded once into one uint8 tensor and kept in a cache under a fingerprint of what was read.
"""

import hashlib
import io
import json
import os
import stat
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from cartl_cli.core.data.split import DataSet, Split, choose_classes
from cartl_cli.core.errors import CartlError, DataError
from cartl_cli.core.storage import make_cache, read, write_whole

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "GIF", "TIFF")
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".gif", ".tif", ".tiff")
MAX_PIXELS = 50_000_000
MAX_BYTES = 200_000_000  # of one image file
MAX_MEMBERS = 200_000  # of an archive
MAX_EXPANSION = 20  # times the archive's own size; images are compressed already
MIN_SIDE = 8
DECODER = "2"  # part of the cache key: raise it when decoding changes


@dataclass(frozen=True)
class Listing:
    """What a folder or archive holds: every entry as path parts and a key that tells change.

    ``origin`` tells apart two folders whose files have the same names, sizes and times.
    """

    origin: str
    entries: tuple[tuple[tuple[str, ...], str], ...]
    folders: tuple[tuple[str, ...], ...]
    read: Callable[[tuple[str, ...]], bytes]


def image_folder(
    path: Path, classes: tuple[str, ...], image_size: int, cache_dir: Path | None
) -> DataSet:
    """Read an image folder or zip as RGB at ``image_size``; an absent test split is empty.

    Grayscale becomes three channels, transparency lies on black, other sizes are resized; each is
    counted in ``notes``. Raises DataError naming the first file that cannot be used.
    """
    if path.is_dir():
        return _data_set(path, _list_folder(path), classes, image_size, cache_dir)
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(f"{str(path)!r} is neither an image folder nor a .zip of one")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from None
    with archive:
        return _data_set(path, _list_zip(archive), classes, image_size, cache_dir)


def _list_folder(root: Path) -> Listing:
    entries, folders = [], []
    for folder, names, files in os.walk(root, onerror=_refuse_unreadable):
        parts = Path(folder).relative_to(root).parts
        names.sort()
        folders.append(parts)
        for name in [*names, *files]:
            if Path(folder, name).is_symlink() and not _hidden((*parts, name)):
                shown = "/".join((*parts, name))
                raise DataError(f"link: {shown!r}; links are not followed, copy the images there")
        for name in sorted(files):
            status = os.lstat(os.path.join(folder, name))
            entries.append(((*parts, name), f"{status.st_size}/{status.st_mtime_ns}"))

    def read_image(parts: tuple[str, ...]) -> bytes:
        name = "/".join(parts)
        data, size = read(root.joinpath(*parts), f"image {name!r}", MAX_BYTES)
        if size > MAX_BYTES:
            raise DataError(f"image too large: {name!r} has {size:,} bytes")
        return data

    return Listing(str(root.resolve()), tuple(entries), tuple(folders), read_image)


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename!r}: {error.strerror}") from None


def _list_zip(archive: zipfile.ZipFile) -> Listing:
    infos = sorted(archive.infolist(), key=lambda info: info.filename)
    _check_members(infos, os.path.getsize(archive.filename or ""))
    entries = [
        (tuple(info.filename.split("/")), f"{info.file_size}/{info.CRC}")
        for info in infos
        if not info.is_dir()
    ]
    folders = {tuple(info.filename.rstrip("/").split("/")) for info in infos if info.is_dir()}

    def read_image(parts: tuple[str, ...]) -> bytes:
        try:
            return archive.read("/".join(parts))
        except Exception as error:  # each compression has errors of its own
            raise DataError(f"cannot read {'/'.join(parts)!r}: {error}") from None

    return Listing("", tuple(entries), tuple(sorted(folders)), read_image)


def _check_members(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse an archive of ``size`` bytes that is no honest set of images. Raises DataError."""
    if len(infos) > MAX_MEMBERS:
        raise DataError(f"archive has {len(infos):,} members; at most {MAX_MEMBERS:,}")
    for info in infos:
        name, is_link = info.filename, stat.S_ISLNK(info.external_attr >> 16)
        if is_link or name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"archive contains an unsafe member: {name!r}; nothing was read")
    largest = max((info.file_size for info in infos), default=0)
    total = sum(info.file_size for info in infos)
    if largest > MAX_BYTES or total > MAX_EXPANSION * size + 1_000_000:
        raise DataError(f"archive would expand to {total / 1e6:,.0f} MB from {size / 1e6:,.1f} MB")


Entry = tuple[tuple[str, ...], str]
Group = tuple[str, str]
Content = tuple[dict[str, Tensor], tuple[str, ...]]


def _data_set(
    path: Path,
    listing: Listing,
    classes: tuple[str, ...],
    image_size: int,
    cache_dir: Path | None,
) -> DataSet:
    kept, wanted = _choose(path, listing, classes)
    key = hashlib.sha256(f"{DECODER}/{image_size}/{listing.origin!r}".encode())
    for group, members in wanted.items():
        for parts, state in members:
            key.update(repr((group, parts, state)).encode())
    cached = cache_dir and cache_dir / f"images-{key.hexdigest()[:32]}.safetensors"
    content = _read_cache(cached) if cached else None
    if content is None:
        content = _decode(listing, wanted, kept, image_size)
        if cached:
            _write_cache(cached, content)
    tensors, notes = content
    return DataSet(
        name=path.name,
        classes=kept,
        train=Split(tensors["train_images"], tensors["train_labels"]),
        evaluation=Split(tensors["test_images"], tensors["test_labels"]),
        measured="test",
        notes=notes,
    )


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
        if not _hidden(parts) and parts[-1].lower().endswith(ENDINGS)
    ]
    folders = [parts for parts in listing.folders if parts and not _hidden(parts)]
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


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


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


def decode_image(data: bytes, name: str, image_size: int) -> tuple[Tensor, list[str]]:
    """One image as uint8 (3, S, S) and what had to be changed. Raises DataError naming it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own; what matters is checked here
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_image(opened, name)
            opened.load()
            image, changes = _upright_rgb(opened)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"image too large: {name!r}") from None
    except UnidentifiedImageError:
        raise DataError(f"not an image: {name!r}") from None
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise DataError(f"damaged image: {name!r} ({error})") from None
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        changes.append(f"were resized to {image_size}x{image_size}")
    return pil_to_tensor(image), changes


def _check_image(image: Image.Image, name: str) -> None:
    """Refuse, by what its header says, an image that is not taken. Raises DataError."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"image too large: {name!r} has {width}x{height} pixels")
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"multi-frame image: {name!r}; keep one frame")
    if image.mode == "CMYK":
        raise DataError(f"CMYK image: {name!r}; convert it to RGB")
    if image.mode.startswith("I") or image.mode == "F":
        bits = 16 if ";16" in image.mode else 32
        raise DataError(f"{bits}-bit image: {name!r}; convert it to 8 bits a channel")
    if min(width, height) < MIN_SIDE:
        raise DataError(
            f"image too small: {name!r} is {width}x{height}; images must be at least "
            f"{MIN_SIDE}x{MIN_SIDE}"
        )


def _upright_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The image as RGB, turned as its EXIF asks, and what had to be changed."""
    changes = []
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
        changes.append("were turned upright (EXIF)")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
        changes.append("were transparent, laid on black")
    elif image.mode in ("L", "1"):
        changes.append("were grayscale, made RGB")
    return image.convert("RGB"), changes


def _read_cache(path: Path) -> Content | None:
    """The cached tensors, or None where there are none or they cannot be read: decode again."""
    try:
        tensors = parse_tensors(path.read_bytes())
        notes = json.loads(bytes(tensors.pop("notes").tolist()))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return tensors, tuple(notes)


def _write_cache(path: Path, content: Content) -> None:
    tensors, notes = content
    text = torch.tensor(list(json.dumps(notes).encode()), dtype=torch.uint8)
    try:
        make_cache(path.parent)
        write_whole(path, format_tensors({**tensors, "notes": text}))
    except (OSError, CartlError):
        return  # a cache that cannot be written costs time, not the run
