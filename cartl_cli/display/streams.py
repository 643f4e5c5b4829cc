"""The standard streams, which outlive whoever reads them: work never ends with its terminal."""

import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


class Lasting:
    """A stream that drops what cannot be written, and all that follows: then it has ``dropped``.

    ``lost`` is why it did, unless the reader is gone (``| head``, a closed terminal): then nobody
    misses it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: OSError | None = None
        self.dropped = False

    def write(self, text: str) -> int:
        """As a file does."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """As a file does."""
        try:
            self.stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.dropped = True
        descriptor = self.stream.fileno()
        closed_terminal = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(descriptor).st_mode)
        if error.errno != errno.EPIPE and not closed_terminal:
            self.lost = error
        nowhere = os.open(os.devnull, os.O_WRONLY)  # takes what is buffered, at the exit too
        os.dup2(nowhere, descriptor)
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_streams() -> Iterator[Lasting]:
    """``stdout`` and ``stderr`` made ``Lasting``, of which the first is given.

    What their encoding lacks becomes an escape.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    out, err = (
        Lasting(stream or open(number, "w", closefd=False))  # noqa: SIM115
        for number, stream in enumerate(before, 1)
    )
    for one in (out, err):
        if isinstance(one.stream, io.TextIOWrapper):
            one.stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Open the standard descriptors that were closed: a file opened later would take their place.

    They are opened to read, so that to write is still refused.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)  # the lowest free number


@contextmanager
def silent() -> Iterator[None]:
    """Drop what is written to ``stdout`` and ``stderr``."""
    with (
        open(os.devnull, "w", errors="backslashreplace") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield
