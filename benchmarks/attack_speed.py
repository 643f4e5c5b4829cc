"""How fast PGD is here, beside other libraries on the same model, images, steps and cores.

    python -m benchmarks.attack_speed vanilla cartl --runs-dir demo-runs

VANILLA_RUN and CARTL_RUN are finished transfers on `shapes-target`. Competitors take turns, round
by round, each in a process of its own; speeds and ratios are medians over the rounds, ratios within
a round. Writes the tables to
standard output as Markdown and everything to docs/figures/attack-speed.json. Needs the peers:
`pip install 'cartl[bench]'` (see `benchmarks.peers`). About 15 minutes on two cores.
"""

import argparse
import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import children, commands
from benchmarks.commands import machine, progress
from benchmarks.competitors import (
    BATCH,
    Measured,
    Task,
    Way,
    budget,
    cartl,
    everybody,
    model_of,
    pixels,
    process,
    ways,
)
from benchmarks.peers import DISTRIBUTIONS, missing
from cartl_cli.core.attacks.judged_pgd import predict
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.data.downloads import NOWHERE
from cartl_cli.core.data.shapes import shapes_target
from cartl_cli.core.evaluation import attack_run
from cartl_cli.core.evaluation.trust_checks import checked
from cartl_cli.core.evaluation.verdicts import Plan, robustness, unattacked
from cartl_cli.core.method.losses import cross_entropy
from cartl_cli.core.method.pgd import ascent
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.compiling import compiled_passes
from cartl_cli.core.models.folding import folded
from cartl_cli.core.runs import reader
from cartl_cli.core.runs.results import Check
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.devices import keep_freed_memory
from cartl_cli.core.trust.tiers import ignore

SIZES = (1_000, 10_000)  # images of the memory's measurement
Figures = dict[str, Any]


def in_turns(work: Mapping[str, Callable[[], Measured]], rounds: int) -> dict[str, list[Measured]]:
    """What each piece of work measures, round by round in the order A B C A B C."""
    found: dict[str, list[Measured]] = {name: [] for name in work}
    for number in range(rounds):
        for name, run in work.items():
            found[name].append(run())
            seconds = found[name][-1].seconds
            progress.print(f"round {number + 1}: {name} {seconds:.2f} s", markup=False)
    return found


def timed(run: Callable[[], object]) -> Callable[[], Measured]:
    def measure() -> Measured:
        began = time.perf_counter()
        run()
        return Measured(time.perf_counter() - began, 0.0)

    return measure


def faster(found: dict[str, list[Measured]], ours: str, theirs: str) -> float:
    """The median, over the rounds, of their time over ours."""
    pairs = zip(found[theirs], found[ours], strict=True)
    return statistics.median(their.seconds / our.seconds for their, our in pairs)


def median_seconds(found: list[Measured]) -> float:
    return statistics.median(each.seconds for each in found)


def fastest(found: dict[str, list[Measured]]) -> str:
    """The peer of the smallest median."""
    names = [name for name in found if not name.startswith("cartl")]
    return min(names, key=lambda name: median_seconds(found[name]))


def compared(runs_dir: Path, name: str, task: Task, rounds: int, names: list[str]) -> Figures:
    """The competitors at one task, each in a process of its own, in turns."""
    with contextlib.ExitStack() as processes:
        work = {who: processes.enter_context(process(who, runs_dir, name, task)) for who in names}
        found = in_turns(work, rounds)
    peer = fastest(found)
    return {
        **asdict(task),
        "seconds": {who: median_seconds(each) for who, each in found.items()},
        "image steps per second": {
            who: task.images * task.steps / median_seconds(each) for who, each in found.items()
        },
        "robust accuracy": {
            who: statistics.median(one.robust for one in each) for who, each in found.items()
        },
        "fastest peer": peer,
        "ratio to the fastest peer": {
            who: faster(found, who, peer) for who in ways() if who in found
        },
    }


