"""How fast PGD is here, beside other libraries on the same model, images, steps and cores.

    python -m benchmarks.attack_speed vanilla cartl --runs-dir demo-runs

VANILLA_RUN and CARTL_RUN are finished transfers on `shapes-target`. Competitors take turns, round
by round; speeds and ratios are medians over the rounds, ratios within a round. Writes the tables to
standard output as Markdown and everything to docs/figures/attack-speed.json. Needs the peers:
`pip install 'cartl[bench]'` (see `benchmarks.peers`). About 15 minutes on two cores.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.commands import machine, progress
from benchmarks.peers import DISTRIBUTIONS, missing, peers
from cartl_cli.core import attacking, runs
from cartl_cli.core.attacks.pgd import Budget, ascent, correct, predict
from cartl_cli.core.attacks.suite import ATTACKS, Batch, Setting
from cartl_cli.core.config import AttackConfig
from cartl_cli.core.data.shapes import shapes_target
from cartl_cli.core.data.split import Split, stratified, to_pixels
from cartl_cli.core.evaluation import Plan, robustness, unattacked
from cartl_cli.core.losses import cross_entropy
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.folding import folded
from cartl_cli.core.precision import autocast_for, native_bfloat16
from cartl_cli.core.recording import Session
from cartl_cli.core.trust.checks import Check
from cartl_cli.core.trusting import checked

CPU = torch.device("cpu")
EPS = 8 / 255
BATCH = 128
SIZES = (1_000, 10_000)  # images of the memory's measurement
Run = Callable[[Tensor, Tensor], Tensor]
Figures = dict[str, Any]


def model_of(runs_dir: Path, name: str) -> BlockModel:
    """The model of a finished transfer, in evaluation mode."""
    return runs.read_model(runs.find_run(name, runs_dir, "RUN", ("transfer",))).eval()


def budget(steps: int) -> Budget:
    return Budget(EPS, EPS / 4, steps)


def precisions() -> dict[str, torch.autocast]:
    """Automatic casting of bfloat16, where that is native, and of float32."""
    native = {"cartl bf16": "bf16"} if native_bfloat16(CPU) else {}
    named = {**native, "cartl fp32": "fp32"}
    return {name: autocast_for(CPU, what) for name, what in named.items()}


def pixels(split: Split) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) as the peers get them, contiguous, and labels."""
    return to_pixels(split.images), split.labels


