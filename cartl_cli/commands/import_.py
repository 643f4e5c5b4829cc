"""``cartl import``."""

import json
from pathlib import Path
from typing import Any

from cartl_cli.commands.next_step import after_model, after_source
from cartl_cli.commands.options import (
    AsJson,
    DataDir,
    NoDownload,
    Request,
    RunName,
    RunsDir,
    flags_from,
)
from cartl_cli.commands.session import open_session
from cartl_cli.core.config import ImportConfig


@flags_from(ImportConfig)
def import_(
    settings: dict[str, Any],
    name: RunName = None,
    runs_dir: RunsDir = Path("runs"),
    data_dir: DataDir = None,
    no_download: NoDownload = False,
    as_json: AsJson = False,
) -> Path:
    """Make a source run of a model that was trained elsewhere, and measure it."""
    request = Request(
        settings, name=name, runs_dir=runs_dir, data_dir=data_dir, no_download=no_download
    )
    opened = open_session(request, ImportConfig, "import")
    from cartl_cli.core.imports.source_run import import_model
    from cartl_cli.display import tables
    from cartl_cli.display.progress import attack_progress
    from cartl_cli.display.terminal import say

    with attack_progress() as (report, _):
        run = import_model(opened.config, opened.session, report)
    say(f"saved {run.folder}")
    results = run.import_results
    if as_json:
        shown = {
            "run": run.name,
            "folder": str(run.folder),
            "arch": opened.config.arch,
            "classes": len(run.manifest.model.classes),
            "clean_accuracy": results.clean_accuracy,
            "robust_accuracy": results.robust_accuracy,
            "n": results.n,
            "seconds": results.seconds,
        }
        print(json.dumps(shown))
    else:
        if results.n:
            tables.show(tables.import_table(run))
        after = after_model if opened.config.whole else after_source
        after(run, runs_dir)
    return run.folder
