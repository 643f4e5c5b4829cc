"""Files: the only module that changes any, so that a crash at any moment loses nothing saved.

A file or folder appears under its name only when it is whole and on the disk: written under a
temporary name, fsynced, renamed, its parent fsynced. Nothing but a regular file is ever replaced,
and no link inside a run folder is followed. ``os`` is called for every change one by one, so that
the tests can fail, record or drop any single operation.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cartl_cli.core.errors import InUseError, RunError, StorageError

MAX_SIZE = 2**63 - 1
PART = 2**24  # bytes asked for at once: a file may be far smaller than its record claims
NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
TEMPORARY = r".+\.tmp-\d+-[0-9a-f]{8}"
LOCK = ".lock"
MAY_PASS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
PAUSES = (1.0, 2.0, 4.0)  # seconds before each further try
UNLOCKABLE = ("nfs", "cifs", "smb", "fuse.sshfs")


class FileRecord(BaseModel):
    """Bare name, size in bytes and sha256 of a file, as the JSON file beside it keeps them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=rf"^{NAME}$")]
    size: Annotated[int, Field(ge=0, le=MAX_SIZE)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def describe(name: str, data: bytes) -> FileRecord:
    """The record of a file that holds ``data``."""
    return FileRecord(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


# Writing


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of it.

    Raises StorageError if the system refuses, after some patience where waiting may help.
    """
    _refuse_other(path, stat.S_ISREG, "a regular file")

    def write() -> None:
        with _renamed(path) as temporary:
            _write_synced(temporary, data)

    _patiently(path, write)


def commit_folder(path: Path, contents: Mapping[str, bytes]) -> None:
    """Create a folder with all its files at once, the last named written last.

    A name may lie in one sub-folder, ``a/1.png``. A folder already under that name is replaced.
    Raises StorageError as ``write_whole`` does.
    """
    _refuse_other(path, stat.S_ISDIR, "a folder")
    inner = sorted({name.rpartition("/")[0] for name in contents} - {""})

    def commit() -> None:
        old = _temporary(path)
        with _renamed(path) as temporary:
            os.mkdir(temporary)
            for folder in inner:
                os.mkdir(temporary / folder)
            for name, data in contents.items():
                _write_synced(temporary / name, data)
            for folder in inner:
                _sync(temporary / folder, os.O_DIRECTORY)
            _sync(temporary, os.O_DIRECTORY)
            if os.path.lexists(path):
                os.rename(path, old)
        _discard(old)

    _patiently(path, commit)


@contextmanager
def arriving(path: Path) -> Iterator[Path]:
    """A temporary name for a file that a library writes; once written it is synced and renamed.

    If the block raises, what it wrote is removed. Raises OSError, and StorageError where something
    else than a file has the name.
    """
    _refuse_other(path, stat.S_ISREG, "a regular file")
    with _renamed(path) as temporary:
        yield temporary
        _sync(temporary, os.O_NOFOLLOW)


def open_log(path: Path) -> int:
    """A descriptor to write at the end of a file; no link is followed. Raises StorageError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror}") from None


def add_line(path: Path, line: str) -> None:
    """Write a line at the end of a log. Raises StorageError."""
    descriptor = open_log(path)
    try:
        os.write(descriptor, f"{line}\n".encode())
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def set_aside(path: Path, name: str) -> None:
    """Give a file another name in its folder. Raises OSError."""
    os.rename(path, path.with_name(name))


def make_folder(path: Path) -> None:
    """Create a folder, unless it is there. Raises StorageError."""

    def make() -> None:
        try:
            os.mkdir(path)
        except FileExistsError:
            return
        _sync(path.parent, os.O_DIRECTORY)

    _patiently(path, make)


def cache_dir() -> Path | None:
    """What can be made again is kept in ``$XDG_CACHE_HOME/cartl`` or ``~/.cache/cartl``, if any."""
    place = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return None if place.startswith("~") else Path(place) / "cartl"


def make_cache(path: Path) -> None:
    """Create a private folder and its parents. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)


def allocate(path: Path, size: int) -> bool:
    """Make a file of ``size`` bytes whose space is the system's promise; no link is followed.

    Whether it was there in that size already. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        if os.fstat(descriptor).st_size == size:
            return True
        os.ftruncate(descriptor, 0)
        try:
            _promise(path, descriptor, size)
        except OSError:
            os.ftruncate(descriptor, 0)  # a file system may keep what there was room for
            raise
        return False
    finally:
        os.close(descriptor)


def _promise(path: Path, descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif shutil.disk_usage(path.parent).free < size:  # macOS, which promises nothing
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        os.ftruncate(descriptor, size)


def flush(path: Path) -> None:
    """Have what was written to a file on the disk. Raises OSError."""
    _sync(path, os.O_NOFOLLOW)


def remove_folder(path: Path) -> None:
    """Remove a folder of files; one that cannot be removed is left for the next sweep."""
    aside = _temporary(path)  # first out of the way: a half-removed folder has no name
    with suppress(OSError):
        os.rename(path, aside)
        _discard(aside)


def sweep(folder: Path) -> None:
    """Remove what an interrupted writer left. Only its lock's holder may sweep a folder."""
    for entry in list(os.scandir(folder)):
        if re.fullmatch(TEMPORARY, entry.name):
            _discard(Path(entry.path))


def check_space(folder: Path, needed: int, flag: str = "--runs-dir") -> None:
    """Refuse to begin what the disk cannot hold; ``flag`` moves it. Raises StorageError."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"not enough disk space in {str(folder)!r}: need about {_megabytes(needed)}, "
            f"{_megabytes(free)} free; make room or give another {flag}"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A temporary name for what the block writes and syncs; it takes its name if the block ends."""
    temporary = _temporary(path)
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        _discard(temporary)
        raise
    _sync(path.parent, os.O_DIRECTORY)


def _write_synced(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path, flag: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | flag | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(path: Path, levels: int = 2) -> None:
    """Remove a temporary file, or a folder with at most ``levels`` - 1 levels of folders in it.

    As far as the system lets us; follows no link.
    """
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            for entry in list(os.scandir(path)) if levels else []:
                _discard(Path(entry.path), levels - 1)
            os.rmdir(path)
        else:
            os.unlink(path)


def _refuse_other(path: Path, is_right: Callable[[int], bool], right: str) -> None:
    """Only what is ours is replaced: never a link, a device, or a file where a folder belongs."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise StorageError(f"refusing to follow the link {str(path)!r}; remove it")
    if not is_right(mode):
        raise StorageError(f"refusing to replace {str(path)!r}: not {right}; remove it")


def _patiently(path: Path, action: Callable[[], None]) -> None:
    """Try again where the fault may pass: a full disk, a quota, a hiccup of the storage."""
    for pause in (*PAUSES, None):
        try:
            action()
        except OSError as error:
            if pause is None or error.errno not in MAY_PASS:
                reason = error.strerror or str(error)
                raise StorageError(f"cannot write {str(path)!r}: {reason}") from error
            time.sleep(pause)
        else:
            return


# Locks


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process: ``flock`` on its ``.lock``, free again when we end or die.

    Raises InUseError while another process holds it, unless told to ``wait`` for it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(folder / LOCK, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageError(f"refusing to follow the link {str(folder / LOCK)!r}") from None
        raise StorageError(f"cannot write to {str(folder)!r}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InUseError(
                f"run {folder.name!r} is in use by another cartl process on this machine; "
                "wait for it or stop it"
            ) from None
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder at this moment."""
    try:
        descriptor = os.open(
            folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def unreliable_locks(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The kind of a network file system that the folder lies on, where locks may not hold."""
    place, kind = "", ""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, point, system, *_ = line.split()
        if folder.resolve().is_relative_to(point) and len(point) >= len(place):
            place, kind = point, system
    return kind if kind.startswith(UNLOCKABLE) else None


# Reading


def read(path: Path, what: str, at_most: int) -> tuple[bytes, int]:
    """The first ``at_most`` bytes of a regular file, and its whole size in bytes.

    Raises RunError, naming ``what``, where there is none or it cannot be read; a link is not
    followed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise RunError(
            f"{what} is missing: {path}; put it back, or remove its folder and make the run again"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunError(f"{what} is a link, refusing to follow it: {path}") from None
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RunError(f"{what} is not a regular file: {path}")
        found = b""  # of large files one read gives all: there is no second copy to make
        while part := os.read(
            descriptor, min(at_most - len(found), max(status.st_size - len(found), PART))
        ):
            found = found + part if found else part
        return found, status.st_size
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
