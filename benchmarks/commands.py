"""Run ``cartl`` commands as a user would, and read what they print."""

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

progress = Console(stderr=True, highlight=False)


def cartl(*arguments: object) -> dict[str, Any]:
    """Show and run one command; return the object it prints with ``--json``."""
    command = [str(argument) for argument in arguments]
    progress.print(f"$ cartl {shlex.join(command)}", style="bold", markup=False, soft_wrap=True)
    done = subprocess.run(
        [sys.executable, "-m", "cartl_cli", *command, "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def finished(runs_dir: Path, name: str) -> bool:
    """Whether a run of this name is there and complete."""
    path = runs_dir / name / "manifest.json"
    return path.exists() and json.loads(path.read_text())["status"] == "completed"


def attacked(runs_dir: Path, name: str, *arguments: object) -> dict[str, Any]:
    """The result of the first attack on a run, which is made now if it is not there."""
    path = runs_dir / name / "attack-001.json"
    if path.exists():
        return {"file": str(path), **json.loads(path.read_text())}
    return cartl("attack", name, *arguments)


def machine() -> str:
    """Hardware and versions, for beside a figure."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
