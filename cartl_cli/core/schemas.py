"""From JSON to a validated manifest or checkpoint, of this schema or an older one."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.manifest import SCHEMA_VERSION, Checkpoint, Manifest
from cartl_cli.core.storage import NAME


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
    return content | {"schema_version": SCHEMA_VERSION, "id": identity}


def _bare(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(NAME, name) is not None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["input"] is None:
        return f"{where} is missing; the run diverged or was edited"
    return f"{where}: {first['msg']}" if where else first["msg"]
