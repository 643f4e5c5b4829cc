"""``cartl pretrain``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cartl_cli.commands.opening import layers, open_session
from cartl_cli.commands.options import (
    AsJson,
    ConfigFile,
    DataDir,
    Extend,
    NoDownload,
    Preset,
    Resume,
    RunName,
    RunsDir,
    flags_from,
)
from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.configure import configure


@flags_from(PretrainConfig)
def pretrain(
    settings: dict[str, Any],
    preset: Preset = None,
    config: ConfigFile = None,
    name: RunName = None,
    runs_dir: RunsDir = Path("runs"),
    resume: Resume = None,
    extend: Extend = False,
    data_dir: DataDir = None,
    no_download: NoDownload = False,
    as_json: AsJson = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Show the architecture's blocks, and stop.")
    ] = False,
) -> None:
    """Train a robust source model: adversarial training and feature distance minimization."""
    given = [*layers("pretrain", preset, config), settings]
    if describe:
        show_blocks(configure(PretrainConfig, *given))
        return
    opened = open_session(
        PretrainConfig,
        "pretrain",
        given,
        runs_dir,
        name,
        resume,
        extend,
        data_dir=data_dir,
        no_download=no_download,
    )
    from cartl_cli.core.training.pretraining import pretrain as pretrain_run
    from cartl_cli.display import tables
    from cartl_cli.display.progress import say, training_progress

    with training_progress() as report:
        run = opened.finished or pretrain_run(opened.config, opened.session, report)
    if not opened.session.ranks.first:
        return
    say(f"saved {run.folder}")
    results = run.results
    if results.clean_accuracy <= 1.5 / len(run.manifest.model.classes):
        say("warning: clean accuracy is at chance; train longer or with a smaller --fdm-lambda")
    if as_json:
        shown = {
            "run": run.name,
            "folder": str(run.folder),
            "arch": opened.config.arch,
            "k": opened.config.k,
            "clean_accuracy": results.clean_accuracy,
            "robust_accuracy": results.robust_accuracy,
            "last_weights": results.last_weights and results.last_weights.model_dump(),
            "collapsed_after": results.collapsed_after,
            "seconds": results.seconds,
        }
        print(json.dumps(shown))
    else:
        tables.show(tables.training_table(run))


def show_blocks(config: PretrainConfig) -> None:
    """The blocks of the configured architecture, as a table."""
    from cartl_cli.core.models.describe import block_table
    from cartl_cli.display import tables

    rows = block_table(config.arch, config.image_size)
    tables.show(tables.block_table(config.arch, rows))
