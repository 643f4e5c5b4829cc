"""``cartl attack``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cartl_cli.commands.options import (
    AsJson,
    ConfigFile,
    Preset,
    RunsDir,
    cache_dir,
    flags_from,
    layers,
    located,
)
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.configure import configure

REPORTED = {
    "run",
    "n",
    "eps",
    "steps",
    "restarts",
    "clean_accuracy",
    "robust_accuracy",
    "robust_accuracy_ce",
    "robust_accuracy_margin",
    "final_iterate_accuracy",
    "interval",
    "seconds",
}


@flags_from(AttackConfig)
def attack(
    settings: dict[str, Any],
    run: Annotated[
        str | None,
        typer.Argument(help="Run: name, number or path (default: the newest finished run)."),
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    runs_dir: RunsDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Attack a run's model with PGD and say how much accuracy is left."""
    chosen = located(configure(AttackConfig, *layers("attack", preset, config), settings))
    from cartl_cli.core.attacking import attack as attack_run
    from cartl_cli.core.runs import find_run, newest_run
    from cartl_cli.display import tables
    from cartl_cli.display.progress import attack_progress, say

    if run is not None:
        attacked = find_run(run, runs_dir, "RUN")
    else:
        attacked = newest_run(runs_dir, ("pretrain", "transfer"), "cartl pretrain")
        say(f"run: {attacked.folder} (the newest finished run)")
    with attack_progress() as report:
        result, path = attack_run(chosen, attacked, cache_dir(), say, report)
    say(f"saved {path}")
    if as_json:
        print(json.dumps({"file": str(path), **result.model_dump(include=REPORTED)}))
    else:
        tables.show(tables.attack_table(result))
