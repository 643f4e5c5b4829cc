"""``cartl attack``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cartl_cli.commands.attack_model import of_model
from cartl_cli.commands.next_step import after_model
from cartl_cli.commands.options import AsJson, Request, flags_from
from cartl_cli.commands.session import open_session
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.errors import CartlError
from cartl_cli.core.runtime.requirements import check_matplotlib

if TYPE_CHECKING:
    from cartl_cli.core.runs.manifest import Run
    from cartl_cli.core.runs.results import AttackResults
    from cartl_cli.core.statistics import Difference

    Differences = dict[float | None, Difference]


@flags_from(AttackConfig)
def attack(
    request: Request,
    force: Annotated[
        bool, typer.Option("--force", help="Attack again though the same result is there.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="FILE.py:FACTORY",
            help="Attack any network, instead of a run's, on the images of --dataset.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="FILE", help="Weights of --model (default: the factory's own)."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            min=8,
            metavar="INTEGER",
            help="Side of the images of --model (default: 32).",
        ),
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="An attack to compare with, image by image.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a check that the attack worked fails.")
    ] = False,
    plot: Annotated[
        bool, typer.Option("--plot", help="Draw the results into the run folder, as PNG and SVG.")
    ] = False,
    as_json: AsJson = False,
) -> Path | None:
    """Attack a run's model with PGD and say how much accuracy is left."""
    if plot:
        check_matplotlib()
    if model or weights or image_size:
        request = of_model(request, model, weights, image_size)
    opened = open_session(request, AttackConfig, "attack")
    from cartl_cli.commands.attack_pictures import draw_grid, draw_plots
    from cartl_cli.core.evaluation.attack_run import attack_model
    from cartl_cli.core.evaluation.comparison import beside_a_constant, beside_baselines
    from cartl_cli.core.evaluation.comparison import compare as compare_runs
    from cartl_cli.core.runs.reader import find_run
    from cartl_cli.display.progress import attack_progress
    from cartl_cli.display.terminal import say

    chosen, attacked = opened.config, opened.source
    other = (
        find_run(compare, opened.session.runs_dir, "--compare", ("attack",)) if compare else None
    )
    with attack_progress() as (report, report_check):
        run = opened.finished or attack_model(
            chosen, attacked, opened.session, report, report_check, force, other
        )
    if run is None:
        return None  # another process tells
    say(f"saved {run.folder}")
    differences = compare_runs(run, other) if other else {}
    if as_json:
        print(json.dumps(as_object(run, attacked, other, differences)))
    else:
        show(run, other, differences)
    for note in (*beside_a_constant(run), *beside_baselines(run, attacked)):
        say(note)
    if chosen.save_adversarial:
        draw_grid(run, attacked, opened.session)
    if plot:
        draw_plots(run)
    if not as_json:
        after_model(attacked, opened.session.runs_dir, done="attack")
    failed = [check.id for check in run.attack_results.trust if check.verdict == "fail"]
    if strict and failed:
        raise CartlError(f"{len(failed)} checks of the attack failed: {', '.join(failed)}")
    return run.folder


def show(run: "Run", other: "Run | None", differences: "Differences") -> None:
    """The tables of a finished attack, and how it compares with another."""
    from cartl_cli.core.evaluation.confusion import confusions
    from cartl_cli.display import tables
    from cartl_cli.display.class_tables import class_table
    from cartl_cli.display.terminal import say

    results = run.attack_results
    tables.show(tables.attack_table(run))
    if answered := confusions(run):
        tables.show(class_table(run, answered[0], answered[-1]))
    if results.diagnosis is not None:
        tables.show(tables.diagnosis_table(run))
    if any(check.verdict != "pass" for check in results.trust):
        tables.show(tables.trust_table(results))
    elif results.trust:
        say(f"all {len(results.trust)} checks that the attack worked have passed")
    if other is not None:
        tables.show(tables.difference_table(run, other, differences))


def as_object(
    run: "Run", attacked: "Run", other: "Run | None", differences: "Differences"
) -> dict[str, Any]:
    """What ``--json`` prints of a finished attack."""
    from cartl_cli.core.evaluation.confusion import by_class, confusions
    from cartl_cli.display.tables import in_words

    config = run.attack
    shown = {
        "run": attacked.name,
        "attack": run.name,
        "folder": str(run.folder),
        "measured": run.manifest.data.measured,
        "steps": config.pgd_steps,
        "restarts": config.restarts,
        **numbers(run.attack_results),
        "by_class": by_class(confusions(run)),
        "in_words": in_words(run),
    }
    if other is not None:
        shown["compared_with"] = other.name
        shown["differences"] = [{"eps": eps, **asdict(found)} for eps, found in differences.items()]
    return shown


def numbers(results: "AttackResults") -> dict[str, Any]:
    """The results as printed: those of the largest eps first, then of each."""
    from cartl_cli.core.runs.results import headline

    largest = results.by_eps[-1]
    return {
        "n": results.n,
        "eps": largest.eps,
        "clean_accuracy": results.clean_accuracy,
        "robust_accuracy": largest.robust_accuracy,
        "robust_accuracy_ce": largest.alone("pgd"),
        "robust_accuracy_margin": largest.alone("pgd-margin"),
        "final_iterate_accuracy": largest.final_iterate_accuracy,
        "interval": largest.interval,
        "half_eps": results.half_eps,
        "by_eps": [found.model_dump() for found in results.by_eps],
        "diagnosis": results.diagnosis and results.diagnosis.model_dump(),
        "headline": headline(results.trust),
        "trust": [check.model_dump() for check in results.trust],
        "saved": results.saved.model_dump() if results.saved else None,
        "seconds": results.seconds,
    }
