"""Commands on terminals that close, and on streams that cannot be written."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
PATIENCE = 300  # seconds for a command, on a busy machine


def started(arguments: list[str], folder: Path, **options: Any) -> "subprocess.Popen[bytes]":
    """``cartl`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cartl_cli", *arguments],
        cwd=folder,
        env={**without_size(), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"},
        **options,
    )


def without_size() -> dict[str, str]:
    """The environment, less what would say another size than the terminal's own."""
    return {name: text for name, text in os.environ.items() if name not in ("COLUMNS", "LINES")}


def redirected(arguments: list[str], folder: Path, shell: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command under a redirection of the shell."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "cartl_cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def on_terminal(
    arguments: list[str], folder: Path, columns: int = 80, lines: int = 24, controlled: bool = False
) -> "tuple[subprocess.Popen[bytes], int]":
    """A command on a terminal of that size, and our side of it.

    Unless it is ``controlled`` by the terminal, it is told of no hang-up, as after ``disown``.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    options: dict[str, Any] = {"start_new_session": True}
    if controlled:
        options["preexec_fn"] = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    process = started(arguments, folder, stdin=theirs, stdout=theirs, stderr=theirs, **options)
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: str = "") -> str:
    """What appears on a terminal, up to a text, or to the end where there is none; no escapes."""
    found = b""
    while not text or text.encode() not in found:
        assert select.select([terminal], [], [], PATIENCE)[0], found
        try:
            part = os.read(terminal, 1000)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        found += part
    return ESCAPES.sub("", found.decode(errors="replace"))
