"""Progress on stderr: a live bar on a terminal, ten lines a training elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from cartl_cli.display.text import printable

if TYPE_CHECKING:
    from cartl_cli.core.training.progress import Progress as Training

console = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """One line for the user; nothing in it is taken for markup or a terminal command."""
    console.print(Text(printable(line)), soft_wrap=True)


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
            if step.epoch_ended and tenths[0] < tenths[1] and not console.is_terminal:
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


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.is_dumb_terminal,
    )
