"""JSON from strangers: strict, and small enough that only to refuse it costs nothing."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cartl_cli.core.errors import RunError
from cartl_cli.core.records.storage import read

MAX_JSON = 1_000_000  # bytes
MAX_VALUES = 50_000
MAX_DEPTH = 20


def read_json(path: Path, what: str) -> Any:
    """A JSON file of at most 1 MB, without repeated keys, NaN, infinity or absurd nesting.

    Raises RunError, naming ``what``, where it is damaged.
    """
    data, size = read(path, what, MAX_JSON)
    if size > MAX_JSON:
        raise RunError(f"{what} is too large: {path} has {size} bytes, at most {MAX_JSON}")
    return parse_json(data, what, path)


def parse_json(data: bytes, what: str, path: Path) -> Any:
    """The value of a JSON text. Raises RunError, naming ``what``, where it is damaged."""

    def no_constant(name: str) -> None:
        raise RunError(f"{what} holds {name}, which isn't finite; the run diverged: {path}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise RunError(f"{what}: key {name!r} appears twice: {path}")
            found[name] = value
        return found

    if not data:
        raise RunError(f"{what} is empty: {path}; the run was damaged")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise RunError(f"{what} must be UTF-8 without BOM: {path}")
    try:
        value = json.loads(data.decode(), parse_constant=no_constant, object_pairs_hook=unique)
        if b"\\u" in data:  # the only way to a lone surrogate, which could never be written
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise RunError(f"{what} must be UTF-8 without BOM: {path}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise RunError(f"{what} is not valid JSON ({where}): {path}") from None
    except (RecursionError, ValueError) as error:  # a number of too many digits, a surrogate
        raise RunError(f"{what} is not usable JSON ({error}): {path}") from None
    if _is_bomb(value):
        raise RunError(f"{what} holds too many values, or too deeply nested ones: {path}")
    return value


def _is_bomb(value: Any) -> bool:
    """Whether a JSON value is larger than any of ours, so that only to refuse it would cost much.

    Each wrong value costs a kilobyte or more when it is validated, and deep nesting ends in a
    RecursionError wherever it is shown.
    """
    count, level = 1, [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        count += len(level)
        if not level:
            break
    return bool(level) or count > MAX_VALUES


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
