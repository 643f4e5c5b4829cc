"""``cartl transfer``."""

import json
from pathlib import Path
from typing import Any

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
from cartl_cli.core.architectures import parse_architecture
from cartl_cli.core.config import TransferConfig


@flags_from(TransferConfig)
def transfer(
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
) -> None:
    """Fine-tune the last k blocks of a source model on your images, without adversarial images."""
    given = [*layers("transfer", preset, config), settings]
    opened = open_session(
        TransferConfig,
        "transfer",
        given,
        runs_dir,
        name,
        resume,
        extend,
        data_dir=data_dir,
        no_download=no_download,
    )
    from cartl_cli.core.training.transferring import transfer as transfer_run
    from cartl_cli.display import tables
    from cartl_cli.display.progress import say, training_progress

    chosen, source = opened.config, opened.source
    with training_progress() as report:
        run = opened.finished or transfer_run(chosen, source, opened.session, report)
    if not opened.session.ranks.first:
        return
    say(f"saved {run.folder}")
    results = run.results
    if as_json:
        shown = {
            "run": run.name,
            "folder": str(run.folder),
            "source": source.name,
            "k": run.manifest.k,
            "method": chosen.method,
            "neft_beta": chosen.neft_beta,
            "lwf_lambda": chosen.lwf_lambda,
            "freeze_bn": chosen.frozen_bn,
            "train_images": run.manifest.data.train_images,
            "clean_accuracy": results.clean_accuracy,
            "seconds": results.seconds,
        }
        print(json.dumps(shown))
    else:
        blocks = parse_architecture(run.manifest.model.arch).block_count
        tables.show(tables.tuned_table(run, blocks))
        tables.show(tables.training_table(run))