def overhead(model: BlockModel, steps: int, rounds: int) -> Figures:
    """The loop's time over that of its passes alone.

    The passes are the gradients, and one float32 prediction of every image for its verdict, one for
    its last iterate.
    """
    images, labels = pixels(shapes_target().evaluation.take(torch.arange(BATCH)))
    images = images.contiguous(memory_format=torch.channels_last)
    found: Figures = {"images": len(images), "steps": steps}
    for name, way in ways().items():
        light = folded(model)

        def passes(light: BlockModel = light, way: Way = way) -> None:
            size = BATCH if way.compiled else 0
            with eval_mode(model), way.autocast, compiled_passes(size):
                for _ in range(steps):
                    ascent(light, images, labels, cross_entropy)
                for _ in range(2):
                    predict(model, images)

        cartl(model, budget(2), way, True)(images, labels)
        loop = cartl(model, budget(steps), way, True)
        work = {"cartl": timed(partial(loop, images, labels)), "passes": timed(passes)}
        found[name] = 1 / faster(in_turns(work, rounds), "cartl", "passes") - 1
    return found


def checks(runs_dir: Path, name: str, steps: int, count: int) -> Figures:
    """The time of the checks of tier ``fast`` as a part of ``cartl attack`` on ``count`` images.

    They cost the same whatever the number of images; the attack is timed on those that there are.
    """
    seconds = []

    def clocked(*arguments: Any) -> list[Check]:
        began = time.perf_counter()
        found = checked(*arguments)
        seconds.append(time.perf_counter() - began)
        return found

    attacked = reader.find_run(name, runs_dir, "RUN", ("transfer",))
    config = AttackConfig(run=name, attack=("pgd",), pgd_steps=steps, batch_size=BATCH)
    session = Session(runs_dir, None, NOWHERE, progress.print)
    with mock.patch.object(attack_run, "checked", clocked):
        run = attack_run.attack_model(config, attacked, session, ignore, ignore, force=True)
    assert run is not None
    results = run.attack_results
    attack_seconds = (results.seconds - seconds[0]) * count / results.n
    return {
        "images": count,
        "timed on": results.n,
        "steps": steps,
        "attack seconds": attack_seconds,
        "checks seconds": seconds[0],
        "part": seconds[0] / (attack_seconds + seconds[0]),
    }


def command(runs_dir: Path, name: str, task: Task, rounds: int) -> float:
    """The median seconds of ``cartl attack`` as a user types it, from start to end."""
    settings = ("--attack", "pgd", "--pgd-steps", task.steps, "--limit", task.images, "--force")
    run = partial(
        commands.cartl, "attack", name, *settings, "--batch-size", BATCH, "--runs-dir", runs_dir
    )
    return median_seconds([timed(run)() for _ in range(rounds)])


PEAK = """
import sys
from pathlib import Path
from benchmarks.attack_speed import evaluate
from benchmarks.commands import peak_memory
evaluate(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
print(peak_memory())
"""


def evaluate(runs_dir: Path, name: str, count: int, steps: int) -> None:
    """One attack on ``count`` images: what a child's memory is measured on."""
    keep_freed_memory()
    model, split = model_of(runs_dir, name), shapes_target().evaluation
    some = split.take(torch.arange(len(split)).repeat(math.ceil(count / len(split)))[:count])
    plan = Plan(("pgd",), (budget(steps),), 1, 1, 1, 0, BATCH)
    autocast = next(iter(ways().values())).autocast
    for _ in robustness(model, some, plan, autocast, unattacked(model, some, plan)):
        pass


