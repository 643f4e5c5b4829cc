"""The files of a run that its manifest describes, byte for byte. To read them loads no torch."""

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, deserialize

from cartl_cli.core.errors import RunError
from cartl_cli.core.storage import FileRecord, read

SAFETENSORS = b"\0\0\0{"
"""Bytes 5 to 8: the end of the header's length, whose first bytes may be any, and its beginning."""
FOREIGN = (
    (b"version https://git-lfs", "a git-lfs pointer"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x80\x02", "a pickle file"),
)


def read_recorded(folder: Path, record: FileRecord) -> bytes:
    """The bytes of a file that is, byte for byte, the one its record describes.

    Raises RunError with the most telling reason found.
    """
    path = folder / record.name
    data, size = read(path, f"checkpoint {record.name}", record.size)
    if size == record.size == 0:
        return data
    if size == 0:
        raise RunError(f"checkpoint is empty: {path}")
    for prefix, name in FOREIGN if data[5:9] != SAFETENSORS else ():
        if data[: len(prefix)].lower() == prefix.lower():
            raise RunError(f"checkpoint is {name}, not safetensors: {path}")
    if data[257:262] == b"ustar":
        raise RunError(f"checkpoint is a tar archive, not safetensors: {path}")
    if not any(data):
        raise RunError(f"checkpoint is all zeros (damaged by a crash): {path}")
    if size > record.size:
        raise RunError(f"checkpoint has {size - record.size} surplus bytes; not trusted: {path}")
    if len(data) < record.size:
        raise RunError(f"checkpoint is truncated ({len(data)} of {record.size} bytes): {path}")
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise RunError(f"checkpoint changed since it was written (sha256 differs): {path}")
    return data


def whole_numbers(data: bytes, names: Iterable[str], path: Path) -> dict[str, tuple[int, ...]]:
    """The int32 tensors of these names, flat; without those that are not there. Raises RunError."""
    try:
        found = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise RunError(f"checkpoint has a damaged header ({error}): {path}") from None
    numbers = {}
    for name in names:
        if (entry := found.get(name)) is None:
            continue
        if entry["dtype"] != "I32":
            raise RunError(f"checkpoint: {name} is {entry['dtype']}, expected I32: {path}")
        numbers[name] = struct.unpack(f"<{len(entry['data']) // 4}i", entry["data"])
    return numbers
