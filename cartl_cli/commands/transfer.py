"""``cartl transfer``."""

import json
from pathlib import Path
from typing import Any

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
from cartl_cli.core.architectures import parse_architecture
from cartl_cli.core.config import TransferConfig
from cartl_cli.core.configure import configure


@flags_from(TransferConfig)
def transfer(
    settings: dict[str, Any],
    preset: Preset = None,
    config: ConfigFile = None,
    name: RunName = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Fine-tune the last k blocks of a source model on your images, without adversarial images."""
    chosen = located(configure(TransferConfig, *layers("transfer", preset, config), settings))
    from cartl_cli.core.runs import find_run, newest_run
    from cartl_cli.core.transferring import transfer as transfer_run
    from cartl_cli.display import tables
    from cartl_cli.display.progress import say, training_progress

    if chosen.source:
        source = find_run(chosen.source, runs_dir, "--source")
    else:
        source = newest_run(runs_dir, ("pretrain",), "cartl pretrain")
        say(f"source: {source.folder} (the newest finished pretrain run)")
        chosen = chosen.model_copy(update={"source": source.name})
    with training_progress() as report:
        run = transfer_run(chosen, source, runs_dir, name, cache_dir(), say, report)
    say(f"saved {run.folder}")
    results = run.results
    if as_json:
        shown = {
            "run": run.name,
            "folder": str(run.folder),
            "source": source.name,
            "k": run.manifest.k,
            "neft_beta": chosen.neft_beta,
            "freeze_bn": chosen.frozen_bn,
            "clean_accuracy": results.clean_accuracy,
            "seconds": results.seconds,
        }
        print(json.dumps(shown))
    else:
        blocks = parse_architecture(run.manifest.model.arch).block_count
        tables.show(tables.tuned_table(run, blocks))
        tables.show(tables.training_table(run))
