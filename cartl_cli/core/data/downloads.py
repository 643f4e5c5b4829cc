"""Published archives: downloaded once by torchvision's code, verified, whole or not there."""

import errno
import hashlib
import io
import os
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
)
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from cartl_cli.core import storage
from cartl_cli.core.errors import DataError, StorageError

TIMEOUT = 30.0  # seconds in which a server must say something
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES}


@dataclass(frozen=True)
class Archive:
    """A published file: its size in bytes, its sha256, and the places it is to be had from.

    Of ``sha256`` the first digits may be all that is known, or none; of ``size`` 0: then what the
    server says counts.
    """

    name: str
    size: int
    sha256: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """Where archives are kept, whether missing ones may be fetched, and who is told of it."""

    folder: Path | None = None
    download: bool = True
    say: Callable[[str], None] = lambda line: None


Progress = AbstractContextManager[Callable[[int], None]]


@dataclass(frozen=True)
class Place:
    """Where data are kept: decoded images, archives.

    ``progress`` is given how many images are to be decoded, and gives a reporter of how many are.
    By default nothing is kept and nobody told.
    """

    cache: Path | None = None
    store: Store = Store()
    progress: Callable[[int], Progress] = lambda missing: nullcontext(lambda done: None)


NOWHERE = Place()


@contextmanager
def verified(name: str, archives: Sequence[Archive], store: Store) -> Iterator[list[BinaryIO]]:
    """The archives of the data set ``name``, downloaded if need be, each open at its beginning.

    The sha256 is taken of the very file that is then read. Raises DataError for what cannot be had
    or is not what was published, StorageError where it cannot be kept.
    """
    folder = fetched(name, archives, store)
    with ExitStack() as opened:
        files: list[BinaryIO] = []
        for archive in archives:
            path = folder / archive.name
            try:
                file = opened.enter_context(path.open("rb"))
                found = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
            except OSError as error:
                raise DataError(f"cannot read {str(path)!r}: {error.strerror}") from None
            if found != archive.sha256:
                raise DataError(
                    f"{str(path)!r} is not the published file (sha256 differs); remove it and run "
                    "again"
                )
            files.append(file)
        yield files


def fetched(name: str, archives: Sequence[Archive], store: Store) -> Path:
    """The folder that now holds every archive; one process downloads while others wait for it.

    What was there already is not looked at. Raises like ``verified``.
    """
    if store.folder is None:
        raise DataError(f"{name}: no home folder to keep downloads in; give --data-dir")
    folder = store.folder / name
    missing = [archive for archive in archives if not os.path.isfile(folder / archive.name)]
    if not missing:
        return folder
    if not store.download:
        names = ", ".join(archive.name for archive in missing)
        urls = " ".join(archive.urls[0] for archive in missing)
        raise DataError(
            f"{name}: not in {str(folder)!r}: {names}; run without --no-download, or: "
            f"wget -P {shlex.quote(str(folder))} {urls}"
        )
    try:
        for place in (store.folder.parent, store.folder):  # the cache itself may be missing yet
            storage.make_cache(place)
    except OSError as error:
        raise StorageError(
            f"cannot write {str(store.folder)!r}: {error.strerror}; give another --data-dir"
        ) from None
    storage.make_folder(folder)
    if storage.is_locked(folder):
        store.say(f"waiting for another cartl that downloads {name}")
    with storage.locked(folder, wait=True):
        storage.sweep(folder)
        for archive in missing:
            if not os.path.isfile(folder / archive.name):
                _download(archive, folder, store.say)
    return folder


def _download(archive: Archive, folder: Path, say: Callable[[str], None]) -> None:
    failures: list[str] = []
    for url in archive.urls:
        try:
            size = archive.size or _announced(url)
            if not failures:
                storage.check_space(folder, size, "--data-dir")
                say(f"downloading {archive.name}, {_megabytes(size)} MB, to {folder}")
            with storage.arriving(folder / archive.name) as path:
                _retrieve(url, path)
                _verify(replace(archive, size=size), path)
            return
        except DataError as error:
            failures.append(f"{url}: {error}")
        except (OSError, HTTPException, RecursionError) as error:
            if getattr(error, "errno", None) in DISK_ERRORS:
                raise StorageError(f"cannot write {str(folder)!r}: {_reason(error)}") from None
            failures.append(f"{url}: {_reason(error)}")
    raise DataError(
        f"cannot download {archive.name}: {'; '.join(failures)}; try again, or put the file "
        f"into {str(folder)!r}"
    )


def _announced(url: str) -> int:
    """How many bytes a server says it will send, 0 if it does not say."""
    with urlopen(Request(url, headers={"User-Agent": "cartl"}), timeout=TIMEOUT) as answer:
        return answer.length or 0


def _retrieve(url: str, path: Path) -> None:
    """Download by torchvision, without its progress bar and with an end to waiting."""
    from torchvision.datasets.utils import download_url  # takes as long to import as torch

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with redirect_stderr(io.StringIO()):
            download_url(url, str(path.parent), path.name)
    finally:
        socket.setdefaulttimeout(before)


def _verify(archive: Archive, path: Path) -> None:
    """Raise DataError unless a file that has come is the published one."""
    with path.open("rb") as file:
        begins = file.read(100).lstrip().lower()
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    if begins.startswith((b"<!doctype html", b"<html")):
        raise DataError("the server sent an HTML page (is there a log-in to this network?)")
    if size < archive.size:
        raise DataError(f"got {_megabytes(size)} of {_megabytes(archive.size)} MB")
    if not found.startswith(archive.sha256):
        storage.set_aside(path, f"{archive.name}.bad")
        raise DataError(
            f"sha256 differs (expected {archive.sha256[:12]}…, got {found[:12]}…), kept as "
            f"{archive.name}.bad"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}" if size >= 10e6 else f"{size / 1e6:.3g}"


def _reason(error: BaseException) -> str:
    """Why a download failed, without the wrapping."""
    if isinstance(error, HTTPError):
        error.close()
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        return _reason(error.reason)
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
