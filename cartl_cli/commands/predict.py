"""``cartl predict``."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cartl_cli.commands.next_step import after_model
from cartl_cli.commands.options import RunsDir, flags_from
from cartl_cli.commands.session import ATTACKED_KINDS, taken_run
from cartl_cli.core import storage
from cartl_cli.core.config import PredictConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.layout import READ, UNREAD, ending
from cartl_cli.core.errors import CartlError, DataError, UsageError
from cartl_cli.core.predictions.images import STDIN, named_images, training_images
from cartl_cli.core.runs.reader import MANIFEST
from cartl_cli.core.runtime.requirements import check_matplotlib, check_torch

if TYPE_CHECKING:
    from cartl_cli.core.evaluation.confusion import Confusion
    from cartl_cli.core.predictions.answers import Answer, Asking
    from cartl_cli.core.predictions.tally import Tally
    from cartl_cli.core.runs.manifest import Run

PICTURE = Path("confusion.png")
UNLABELLED = "no image is in a folder named like a class of the run"


@flags_from(PredictConfig)
def predict(
    settings: dict[str, Any],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image files, folders and .zips of them; - for such names on standard input. "
            "Before them the run: name, number or path (default: the newest finished, sweeps "
            "aside).",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help=f"Draw the confusion matrix: {PICTURE}.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help=f"Write over an older {PICTURE}.")] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Answer for your photographs: the class of each, and whether it survives an attack."""
    config = configure(PredictConfig, settings)
    if plot:
        check_matplotlib()
        if os.path.lexists(PICTURE) and not force:
            raise UsageError(f"--plot: {PICTURE} is there; --force writes over it")
    named, places = divided(paths or [], runs_dir)
    if not places:
        raise UsageError(
            "PATHS: give image files, folders or .zips of them, or - for names on standard input"
        )
    check_torch()
    from cartl_cli.core.evaluation.confusion import Confusion
    from cartl_cli.core.predictions.answers import Answer, answers, asking
    from cartl_cli.core.predictions.images import Bad
    from cartl_cli.core.predictions.tally import Tally
    from cartl_cli.display import predictions
    from cartl_cli.display.progress import predicting_progress
    from cartl_cli.display.terminal import say

    run = taken_run(named, runs_dir, "RUN", ATTACKED_KINDS, say)
    tally = Tally(Confusion(run.manifest.model.classes), training_images(run))
    kept: list[Answer] = []
    streamed, out = config.format != "table", sys.stdout  # which a display takes the place of
    with named_images(places, input_lines()) as (total, images):
        asked = asking(run, config)
        write = predictions.line_writer(asked, out) if streamed else kept.extend
        # lines on a terminal show how far it is, and would be written into the display
        with predicting_progress(total, not (streamed and out.isatty())) as report:
            for part in answers(asked, images):
                tally.add(part)
                for one in part:
                    if isinstance(one, Bad):
                        say(f"left out: {one.reason}")
                found = [one for one in part if isinstance(one, Answer)]
                write([one for one in found if one.is_mistake or not config.mistakes])
                report(tally.files)
                if getattr(out, "dropped", False):
                    return  # nobody reads on
    if not tally.files:
        raise DataError("no images: standard input named none")
    show(asked, run, kept, tally)
    if config.mistakes and tally.answered and not tally.confusion.n:
        raise DataError(f"--mistakes: {UNLABELLED}")
    if plot:
        draw(run, tally.confusion)
    if bad := tally.unanswered:
        have = "have" if bad > 1 else "has"
        raise CartlError(f"{bad:,} of {tally.files:,} files {have} no answer; each is named above")
    if not streamed:
        after_model(run, runs_dir)


def divided(words: list[str], runs_dir: Path) -> tuple[str, list[str]]:
    """The name of the run, if the first word is one, and the paths."""
    if not words or is_path(words[0], runs_dir, alone=len(words) == 1):
        return "", words
    return words[0], words[1:]


def is_path(word: str, runs_dir: Path, alone: bool) -> bool:
    """Whether the first word names images rather than a run; if neither is there, it is ``alone``.

    A run that is there goes before a folder.
    """
    if word == STDIN or ending(word) in {*READ, *UNREAD, ".zip"}:
        return True
    place = Path(os.path.expanduser(word))
    runs = (runs_dir / word / MANIFEST, place / MANIFEST)
    if word.isdecimal() or any(map(os.path.lexists, runs)):
        return False
    return alone or os.path.lexists(place)


def input_lines() -> Iterator[str]:
    """The lines of standard input, whatever their encoding."""
    if sys.stdin is not None:
        yield from map(os.fsdecode, sys.stdin.buffer)


def show(asked: "Asking", run: "Run", kept: "list[Answer]", tally: "Tally") -> None:
    """The answers that were kept for a table, and what all of them come to."""
    from cartl_cli.display import predictions, tables
    from cartl_cli.display.terminal import say

    if kept:
        tables.show(predictions.answers_table(asked, run.name, kept, tally))
    elif asked.budget is not None:
        say(predictions.survivors(asked, tally.answered, tally.survived))
    if not tally.confusion.n:
        return
    beside = tables.show if asked.config.format == "table" else tables.show_aside
    beside(predictions.accuracy_table(run.name, tally.confusion))
    if matrix := predictions.confusion_table(tally.confusion):  # where a screen has room for it
        beside(matrix)
    if tally.learned:
        say(
            f"warning: {tally.learned:,} of these images lie where run {run.name} found its "
            "training images, and it may have seen them: their accuracy says nothing of new ones"
        )


def draw(run: "Run", confusion: "Confusion") -> None:
    """Draw the confusion matrix into the folder of the command. Raises CartlError, StorageError."""
    from cartl_cli.display.confusion_plot import confusion_plot
    from cartl_cli.display.terminal import say

    if not confusion.n:
        raise DataError(f"--plot: {UNLABELLED}")
    picture = confusion_plot(run.name, confusion)
    storage.write_whole(PICTURE, picture)
    say(f"drawn {PICTURE}")
