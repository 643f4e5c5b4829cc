"""How far a training or an attack is: one line of a terminal, however narrow."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import Progress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cartl_cli.display.terminal import is_live, live, say

if TYPE_CHECKING:
    from cartl_cli.core.training.loop import Progress as Training

GAP = 2  # columns between two things
SHORTEST, LONGEST = 8, 20  # columns of the bar
BETWEEN = 60.0  # seconds from one line to the next, where none is live
Show = Callable[[str, int, int | None, Sequence[str], str | None], None]
Report = Callable[[int, int], None]


@contextmanager
def training_progress() -> "Iterator[Callable[[Training], None]]":
    """A reporter of training steps: loss, accuracies, images/s and time left."""
    with _line("training") as show:

        def report(step: "Training") -> None:
            head = f"epoch {step.epoch}/{step.epochs}"
            numbers = [f"loss {step.loss:.3f}"]
            numbers += [f"{name} {100 * x:.1f} %" for name, x in step.accuracy.items()]
            speed = f"{step.images_per_second:,.0f} images/s"
            show(head, step.position.step, step.total_steps, numbers, speed)
            tenths = [10 * epoch // step.epochs for epoch in (step.epoch - 1, step.epoch)]
            if step.epoch_ended and tenths[0] < tenths[1] and not is_live():
                say("  ".join([head, *numbers, speed]))

        yield report


@contextmanager
def attack_progress() -> Iterator[tuple[Report, Report]]:
    """Reporters of attacks done, and then of checks of them, of how many."""
    with _line("attacking") as show:
        yield _counting("attacking", show), _counting("checking the attack", show, speed="")


@contextmanager
def predicting_progress(total: int | None, shown: bool) -> Iterator[Callable[[int], None]]:
    """A reporter of images answered, of how many, if that is known; silent if not ``shown``."""
    if not shown:
        yield lambda done: None
        return
    with _line("predicting") as show:
        report = _counting("predicting", show)
        yield lambda done: report(done, total)


@contextmanager
def searching_progress(
    spent: float = 0.0, budget: float | None = None
) -> Iterator[Callable[[str], None]]:
    """A reporter of what is tried, beside the seconds of the budget that are spent."""
    began = time.monotonic() - spent
    with _line("searching") as show:
        whole = None if budget is None else int(budget)
        yield lambda head: show(head, int(time.monotonic() - began), whole, [], "")


@contextmanager
def decoding_progress(missing: int) -> Iterator[Callable[[int], None]]:
    """A reporter of images decoded, of those that are missing."""
    say(f"decoding {missing:,} image{'s' * (missing > 1)}")
    with _line("decoding") as show:
        report = _counting("decoding", show)
        yield lambda done: report(done, missing)


def _counting(name: str, show: Show, speed: str | None = None) -> Callable[[int, int | None], None]:
    """A reporter of things done, of how many; where no line is live, a line every minute."""
    told = time.monotonic()

    def report(done: int, total: int | None) -> None:
        nonlocal told
        show(name, done, total, [], speed)
        if not is_live() and (now := time.monotonic()) - told >= BETWEEN:
            told = now
            say(f"{name}: {100 * done / total:.0f} % done" if total else f"{name}: {done:,} done")

    return report


def fitting(
    head: str, numbers: Sequence[str], speed: str, left: str, width: int
) -> tuple[list[str], int]:
    """What of a line is shown in so many columns, and the columns of its bar.

    ``head`` and the time ``left`` always are. What there is no room for goes in this order: the
    ``speed``, the bar, the ``numbers`` from the last.
    """
    fewer = [numbers[:count] for count in range(len(numbers), -1, -1)]
    tries = [([*numbers, speed], SHORTEST), (numbers, SHORTEST), *((some, 0) for some in fewer)]
    for shown, bar in tries:
        texts = [text for text in shown if text]
        room = width - sum(map(len, [head, *texts, left])) - GAP * (len(texts) + 1)
        if room >= (bar and bar + GAP):
            break
    return texts, min(room - GAP, LONGEST) if bar else 0


def time_left(seconds: float | None) -> str:
    """``1:02:03``, or dashes while it is not known."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@contextmanager
def _line(name: str) -> Iterator[Show]:
    """Shows head, steps done, of how many, numbers, and speed, which it measures if it is None.

    How many there are may be unknown.
    """
    clock = Progress(disable=True)  # tells the time left, and is not shown itself
    clock.add_task(name, total=None, numbers=(), speed=None)
    (task,) = clock.tasks

    def draw(width: int, height: int) -> Table:
        measured = f"{task.speed:,.0f} images/s" if task.speed else ""
        speed = measured if task.fields["speed"] is None else task.fields["speed"]
        left = time_left(task.time_remaining)
        texts, bar = fitting(task.description, task.fields["numbers"], speed, left, width)
        parts = [Text(text, no_wrap=True) for text in (task.description, *texts, left)]
        shown = ProgressBar(task.total, task.completed, bar)
        line = Table.grid(padding=(0, GAP, 0, 0))
        line.add_row(parts[0], *([shown] if bar else []), *parts[1:])
        return line

    def show(
        head: str, done: int, total: int | None, numbers: Sequence[str], speed: str | None
    ) -> None:
        clock.update(
            task.id, description=head, completed=done, total=total, numbers=numbers, speed=speed
        )

    with live(draw):
        yield show
