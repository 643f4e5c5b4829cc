"""JSON from strangers: strict, refused where it is huge, and validated before it means anything."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cartl_cli.core.config import CONFIGS
from cartl_cli.core.config.values import STORED
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.runs.manifest import SCHEMA_VERSION, Checkpoint, Manifest
from cartl_cli.core.storage import NAME, read

MAX_JSON = 4_000_000  # bytes
MAX_VALUES = 120_000  # four for each of 25,000 classes, and the rest
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
        raise RunError(
            f"{what} holds {name}, which isn't finite; it was edited or its run diverged: {path}"
        )

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


def parse_manifest(content: Any, path: Path) -> Manifest:
    """The manifest in a JSON value, of this schema or an older one.

    Raises RunError with the first thing that is wrong.
    """
    schema = content.get("schema_version") if isinstance(content, dict) else None
    if type(schema) is not int or schema < 1:
        raise RunError(f"manifest has a bad schema_version: {path}")
    if schema > SCHEMA_VERSION:
        raise RunError(
            f"manifest was written by a newer cartl (schema {schema}, this one reads "
            f"1-{SCHEMA_VERSION}); upgrade: {path}"
        )
    if schema == 1:
        content = _from_schema_1(content)
    if schema <= 2:
        content = _from_schema_2(content)
    if schema <= 4:  # what came with schema 4 has defaults
        content = _from_schema_4(content)
    config = content.get("config")
    if content.get("kind") == "attack" and isinstance(config, dict):  # once pgd was to go on always
        content = content | {"config": {"final_iterate": _pgd_first(config)} | config}
    weights = content.get("weights")
    name = weights.get("name") if isinstance(weights, dict) else "none"
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        where = "outside the run" if "/" in str(name) else "by a bad name"
        raise RunError(f"manifest names a file {where} ({str(name)!r}): {path}")
    place, kind = "config.", content.get("kind")
    try:
        if isinstance(kind, str) and (config_type := CONFIGS.get(kind)):  # type: ignore[call-overload]
            stored = content.get("config")
            content = content | {"config": config_type.model_validate(stored, context=STORED)}
        place = ""
        return Manifest.model_validate(content)
    except UsageError as error:  # an unknown architecture
        raise RunError(f"manifest: {error}: {path}") from None
    except ValidationError as error:
        raise RunError(f"manifest is not valid: {place}{_first(error)}: {path}") from None


def parse_checkpoint(content: Any, path: Path) -> Checkpoint:
    """The checkpoint in a JSON value. Raises RunError with the first thing that is wrong."""
    try:
        return Checkpoint.model_validate(content)
    except ValidationError as error:
        raise RunError(f"checkpoint.json is not valid: {_first(error)}: {path}") from None


def _from_schema_1(content: dict[str, Any]) -> dict[str, Any]:
    """Cartl 0.1.0: runs had no id; it is made from what they have, the same at every reading."""
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return content | {"schema_version": 2, "id": identity}


def _from_schema_2(content: dict[str, Any]) -> dict[str, Any]:
    """Version 0.2: an attack was PGD at one eps, under the cross-entropy, the margin, or both."""
    content = dict(content)
    config, results = content.get("config"), content.get("results")
    if content.get("kind") != "attack" or not isinstance(config, dict):
        return content
    names = {"ce": ["pgd"], "margin": ["pgd-margin"]}.get(
        str(config.get("loss")), ["pgd", "pgd-margin"]
    )
    kept = {name: value for name, value in config.items() if name != "loss"}
    content["config"] = kept | {"attack": names, "eps": [config.get("eps")], "norm": "linf"}
    if isinstance(results, dict):
        content["results"] = _results_of_schema_2(config, results, names)
    return content


def _from_schema_4(content: dict[str, Any]) -> dict[str, Any]:
    """Version 0.2: of an image its size was known alone, and ``seed`` chose what was held out."""
    content = content | {"schema_version": SCHEMA_VERSION}
    model, data, config = (content.get(name) for name in ("model", "data", "config"))
    if isinstance(model, dict) and "image_size" in model:
        kept = {name: value for name, value in model.items() if name != "image_size"}
        content["model"] = kept | {"preprocessing": {"image_size": model["image_size"]}}
    held_out = isinstance(data, dict) and data.get("measured") == "held-out"
    if held_out and isinstance(config, dict) and content.get("kind") != "attack":
        content["config"] = config | {"split_seed": config.get("seed", 0)}
    return content


def _results_of_schema_2(
    config: dict[str, Any], results: dict[str, Any], names: list[str]
) -> dict[str, Any]:
    alone = {
        "pgd": results.get("robust_accuracy_ce"),
        "pgd-margin": results.get("robust_accuracy_margin"),
    }
    after = [alone[names[0]], results.get("robust_accuracy")][: len(names)]
    try:
        right = round(results["clean_accuracy"] * results["n"])
        added = [
            {
                "attack": name,
                "attacked": right,
                "fell": right - round(alone[name] * results["n"]),
                "alone": alone[name],
                "robust_accuracy": left,
            }
            for name, left in zip(names, after, strict=True)
        ]
        eps, step_size = config["eps"], config.get("step_size") or config["eps"] / 4
    except (KeyError, TypeError, ValueError, OverflowError):
        return results  # damaged: the validation that follows says how
    by_eps = {
        "eps": eps,
        "step_size": step_size,
        "added": added,
        **{
            name: results.get(name)
            for name in ("robust_accuracy", "interval", "final_iterate_accuracy")
        },
    }
    kept = {
        name: results.get(name) for name in ("n", "clean_accuracy", "clean_interval", "seconds")
    }
    return kept | {"by_eps": [by_eps], "half_eps": None}


def _pgd_first(config: dict[str, Any]) -> bool:
    attacks = config.get("attack")
    return isinstance(attacks, list) and attacks[:1] == ["pgd"]


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["input"] is None:
        return f"{where} is missing; the run diverged or was edited"
    return f"{where}: {first['msg']}" if where else first["msg"]
