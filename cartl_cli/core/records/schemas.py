"""From JSON to a validated manifest or checkpoint, of this schema or an older one."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.records.manifest import SCHEMA_VERSION, Checkpoint, Manifest
from cartl_cli.core.records.storage import NAME


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
    weights = content.get("weights")
    if isinstance(weights, dict) and not _bare(weights.get("name")):
        name = str(weights.get("name"))
        where = "outside the run" if "/" in name else "by a bad name"
        raise RunError(f"manifest names a file {where} ({name!r}): {path}")
    try:
        return Manifest.model_validate(content)
    except UsageError as error:  # an unknown architecture
        raise RunError(f"manifest: {error}: {path}") from None
    except ValidationError as error:
        raise RunError(f"manifest is not valid: {_first(error)}: {path}") from None


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
    content = content | {"schema_version": SCHEMA_VERSION}
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


def _bare(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(NAME, name) is not None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["input"] is None:
        return f"{where} is missing; the run diverged or was edited"
    return f"{where}: {first['msg']}" if where else first["msg"]