def memory(runs_dir: Path, name: str, sizes: tuple[int, ...], steps: int) -> Figures:
    """Peak resident memory of an attack in a process of its own, in MiB."""

    def peak(count: int, steps: int) -> float:
        progress.print(f"memory: {count} images, {steps} steps")
        return children.last_number(PEAK, str(runs_dir), name, str(count), str(steps))

    few, many = sizes
    pixel_bytes = 3 * 32 * 32
    return {
        f"{few} images": peak(few, 2),
        f"{many} images": peak(many, 2),
        "pixels of the difference": (many - few) * pixel_bytes / 2**20,
        **{f"{number} steps": peak(BATCH, number) for number in (max(steps // 10, 1), steps)},
    }


def written(figures: Figures) -> str:
    """The figures as Markdown."""
    fixed, names = figures["fixed work"], list(figures["fixed work"]["image steps per second"])
    lines = [
        "| | image·steps a second | vanilla, PGD-100 | robust | CARTL, PGD-100 | robust |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        cells = [f"{fixed['image steps per second'][name]:,.0f}"]
        for target in ("vanilla", "cartl"):
            part = figures[target]
            cells.append(f"{part['seconds'][name]:.1f} s")
            cells.append(f"{100 * part['robust accuracy'][name]:.1f} %")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| ratio to the fastest peer | fixed work | vanilla | CARTL |",
        "|---|--:|--:|--:|",
    ]
    for name in fixed["ratio to the fastest peer"]:
        ratios = [
            figures[part]["ratio to the fastest peer"][name]
            for part in ("fixed work", "vanilla", "cartl")
        ]
        lines.append(f"| {name} | {' | '.join(f'{ratio:.2f} ×' for ratio in ratios)} |")
    lines.append("")
    for name in ways():
        lines.append(f"- Loop over its passes, {name}: {100 * figures['overhead'][name]:+.1f} %")
    seconds, peer = figures["command"], figures["cartl"]["fastest peer"]
    ratio = figures["cartl"]["seconds"][peer] / seconds
    lines.append(
        f"- The whole command on CARTL: {seconds:.1f} s, {peer} takes {ratio:.2f} times that"
    )
    lines.append(f"- Checks, tier fast: {100 * figures['checks']['part']:.1f} % of the whole")
    peaks = ", ".join(f"{what}: {mib:.0f}" for what, mib in figures["memory"].items())
    lines.append(f"- Peak memory in MiB: {peaks}")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS.values():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not known"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("vanilla", help="a finished vanilla transfer")
    parser.add_argument("cartl", help="a finished CARTL transfer")
    parser.add_argument("--runs-dir", type=Path, default=Path("demo-runs"))
    parser.add_argument("--images", type=int, default=256, help="to the verdict; at most 400")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="of fixed work and overhead")
    parser.add_argument("--verdict-rounds", type=int, default=3, help="of the time to a verdict")
    parser.add_argument("--checked", type=int, default=1_000, help="images of the checks")
    parser.add_argument("--sizes", type=int, nargs=2, default=SIZES, help="images of the memory")
    parser.add_argument("--competitors", nargs="+", choices=everybody(), default=everybody())
    parser.add_argument("--out", type=Path, default=Path("docs/figures/attack-speed.json"))
    options = parser.parse_args()
    if lacking := missing(options.competitors):
        raise SystemExit(f"missing: {', '.join(lacking)}; pip install 'cartl[bench]'")
    runs_dir, steps, rounds = options.runs_dir, options.steps, options.rounds
    names = options.competitors
    verdict = Task(options.images, steps, to_the_end=False)
    keep_freed_memory()
    figures: Figures = {
        "measured": f"{machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "fixed work": compared(
            runs_dir, options.cartl, Task(BATCH, max(steps // 5, 1), to_the_end=True), rounds, names
        ),
        "overhead": overhead(model_of(runs_dir, options.cartl), steps, rounds),
        "checks": checks(runs_dir, options.cartl, steps, options.checked),
        "memory": memory(runs_dir, options.cartl, tuple(options.sizes), steps),
        "vanilla": compared(runs_dir, options.vanilla, verdict, options.verdict_rounds, names),
        "cartl": compared(runs_dir, options.cartl, verdict, options.verdict_rounds, names),
        "command": command(runs_dir, options.cartl, verdict, options.verdict_rounds),
    }
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(written(figures))
    print(figures["measured"], ", ".join(f"{n} {v}" for n, v in figures["versions"].items()))


if __name__ == "__main__":
    main()
