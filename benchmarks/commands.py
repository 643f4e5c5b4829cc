"""Run ``cartl`` commands as a user would, and read what they print."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

progress = Console(stderr=True, highlight=False)


def cartl(*arguments: object, threads: int | None = None) -> dict[str, Any]:
    """Show and run one command; return the object it prints with ``--json``.

    With ``threads``, it runs beside others and its lines begin with the run's name.
    """
    command = [str(argument) for argument in arguments]
    progress.print(f"$ cartl {shlex.join(command)}", style="bold", markup=False, soft_wrap=True)
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    label = f"{command[-1]}: " if threads else ""
    with subprocess.Popen(
        [sys.executable, "-m", "cartl_cli", *command, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if threads else None,
        text=True,
        env=environment,
    ) as child:
        for line in child.stderr or ():
            progress.print(label + line.rstrip(), markup=False, soft_wrap=True)
        printed = child.stdout.read() if child.stdout else ""
    if child.returncode != 0:
        raise SystemExit(child.returncode)
    result: dict[str, Any] = json.loads(printed)
    return result


def made(
    runs_dir: Path, name: str, command: str, *arguments: object, threads: int | None = None
) -> dict[str, Any]:
    """What ``cartl COMMAND`` prints of the run ``name``, made or gone on with if need be."""
    if (runs_dir / name).exists():
        settings: tuple[object, ...] = ("--resume", name)
    else:
        settings = (*arguments, "--name", name)
    return cartl(command, "--runs-dir", runs_dir, *settings, threads=threads)


def peak_memory() -> float:
    """MiB that this process has held at most, on Linux.

    ``getrusage`` counts what the process that started it held, too.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def machine() -> str:
    """Hardware and versions, for beside a figure."""
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )
