"""What is built in: settings (``presets/*.toml``) and sweeps (``presets/sweeps/*.toml``)."""

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from cartl_cli.core.errors import UsageError

SETTINGS_FOLDER = resources.files("cartl_cli") / "presets"
SWEEPS_FOLDER = SETTINGS_FOLDER / "sweeps"


def read_preset(name: str, flag: str = "--preset") -> dict[str, dict[str, Any]]:
    """Settings by command. Raises UsageError, naming ``flag``, if there is no such preset."""
    known = _names(SETTINGS_FOLDER)
    if name not in known:
        raise UsageError(f"{flag}: no preset {name!r}; known: {', '.join(known)}")
    return tomllib.loads((SETTINGS_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def sweep_presets() -> list[str]:
    """The names of the built-in sweeps."""
    return _names(SWEEPS_FOLDER)


def sweep_preset(name: str) -> bytes:
    """The text of a built-in sweep."""
    return (SWEEPS_FOLDER / f"{name}.toml").read_bytes()


def _names(folder: Traversable) -> list[str]:
    names = [entry.name for entry in folder.iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))
