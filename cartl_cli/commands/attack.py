"""``cartl attack``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cartl_cli.commands.options import (
    AsJson,
    ConfigFile,
    Preset,
    Resume,
    RunName,
    RunsDir,
    flags_from,
    layers,
    open_session,
)
from cartl_cli.core.config import AttackConfig


@flags_from(AttackConfig)
def attack(
    settings: dict[str, Any],
    preset: Preset = None,
    config: ConfigFile = None,
    name: RunName = None,
    runs_dir: RunsDir = Path("runs"),
    resume: Resume = None,
    force: Annotated[
        bool, typer.Option("--force", help="Attack again though the same result is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Attack a run's model with PGD and say how much accuracy is left."""
    given = [*layers("attack", preset, config), settings]
    opened = open_session(AttackConfig, "attack", given, runs_dir, name, resume)
    from cartl_cli.core.attacking import attack as attack_run
    from cartl_cli.display import tables
    from cartl_cli.display.progress import attack_progress, say

    chosen, attacked = opened.config, opened.source
    with attack_progress() as report:
        run = opened.finished or attack_run(chosen, attacked, opened.session, report, force)
    say(f"saved {run.folder}")
    if as_json:
        shown = {
            "run": attacked.name,
            "attack": run.name,
            "folder": str(run.folder),
            "eps": chosen.eps,
            "steps": chosen.pgd_steps,
            "restarts": chosen.restarts,
            **run.attack_results.model_dump(exclude={"clean_interval"}),
        }
        print(json.dumps(shown))
    else:
        tables.show(tables.attack_table(run))
