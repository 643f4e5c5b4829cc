"""Time and memory of training against what they grow with, for `benchmarks.training_speed`."""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks import children
from benchmarks.commands import progress
from benchmarks.training_rounds import competitor, source_run
from benchmarks.training_tasks import SPEED, Task, best
from cartl_cli.core.runtime.devices import keep_freed_memory
from cartl_cli.display.attack_plots import BLUE, rendered, style

ORANGE = "#E69F00"
ARCH, BLOCKS = "wrn-16-1", 8
WIDTHS, DEPTHS = (1, 2, 4, 8), (10, 16, 22, 28)
BATCHES, STEPS = (16, 32, 64, 128, 256), (1, 2, 5, 10, 20)
METHODS = {"vanilla": None, "NEFT": 0.4}
PRETRAIN = "PGD-7"

TIME, MEMORY = "ms an image", "peak memory, MiB"
PEAK = """
import json, sys
import torch
from benchmarks.commands import peak_memory
from benchmarks.training_rounds import competitor
from benchmarks.training_tasks import Task, best
from cartl_cli.core.runtime.devices import keep_freed_memory
keep_freed_memory()
task = Task(**json.loads(sys.argv[1]))
competitor(best(task), task)()
on_gpu = task.where.type == "cuda"
print(torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_memory())
"""

Curve = dict[str, Any]  # {"x": label, "values": x, TIME: {line: y}, MEMORY: {line: y}}


def measured(device: torch.device, rounds: int, place: Path) -> list[Curve]:
    """Of time, medians of rounds in which the points of a curve take turns."""
    keep_freed_memory()
    base = Task("pretrain", ARCH, 64, 1, 3, str(device))

    def width(value: int) -> Task:
        return replace(base, arch=f"wrn-10-{value}")

    def depth(value: int) -> Task:
        return replace(base, arch=f"wrn-{value}-1")

    def batch(value: int) -> Task:
        return replace(base, images=value)

    def steps(value: int) -> Task:
        return replace(base, pgd_steps=value)

    source = source_run(ARCH, BLOCKS, place, str(device))

    def tuned(beta: float | None) -> Callable[[int], Task]:
        start = replace(base, kind="transfer", steps=7, source=source, neft_beta=beta)
        return lambda k: replace(start, k=k)

    def curve(
        label: str, values: tuple[int, ...], lines: dict[str, Callable[[int], Task]]
    ) -> Curve:
        progress.print(f"curve: {label}")
        tasks = {line: [task(x) for x in values] for line, task in lines.items()}
        return {
            "x": label,
            "values": values,
            TIME: {line: milliseconds(some, rounds) for line, some in tasks.items()},
            MEMORY: {line: [peak(task) for task in some] for line, some in tasks.items()},
        }

    return [
        curve("width: WRN-10-w", WIDTHS, {PRETRAIN: width}),
        curve("depth: WRN-d-1", DEPTHS, {PRETRAIN: depth}),
        curve(f"batch size, {ARCH.upper()}", BATCHES, {PRETRAIN: batch}),
        curve(f"PGD steps, {ARCH.upper()}", STEPS, {"pretrain": steps}),
        curve(
            f"k of a transfer, {ARCH.upper()}",
            tuple(range(1, BLOCKS + 1)),
            {name: tuned(beta) for name, beta in METHODS.items()},
        ),
    ]


def milliseconds(tasks: list[Task], rounds: int) -> list[float]:
    """Of each task, the median time an image."""
    for task in tasks:
        competitor(best(task), replace(task, images=8))()  # warm
    work = [competitor(best(task), task) for task in tasks]
    found = [[1000 / go()[SPEED] for go in work] for _ in range(rounds)]
    return [statistics.median(times) for times in zip(*found, strict=True)]


def peak(task: Task) -> float:
    """MiB of a process that trains for one round: resident, or on a GPU allocated there."""
    return children.last_number(PEAK, json.dumps(asdict(task)))


def drawn(curves: list[Curve], what: str, conditions: str) -> bytes:
    """The curves of ``TIME`` or ``MEMORY`` as small multiples, a PNG."""
    with style():
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        places = figure.subplots(2, 3).flat
        for axes, curve in zip(places, curves, strict=False):
            looks = ((BLUE, "o-"), (ORANGE, "s--"))
            for (line, times), (colour, look) in zip(curve[what].items(), looks, strict=False):
                axes.plot(curve["values"], times, look, color=colour, label=line)
            axes.set(xlabel=curve["x"], ylabel=what, ylim=(0, None))
            if curve["values"] == BATCHES:
                axes.set_xscale("log", base=2)
            axes.set_xticks(curve["values"], map(str, curve["values"]))
            axes.grid(alpha=0.3)
            axes.legend()
        for axes in figure.axes[len(curves) :]:
            axes.set_axis_off()
        figure.suptitle(
            f"Training, batches of 64 unless said, 32×32 images\n{conditions}", fontsize=9
        )
        return rendered(figure, "png")
