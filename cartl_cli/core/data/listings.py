"""What an image folder or a zip of one holds, and how its files are read; nothing is unpacked."""

import os
import re
import shlex
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from cartl_cli.core.errors import DataError, RunError
from cartl_cli.core.storage import read

MAX_BYTES = 200_000_000  # of one image file
MAX_MEMBERS = 200_000  # of an archive
MAX_EXPANSION = 20  # times the archive's own size; images are compressed already

ZIP = b"PK\x03\x04"  # how a zip begins
ENCRYPTED = 0x1  # of a member's flags
UTF8_FLAG = 0x800  # of a member's flags: its name is UTF-8
UNICODE_PATH = 0x7075  # the extra field that has the name as UTF-8

Parts = tuple[str, ...]
"""The parts of a path."""
Entry = tuple[Parts, str]
"""Path parts of a file, and what tells that it has changed."""


@dataclass(frozen=True)
class Listing:
    """What a folder or archive holds: every entry as path parts and a key that tells change.

    ``origin`` tells apart two folders whose files have the same names, sizes and times.
    """

    origin: str
    entries: tuple[Entry, ...]
    folders: tuple[Parts, ...]
    read: Callable[[Parts], bytes]


def is_hidden(parts: Parts) -> bool:
    """Whether a path is none of the user's making."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


@contextmanager
def listed(path: Path) -> Iterator[Listing]:
    """What a folder or an archive, which stays open, holds. Raises DataError."""
    if path.is_dir():
        yield list_folder(path)
        return
    if path.is_file() and not zipfile.is_zipfile(path) and _begins(path) == ZIP:
        raise DataError(f"{str(path)!r} is a .zip that is cut off or damaged; make it again")
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise DataError(f"{str(path)!r} is neither an image folder nor a .zip of one")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from None
    with archive:
        yield list_zip(archive)


def read_image(path: Path, name: str) -> bytes:
    """The bytes of an image file that is named ``name``; no link is followed.

    Raises DataError if it cannot be read or is too large.
    """
    if not os.path.lexists(path):
        raise DataError(f"image {name!r} is missing")
    try:
        data, size = read(path, f"image {name!r}", MAX_BYTES)
    except RunError as error:
        raise DataError(str(error)) from None
    if size > MAX_BYTES:
        raise DataError(f"image too large: {name!r} has {size:,} bytes")
    return data


def list_folder(root: Path) -> Listing:
    """Everything under ``root``. Raises DataError for a link or an unreadable folder."""
    entries, folders = [], []
    for folder, names, files in os.walk(root, onerror=_refuse_unreadable):
        parts = Path(folder).relative_to(root).parts
        names[:] = sorted(name for name in names if not is_hidden((*parts, name)))
        folders.append(parts)
        for name in [*names, *files]:
            if Path(folder, name).is_symlink() and not is_hidden((*parts, name)):
                shown = "/".join((*parts, name))
                copy = f"cp -rL {shlex.quote(str(root))} NEW"
                raise DataError(
                    f"link: {shown!r}; links are not followed; take a copy without them: {copy}"
                )
        for name in sorted(files):
            status = os.lstat(os.path.join(folder, name))
            entries.append(((*parts, name), f"{status.st_size}/{status.st_mtime_ns}"))

    def read_inside(parts: Parts) -> bytes:
        return read_image(root.joinpath(*parts), "/".join(parts))

    return Listing(str(root.resolve()), tuple(entries), tuple(folders), read_inside)


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename!r}: {error.strerror}") from None


def _begins(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(ZIP))


def list_zip(archive: zipfile.ZipFile) -> Listing:
    """Every member of an archive, by the name that its maker gave it.

    Raises DataError for a bomb, an unsafe member or two members of one name.
    """
    infos = archive.infolist()
    if any(info.flag_bits & ENCRYPTED for info in infos):
        raise DataError(f"{archive.filename!r} is encrypted; unpack it")
    _check_size(infos, os.path.getsize(archive.filename or ""))
    members: dict[Parts, zipfile.ZipInfo] = {}
    folders: set[Parts] = set()
    for info in infos:
        name = member_name(info)
        parts = _safe_parts(name, info)
        if name.endswith(("/", "\\")):
            folders.add(parts)
        elif members.setdefault(parts, info) is not info:
            raise DataError(f"archive contains {'/'.join(parts)!r} twice; keep one")
    entries = sorted((parts, f"{i.file_size}/{i.CRC}") for parts, i in members.items())

    def read_member(parts: Parts) -> bytes:
        try:
            return archive.read(members[parts])
        except Exception as error:  # each compression has errors of its own
            raise DataError(f"cannot read {'/'.join(parts)!r}: {error}") from None

    return Listing("", tuple(entries), tuple(sorted(folders)), read_member)


def member_name(info: zipfile.ZipInfo) -> str:
    """The name of a member as it was meant.

    Without the flag of UTF-8 the format means code page 437, but the usual tools of Linux and macOS
    store UTF-8 bytes all the same, or an extra field with the name in UTF-8.
    """
    if info.flag_bits & UTF8_FLAG:
        return info.orig_filename
    stored = info.orig_filename.encode("cp437")
    try:
        return (_unicode_path(info.extra, stored) or stored).decode()
    except UnicodeDecodeError:
        return info.orig_filename


def _unicode_path(extra: bytes, stored: bytes) -> bytes | None:
    """What the extra field says of a member's name, unless the name was changed since."""
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == UNICODE_PATH and size >= 5 and extra[5:9] == struct.pack("<I", crc32(stored)):
            return extra[9 : 4 + size]
        extra = extra[4 + size :]
    return None


def _safe_parts(name: str, info: zipfile.ZipInfo) -> Parts:
    """A member's path, by slashes of either kind. Raises DataError for one that leads elsewhere."""
    parts = name.replace("\\", "/").split("/")
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    if is_link or not parts[0] or ".." in parts or re.fullmatch("[A-Za-z]:", parts[0]):
        raise DataError(f"archive contains an unsafe member: {name!r}; nothing was read")
    return tuple(part for part in parts if part not in ("", "."))


def _check_size(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse an archive of ``size`` bytes that is no honest set of images. Raises DataError."""
    if len(infos) > MAX_MEMBERS:
        raise DataError(f"archive has {len(infos):,} members; at most {MAX_MEMBERS:,}")
    largest = max((info.file_size for info in infos), default=0)
    total = sum(info.file_size for info in infos)
    if largest > MAX_BYTES or total > MAX_EXPANSION * size + 1_000_000:
        raise DataError(f"archive would expand to {total / 1e6:,.0f} MB from {size / 1e6:,.1f} MB")
