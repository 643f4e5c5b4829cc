"""What is said on stderr, progress, and standard streams that outlive their reader.

Rich is loaded when something is shown, so that ``--version`` comes at once.
"""

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from cartl_cli.core.training.loop import Progress as Training

LONGEST = 2_000


def printable(text: str) -> str:
    """The text with every character that a terminal would act on written as an escape.

    What a file may have made longer than anybody reads is cut.
    """
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in short.encode("utf-8", "backslashreplace").decode("utf-8")
    )


class Lasting:
    """A stream whose reader may leave (``| head``): what nobody reads any more is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """As a file does."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """As a file does."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """``stdout`` and ``stderr`` made ``Lasting``; what their encoding lacks becomes an escape."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = Lasting(before[0]), Lasting(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def silent() -> Iterator[None]:
    """Drop what is written to ``stdout`` and ``stderr``."""
    with (
        open(os.devnull, "w", errors="backslashreplace") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield


@functools.cache
def stderr() -> "Console":
    """Standard error, wherever it leads at the time of printing."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """One line for the user; nothing in it is taken for markup or a terminal command."""
    from rich.text import Text

    stderr().print(Text(printable(line)), soft_wrap=True)


@contextmanager
def training_progress() -> Iterator[Callable[["Training"], None]]:
    """A reporter of training steps: loss, accuracies, images/s and time left."""
    with _bar() as bar:
        task = bar.add_task("training", total=None, numbers="")

        def report(step: "Training") -> None:
            numbers = f"loss {step.loss:.3f}"
            for name, accuracy in step.accuracy.items():
                numbers += f"  {name} {100 * accuracy:.1f} %"
            numbers += f"  {step.images_per_second:,.0f} images/s"
            bar.update(
                task,
                total=step.total_steps,
                completed=step.position.step,
                description=f"epoch {step.epoch}/{step.epochs}",
                numbers=numbers,
            )
            tenths = [10 * epoch // step.epochs for epoch in (step.epoch - 1, step.epoch)]
            if step.epoch_ended and tenths[0] < tenths[1] and not stderr().is_terminal:
                say(f"epoch {step.epoch}/{step.epochs}  {numbers}")

        yield report


@contextmanager
def attack_progress() -> Iterator[Callable[[int, int], None]]:
    """A reporter of attacks done, of how many."""
    with _bar() as bar:
        task = bar.add_task("attacking", total=None, numbers="")

        def report(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            numbers = f"{speed:,.0f} images/s" if speed else ""
            bar.update(task, total=total, completed=done, numbers=numbers)

        yield report


@contextmanager
def decoding_progress(missing: int) -> Iterator[Callable[[int], None]]:
    """A reporter of images decoded, of those that are missing."""
    say(f"decoding {missing:,} images")
    with _bar() as bar:
        task = bar.add_task("decoding", total=missing, numbers="")

        def report(done: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, completed=done, numbers=f"{speed:,.0f} images/s" if speed else "")

        yield report


def _bar() -> "Progress":
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = stderr()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.is_dumb_terminal,
    )
