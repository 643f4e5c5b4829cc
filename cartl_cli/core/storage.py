"""Files: the only module that writes them, and the only one that trusts their bytes.

Weights are safetensors, everything else is JSON text. A file appears under its name only when it
is whole (temporary file, fsync, rename). What is read back is checked before it is believed.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor, nn

from cartl_cli.core.errors import RunError

MAX_JSON = 1_000_000
MAX_HEADER = 1_000_000
FOREIGN = (
    (b"version https://git-lfs", "a git-lfs pointer"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x80\x02", "a pickle file"),
)


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` so that a crash leaves the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def read_bytes(path: Path, what: str) -> bytes:
    """The whole file. Raises RunError where it is missing or unreadable."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{what} is missing: {path}") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None


def read_json(path: Path, what: str) -> Any:
    """A JSON file of at most 1 MB. Raises RunError, naming ``what``, where it is damaged."""
    data = read_bytes(path, what)
    if not data:
        raise RunError(f"{what} is empty: {path}; the run was damaged")
    if len(data) > MAX_JSON:
        raise RunError(f"{what} is too large: {path} has {len(data)} bytes, at most {MAX_JSON}")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise RunError(f"{what} must be UTF-8 without BOM: {path}")
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise RunError(f"{what} must be UTF-8 without BOM: {path}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise RunError(f"{what} is not valid JSON ({where}): {path}") from None
    except RecursionError:
        raise RunError(f"{what} is nested too deep: {path}") from None


def weights_to_bytes(model: nn.Module) -> bytes:
    """The state of a model as a safetensors file."""
    return format_tensors(
        {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    )


def check_weights(data: bytes, path: Path, size: int, digest: str) -> None:
    """Refuse a weights file that is not, byte for byte, the one its manifest describes.

    Raises RunError with the most telling reason found.
    """
    if not data:
        raise RunError(f"checkpoint is empty: {path}")
    for prefix, name in FOREIGN:
        if data[: len(prefix)].lower() == prefix.lower():
            raise RunError(f"checkpoint is {name}, not safetensors: {path}")
    if data[257:262] == b"ustar":
        raise RunError(f"checkpoint is a tar archive, not safetensors: {path}")
    if not any(data):
        raise RunError(f"checkpoint is all zeros (damaged by a crash): {path}")
    if len(data) < size:
        raise RunError(f"checkpoint is truncated ({len(data)} of {size} bytes): {path}")
    if len(data) > size:
        raise RunError(f"checkpoint has {len(data) - size} surplus bytes; not trusted: {path}")
    if sha256(data) != digest:
        raise RunError(f"checkpoint changed since it was written (sha256 differs): {path}")


def load_weights(model: nn.Module, data: bytes, path: Path) -> None:
    """Load a safetensors file into ``model``, every tensor present, alike and finite.

    Raises RunError naming the first tensors that do not fit.
    """
    if int.from_bytes(data[:8], "little") > MAX_HEADER:
        raise RunError(f"checkpoint header too large: {path}")
    try:
        found: dict[str, Tensor] = parse_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"checkpoint has a damaged header ({error}): {path}") from None
    expected = model.state_dict()
    missing, surplus = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or surplus:
        raise RunError(
            f"checkpoint does not fit the model: {_some(missing)} missing, "
            f"{_some(surplus)} unexpected: {path}"
        )
    for name, tensor in found.items():
        like = expected[name]
        if tensor.shape != like.shape:
            is_, needs = _shape(tensor), _shape(like)
            raise RunError(f"checkpoint: {name} is {is_}, this model needs {needs}: {path}")
        if tensor.dtype != like.dtype:
            raise RunError(f"checkpoint: {name} is {tensor.dtype}, expected {like.dtype}: {path}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise RunError(f"checkpoint: {count} non-finite values in {name}: {path}")
    model.load_state_dict(found)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: set[str]) -> str:
    if not names:
        return "0 tensors"
    listed = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} tensors ({listed})"
