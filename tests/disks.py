"""Two bad disks: one that refuses the N-th operation, and one that loses what was not synced.

Both stand in for ``os`` in ``cartl_cli.core.storage``, through which every
change of a file goes.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from cartl_cli.core import storage

CHANGES = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir")


class FaultyDisk:
    """``os``, whose operation number ``fails_at`` (from 1) and, if ``lasting``, all later ones
    raise ``error``.
    """

    def __init__(self, fails_at: int, error: int, lasting: bool) -> None:
        self.fails_at, self.error, self.lasting = fails_at, error, lasting
        self.count = self.faults = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in (*CHANGES, "read"):
            return real

        def operation(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.fails_at or (self.lasting and self.count > self.fails_at):
                self.faults += 1
                raise OSError(self.error, os.strerror(self.error))
            return real(*arguments, **options)

        return operation


@dataclass(frozen=True)
class Operation:
    """One change of the disk, or an acknowledgement (``kind == "ack"``) given to the user."""

    kind: str
    path: str = ""
    to: str = ""
    data: bytes = b""
    site: str = ""


class RecordingDisk:
    """``os``, every change of which is done and written down."""

    def __init__(self) -> None:
        self.log: list[Operation] = []
        self.open_files: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def ack(self, what: str) -> None:
        """The product has said that this step is saved, or that the run is completed."""
        self.log.append(Operation("ack", to=what))

    def open(self, path: Any, flags: int, *mode: int) -> int:
        new = not os.path.lexists(path)
        descriptor = os.open(path, flags, *mode)
        self.open_files[descriptor] = os.path.abspath(path)
        if new and flags & os.O_CREAT:
            self.log.append(Operation("create", os.path.abspath(path)))
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        count = os.write(descriptor, data)
        path = self.open_files[descriptor]
        self.log.append(Operation("write", path, data=bytes(data[:count])))
        return count

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        path = self.open_files[descriptor]
        self.log.append(Operation("fsync", path, site=_caller()))

    def rename(self, path: Any, to: Any) -> None:
        os.rename(path, to)
        self.log.append(Operation("rename", os.path.abspath(path), os.path.abspath(to)))

    def mkdir(self, path: Any, *mode: int) -> None:
        os.mkdir(path, *mode)
        self.log.append(Operation("mkdir", os.path.abspath(path)))

    def unlink(self, path: Any) -> None:
        os.unlink(path)
        self.log.append(Operation("remove", os.path.abspath(path)))

    def rmdir(self, path: Any) -> None:
        os.rmdir(path)
        self.log.append(Operation("remove", os.path.abspath(path)))


def _caller() -> str:
    """The place in the product that syncs: the caller of its helpers, with the line."""
    frame = sys._getframe(3)
    helper = sys._getframe(2).f_code.co_name
    if frame.f_code.co_name == "_renamed":
        frame = sys._getframe(5)  # the block that ends, behind contextlib
    return f"{helper} in {frame.f_code.co_qualname}, line {frame.f_lineno}"


@contextmanager
def disk(stand_in: Any) -> Iterator[None]:
    """``storage`` on this disk, and without patience."""
    with mock.patch.object(storage, "os", stand_in), mock.patch.object(storage, "PAUSES", (0, 0)):
        yield


@dataclass
class Node:
    """A file (``entries`` is None) or folder: as the system shows it, and as it is on the disk."""

    data: bytes = b""
    synced: bytes = b""
    entries: "dict[str, Node] | None" = None
    durable: "dict[str, Node]" = field(default_factory=dict)


Survives = Literal["only what was synced", "every name, but only synced data"]
MODELS: tuple[Survives, ...] = ("only what was synced", "every name, but only synced data")


class PageCache:
    """A disk behind a page cache: replays a log, and shows what a power cut would leave.

    A file's data are safe after its fsync, a name after the fsync of its folder. Of what was not
    synced either nothing survives, or every name does and no data: both happen.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.top = _load(root)

    def _find(self, path: str) -> tuple[dict[str, Node], str]:
        parts = Path(path).relative_to(self.root).parts
        node = self.top
        for part in parts[:-1]:
            assert node.entries is not None
            node = node.entries[part]
        assert node.entries is not None
        return node.entries, parts[-1]

    def replay(self, operation: Operation) -> None:
        """Do one operation again."""
        if operation.kind == "ack" or not operation.path.startswith(self.root):
            return
        if operation.path == self.root:
            assert self.top.entries is not None
            self.top.durable = dict(self.top.entries)
            return
        entries, name = self._find(operation.path)
        match operation.kind:
            case "create":
                entries[name] = Node()
            case "mkdir":
                entries[name] = Node(entries={})
            case "write":
                entries[name].data += operation.data
            case "rename":
                to, other = self._find(operation.to)
                to[other] = entries.pop(name)
            case "remove":
                del entries[name]
            case "fsync":
                node = entries[name]
                node.synced = node.data
                if node.entries is not None:
                    node.durable = dict(node.entries)

    def after_power_cut(self, survives: Survives, place: Path) -> None:
        """Write what a power cut leaves now into an empty folder."""
        _store(self.top, survives, place)


def _load(path: Path) -> Node:
    if path.is_file():
        data = path.read_bytes()
        return Node(data, data)
    entries = {child.name: _load(child) for child in path.iterdir()}
    return Node(entries=entries, durable=dict(entries))


def _store(node: Node, survives: Survives, place: Path) -> None:
    if node.entries is None:
        place.write_bytes(node.synced)
        return
    place.mkdir(exist_ok=True)
    names = node.durable if survives == "only what was synced" else node.entries
    for name, child in names.items():
        _store(child, survives, place / name)


FAULTS = ((errno.ENOSPC, True), (errno.EIO, False), (errno.EACCES, False))
"""A disk that is full for good, a hiccup that patience survives, one refusal that it does not."""
