"""The pictures of a finished attack, put into its run folder."""

import os

from cartl_cli.core import storage
from cartl_cli.core.errors import CartlError
from cartl_cli.core.evaluation.comparison import read_outcomes
from cartl_cli.core.evaluation.confusion import confusions
from cartl_cli.core.evaluation.gallery import gallery
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.results import headline
from cartl_cli.core.runs.writer import Session
from cartl_cli.display.terminal import say

GRID = "adversarial.png"


def draw_plots(run: Run) -> None:
    """Accuracy over eps and over steps, confusion matrices, and feature distances if measured."""
    from cartl_cli.display.attack_plots import attack_plots, largest
    from cartl_cli.display.confusion_plot import confusion_plot

    files = attack_plots(run, read_outcomes(run))
    if answered := confusions(run):
        trusted = headline(run.attack_results.trust)
        doubt = "" if trusted == "ok" else f", {trusted}"
        for name, said, one in (
            ("clean", "clean", answered[0]),
            ("attacked", f"under attack, eps {largest(run)}{doubt}", answered[-1]),
        ):
            for ending in ("png", "svg"):
                picture = confusion_plot(run.source.run, one, said, ending)
                files[f"confusion-{name}.{ending}"] = picture
    with storage.locked(run.folder):
        for name, data in files.items():
            storage.write_whole(run.folder / name, data)
    say(f"drawn {', '.join(files)}")


def draw_grid(run: Run, attacked: Run, session: Session) -> None:
    """A few adversarial images beside the clean ones, unless the picture is there."""
    path = run.folder / GRID
    if os.path.lexists(path):
        return
    try:
        from cartl_cli.display.attack_grid import attack_grid
    except ImportError:
        say(f"note: no {GRID} without matplotlib: pip install 'cartl[plot]', then --resume")
        return
    try:
        storage.write_whole(path, attack_grid(gallery(run, attacked, session.place)))
    except CartlError as error:  # the numbers are there: a missing picture is no reason to fail
        say(f"warning: no {GRID}: {error}")
