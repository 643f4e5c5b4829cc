"""What is said on stderr: lines for the user, and a display that is drawn again and again.

Rich is loaded when something is shown, so that ``--version`` comes at once.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

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


@functools.cache
def stderr() -> "Console":
    """Standard error, wherever it leads at the time of printing."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """One line for the user; nothing in it is taken for markup or a terminal command."""
    from rich.text import Text

    stderr().print(Text(printable(line)), soft_wrap=True)


def is_live() -> bool:
    """Whether a display on stderr can be drawn over."""
    return stderr().is_terminal and not stderr().is_dumb_terminal


@contextmanager
def live(draw: "Callable[[int, int], RenderableType]") -> Iterator[None]:
    """On a terminal, a display for so many columns and lines, drawn again four times a second."""
    if not is_live():
        yield
        return
    from rich.live import Live

    def drawn() -> "RenderableType":
        return draw(stderr().width, stderr().height)

    with Live(get_renderable=drawn, console=stderr(), transient=True):
        yield
