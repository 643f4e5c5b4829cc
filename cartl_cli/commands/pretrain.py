"""``cartl pretrain``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cartl_cli.commands.options import (
    AsJson,
    ConfigFile,
    Preset,
    RunName,
    RunsDir,
    cache_dir,
    flags_from,
    layers,
    located,
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
    as_json: AsJson = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Show the architecture's blocks, and stop.")
    ] = False,
) -> None:
    """Train a robust source model: adversarial training and feature distance minimization."""
    chosen = located(configure(PretrainConfig, *layers("pretrain", preset, config), settings))
    from cartl_cli.core.models.describe import block_table
    from cartl_cli.core.pretraining import pretrain as pretrain_run
    from cartl_cli.display import tables
    from cartl_cli.display.progress import say, training_progress

    if describe:
        rows = block_table(chosen.arch, chosen.image_size)
        tables.show(tables.block_table(chosen.arch, rows))
        return
    with training_progress() as report:
        run = pretrain_run(chosen, runs_dir, name, cache_dir(), say, report)
    say(f"saved {run.folder}")
    results = run.results
    if results.clean_accuracy <= 1.5 / len(run.manifest.model.classes):
        say("warning: clean accuracy is at chance; train longer or with a smaller --fdm-lambda")
    if as_json:
        shown = {
            "run": run.name,
            "folder": str(run.folder),
            "arch": chosen.arch,
            "k": chosen.k,
            "clean_accuracy": results.clean_accuracy,
            "robust_accuracy": results.robust_accuracy,
            "seconds": results.seconds,
        }
        print(json.dumps(shown))
    else:
        tables.show(tables.training_table(run))
