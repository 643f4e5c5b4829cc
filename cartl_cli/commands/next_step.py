"""What to type next, said after each command: one line that can be pasted as it is."""

import os
import shlex
from pathlib import Path

from cartl_cli.core.choices import FORM_ENDINGS
from cartl_cli.core.config.fields import BUILT_IN_SIDE
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import MANIFEST, attacks_on, selector_of
from cartl_cli.core.sweeps.points import Sweep
from cartl_cli.display.terminal import say


def after_source(run: Run, runs_dir: Path) -> None:
    """Say how to transfer a source model."""
    words = ["transfer", "--source", selector_of(run, runs_dir), "--method", "fast", "--dataset"]
    if run.manifest.model.image_size == BUILT_IN_SIDE:
        _next([*words, "shapes-target"], runs_dir, " (or with a folder of your images)")
    else:
        _next([*words, "IMAGES"], runs_dir, " (with a folder of your images for IMAGES)")


def after_model(run: Run, runs_dir: Path, done: str = "") -> None:
    """Say what is not yet done with a model: attack it, see its page, export it, compare it.

    One that came without images cannot be attacked as it is. ``done``: the command that was just
    done with it, wherever it left what it made.
    """
    inside_a_run = "../" if os.path.lexists(MANIFEST) else ""  # where no page may be made
    name, page = selector_of(run, runs_dir), f"{inside_a_run}{run.name}-page"
    if run.making.dataset is not None and done != "attack" and not attacks_on(run, runs_dir):
        words = ["attack", name]
    elif not os.path.lexists(page):
        words = ["report", name, "--format", "html", "--out", page]
    elif done != "export" and not any(
        os.path.lexists(run.name + end) for end in FORM_ENDINGS.values()
    ):
        words = ["export", name]
    else:
        words = ["report"]
    _next(words, runs_dir)


def after_sweep(sweep: Sweep, runs_dir: Path) -> None:
    """Say how to see what a sweep found; one without attacks, how to attack its last model."""
    attacked = any(point.kind == "attack" for point in sweep.points)
    _next(["report", sweep.name] if attacked else ["attack", sweep.points[-1].run], runs_dir)


def _next(words: list[str], runs_dir: Path, remark: str = "") -> None:
    place = [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
    say(f"next{remark}: {shlex.join(['cartl', *words, *place])}")
