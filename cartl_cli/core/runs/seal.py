"""The seal of a finished run: a sha256 of its manifest, by which a later edit shows."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cartl_cli.core.errors import RunError
from cartl_cli.core.runs.manifest import Manifest, Run
from cartl_cli.core.runs.parsing import read_json
from cartl_cli.core.runs.reader import MANIFEST


def sealed(manifest: Manifest) -> Manifest:
    """The manifest of a finished run with its seal; of any other, without one."""
    bare = manifest.model_copy(update={"seal": None})
    if manifest.status != "completed":
        return bare
    return bare.model_copy(update={"seal": _digest(json.loads(bare.model_dump_json()))})


def check_seal(run: Run) -> None:
    """Make sure that nobody changed the manifest after the run was finished.

    A run of an older version has no seal, and passes. Raises RunError.
    """
    path = run.folder / MANIFEST
    fields = read_json(path, "manifest")
    if run.manifest.seal not in (None, _digest(fields)):
        raise RunError(
            f"manifest was edited after the run had finished: {path}; put the original back, or "
            "make the run again"
        )


def _digest(fields: Mapping[str, Any]) -> str:
    """The sha256 of every field but the seal, in a form that layout and order do not change."""
    told = {name: value for name, value in fields.items() if name != "seal"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
