"""Signals: the first one asks to stop after the step, the second one ends the process at once.

SIGHUP never is a second one: a terminal that is closed sends several, its shell's and its own.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Asked:
    """Which signal has asked to stop, None until one has."""

    signal: int | None = None


@contextmanager
def stop_signals(quiet: bool = False) -> Iterator[Asked]:
    """Catch SIGINT, SIGTERM and SIGHUP for a while, and note the first that comes.

    Unless ``quiet``, the first is answered on stderr. A signal that the caller ignores (``nohup``)
    stays ignored. Outside the main thread, where Python handles no signals, nothing is caught.
    """
    asked = Asked()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.signal is not None and number == signal.SIGHUP:
            return
        if asked.signal is not None:
            os._exit(128 + number)  # what is committed stays; the rest is swept at the next start
        asked.signal = number
        if quiet:
            return
        with suppress(OSError):
            os.write(2, b"\nstopping after this step; once more to stop at once\n")

    caught = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                caught[number] = signal.signal(number, handle)
    try:
        yield asked
    finally:
        for number, before in caught.items():
            signal.signal(number, before)
