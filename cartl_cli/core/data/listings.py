"""What an image folder or a zip of one holds, and how its files are read; nothing is unpacked."""

import os
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cartl_cli.core.errors import DataError
from cartl_cli.core.storage import read

MAX_BYTES = 200_000_000  # of one image file
MAX_MEMBERS = 200_000  # of an archive
MAX_EXPANSION = 20  # times the archive's own size; images are compressed already

Entry = tuple[tuple[str, ...], str]
"""Path parts of a file, and what tells that it has changed."""


@dataclass(frozen=True)
class Listing:
    """What a folder or archive holds: every entry as path parts and a key that tells change.

    ``origin`` tells apart two folders whose files have the same names, sizes and times.
    """

    origin: str
    entries: tuple[Entry, ...]
    folders: tuple[tuple[str, ...], ...]
    read: Callable[[tuple[str, ...]], bytes]


def is_hidden(parts: tuple[str, ...]) -> bool:
    """Whether a path is none of the user's making."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def list_folder(root: Path) -> Listing:
    """Everything under ``root``. Raises DataError for a link or an unreadable folder."""
    entries, folders = [], []
    for folder, names, files in os.walk(root, onerror=_refuse_unreadable):
        parts = Path(folder).relative_to(root).parts
        names.sort()
        folders.append(parts)
        for name in [*names, *files]:
            if Path(folder, name).is_symlink() and not is_hidden((*parts, name)):
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


def list_zip(archive: zipfile.ZipFile) -> Listing:
    """Every member of an archive. Raises DataError for a bomb or an unsafe member."""
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
