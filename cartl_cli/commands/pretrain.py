"""``cartl pretrain``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cartl_cli.commands.next_step import after_source
from cartl_cli.commands.options import AsJson, Extend, Request, flags_from
from cartl_cli.commands.session import layers, located, open_session
from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.config.configure import configure


@flags_from(PretrainConfig)
def pretrain(
    request: Request,
    extend: Extend = False,
    as_json: AsJson = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Show the architecture's blocks, and stop.")
    ] = False,
) -> Path | None:
    """Train a robust source model: adversarial training and feature distance minimization."""
    if describe:
        show_blocks(located(configure(PretrainConfig, *layers(request, "pretrain"))))
        return None
    opened = open_session(request, PretrainConfig, "pretrain", extend)
    from cartl_cli.core.training.source_model import pretrain as pretrain_run
    from cartl_cli.display import tables
    from cartl_cli.display.progress import training_progress
    from cartl_cli.display.terminal import say

    with training_progress() as report:
        run = opened.finished or pretrain_run(opened.config, opened.session, report)
    if run is None:
        return None  # another process tells
    say(f"saved {run.folder}")
    if as_json:
        results = run.results
        shown = {
            "run": run.name,
            "folder": str(run.folder),
            "arch": opened.config.arch,
            "k": opened.config.k,
            "balance": opened.config.balance,
            "clean_accuracy": results.clean_accuracy,
            "robust_accuracy": results.robust_accuracy,
            "last_weights": results.last_weights and results.last_weights.model_dump(),
            "collapsed_after": results.collapsed_after,
            "seconds": results.seconds,
        }
        print(json.dumps(shown))
    else:
        tables.show(tables.training_table(run))
        after_source(run, opened.session.runs_dir)
    return run.folder


def show_blocks(config: PretrainConfig) -> None:
    """The blocks of the configured architecture, as a table."""
    from cartl_cli.core.models.block_table import block_table
    from cartl_cli.display import tables

    rows = block_table(config.arch, config.image_size)
    tables.show(tables.block_table(config.arch, rows))