def cartl(model: BlockModel, limits: Budget, autocast: torch.autocast, to_the_end: bool) -> Run:
    """What ``cartl attack`` does with a batch; fallen images leave unless ``to_the_end``."""

    def run(images: Tensor, labels: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        batch = Batch(images, labels, torch.arange(len(images)))
        setting = Setting(0, 0, 1, 1, to_the_end)
        with autocast:
            return ATTACKS["pgd"](model, batch, limits, setting).adversarial

    return run


def competitors(model: BlockModel, limits: Budget, to_the_end: bool) -> dict[str, Run]:
    size, classes = 32, model.head.out_features
    ours = {n: cartl(model, limits, cast, to_the_end) for n, cast in precisions().items()}
    return {**ours, **peers(model, classes, size, limits)}


def batched(run: Run, images: Tensor, labels: Tensor) -> Tensor:
    parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([run(some, theirs) for some, theirs in parts])


def in_turns(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, round by round in the order A B C A B C."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
            progress.print(f"round {number + 1}: {name} {seconds[name][-1]:.2f} s", markup=False)
    return seconds


def faster(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    """The median, over the rounds, of their time over ours."""
    pairs = zip(seconds[theirs], seconds[ours], strict=True)
    return statistics.median(their / our for their, our in pairs)


def fastest(seconds: dict[str, list[float]]) -> str:
    """The peer of the smallest median."""
    names = [name for name in seconds if not name.startswith("cartl")]
    return min(names, key=lambda name: statistics.median(seconds[name]))


def fixed_work(model: BlockModel, split: Split, steps: int, rounds: int) -> Figures:
    """Image steps per second, with nothing dropped early."""
    images, labels = pixels(split.take(torch.arange(min(BATCH, len(split)))))
    for run in competitors(model, budget(2), True).values():
        run(images, labels)
    runs_ = competitors(model, budget(steps), True)
    work = {name: (lambda run=run: run(images, labels)) for name, run in runs_.items()}
    seconds = in_turns(work, rounds)
    count = len(images) * steps
    return {
        "images": len(images),
        "steps": steps,
        "image steps per second": {
            name: count / statistics.median(times) for name, times in seconds.items()
        },
        "fastest peer": fastest(seconds),
        "ratio to the fastest peer": {
            name: faster(seconds, name, fastest(seconds)) for name in precisions()
        },
    }


def to_verdict(model: BlockModel, split: Split, steps: int, rounds: int) -> Figures:
    """Seconds until every image has its verdict, the clean predictions included."""
    images, labels = pixels(split)
    robust: dict[str, list[float]] = {}

    def judged(name: str, run: Run) -> None:
        right = correct(predict(model, images), labels)
        found = batched(run, images[right], labels[right])
        stands = int(correct(predict(model, found), labels[right]).sum())
        robust.setdefault(name, []).append(stands / len(images))

    for run in competitors(model, budget(2), False).values():
        run(images[:BATCH], labels[:BATCH])
    runs_ = competitors(model, budget(steps), False)
    work = {name: (lambda n=name, run=run: judged(n, run)) for name, run in runs_.items()}
    seconds = in_turns(work, rounds)
    return {
        "images": len(images),
        "steps": steps,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "robust accuracy": {name: statistics.median(found) for name, found in robust.items()},
        "fastest peer": fastest(seconds),
        "ratio to the fastest peer": {
            name: faster(seconds, name, fastest(seconds)) for name in precisions()
        },
    }


def overhead(model: BlockModel, split: Split, steps: int, rounds: int) -> Figures:
    """The loop's time over that of its passes alone.

    The passes are the gradients, and one float32 prediction of every image for its verdict, one for
    its last iterate.
    """
    images, labels = pixels(split.take(torch.arange(min(BATCH, len(split)))))
    images = images.contiguous(memory_format=torch.channels_last)
    found: Figures = {"images": len(images), "steps": steps}
    for name, autocast in precisions().items():
        light = folded(model)

        def passes(light: BlockModel = light, autocast: torch.autocast = autocast) -> None:
            with eval_mode(model), autocast:
                for _ in range(steps):
                    ascent(light, images, labels, cross_entropy)
                for _ in range(2):
                    predict(model, images)

        loop = cartl(model, budget(steps), autocast, True)
        loop(images[:8], labels[:8])
        work = {"cartl": lambda loop=loop: loop(images, labels), "passes": passes}
        seconds = in_turns(work, rounds)
        found[name] = 1 / faster(seconds, "cartl", "passes") - 1
    return found


def checks(runs_dir: Path, name: str, steps: int, count: int) -> Figures:
    """The time of the checks of tier ``fast`` as a part of ``cartl attack`` on ``count`` images.

    They cost the same whatever the number of images; the attack is timed on those that there are.
    """
    seconds = []

    def timed(*arguments: Any) -> list[Check]:
        began = time.perf_counter()
        found = checked(*arguments)
        seconds.append(time.perf_counter() - began)
        return found

    attacked = runs.find_run(name, runs_dir, "RUN", ("transfer",))
    config = AttackConfig(run=name, attack=("pgd",), pgd_steps=steps, batch_size=BATCH)
    session = Session(runs_dir, None, None, progress.print)
    with mock.patch.object(attacking, "checked", timed):
        run = attacking.attack(config, attacked, session, lambda done, total: None, force=True)
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


PEAK = """
import resource, sys
from pathlib import Path
import torch
from benchmarks.attack_speed import evaluate
evaluate(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def evaluate(runs_dir: Path, name: str, count: int, steps: int) -> None:
    """One attack on ``count`` images: what a child's memory is measured on."""
    model, split = model_of(runs_dir, name), shapes_target().evaluation
    some = split.take(torch.arange(len(split)).repeat(math.ceil(count / len(split)))[:count])
    plan = Plan(("pgd",), (budget(steps),), 1, 1, 1, 0, BATCH)
    autocast = next(iter(precisions().values()))
    robustness(model, some, plan, autocast, unattacked(model, some, plan), lambda left: None)


def memory(runs_dir: Path, name: str, sizes: tuple[int, ...], steps: int) -> Figures:
    """Peak resident memory of an attack in a process of its own, in MiB."""

    def peak(count: int, steps: int) -> float:
        progress.print(f"memory: {count} images, {steps} steps")
        command = [sys.executable, "-c", PEAK, str(runs_dir), name, str(count), str(steps)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return int(printed.split()[-1]) / 2**10

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
    for name in precisions():
        ratios = [
            figures[part]["ratio to the fastest peer"][name]
            for part in ("fixed work", "vanilla", "cartl")
        ]
        lines.append(f"| {name} | {' | '.join(f'{ratio:.2f} ×' for ratio in ratios)} |")
    lines.append("")
    for name in precisions():
        lines.append(f"- Loop over its passes, {name}: {100 * figures['overhead'][name]:+.1f} %")
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
    parser.add_argument("--out", type=Path, default=Path("docs/figures/attack-speed.json"))
    options = parser.parse_args()
    if lacking := missing():
        raise SystemExit(f"missing: {', '.join(lacking)}; pip install 'cartl[bench]'")
    torch.manual_seed(0)
    whole = shapes_target().evaluation
    split = whole.take(stratified(whole.labels, options.images, 0, "limit"))
    vanilla, robust = (
        model_of(options.runs_dir, name) for name in (options.vanilla, options.cartl)
    )
    steps, rounds = options.steps, options.rounds
    figures: Figures = {
        "measured": f"{machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "fixed work": fixed_work(robust, split, max(steps // 5, 1), rounds),
        "overhead": overhead(robust, split, max(steps // 2, 1), rounds),
        "checks": checks(options.runs_dir, options.cartl, steps, options.checked),
        "memory": memory(options.runs_dir, options.cartl, tuple(options.sizes), steps),
        "vanilla": to_verdict(vanilla, split, steps, options.verdict_rounds),
        "cartl": to_verdict(robust, split, steps, options.verdict_rounds),
    }
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(written(figures))
    print(figures["measured"], ", ".join(f"{n} {v}" for n, v in figures["versions"].items()))


if __name__ == "__main__":
    main()
