"""How fast training is here, beside the official code's kind of step and ART on the same cores.

    python -m benchmarks.training_speed                     on a CPU and on a GPU alike
    python -m benchmarks.training_speed --curves            time an image against width, depth, …

Competitors take turns, round by round, each in a process of its own; speeds and ratios are medians
over the rounds, ratios within a round. Writes a table to standard output as Markdown and everything
to docs/figures/training-speed.json. ART takes part where it can be imported (`cartl[bench]`).
On two cores it takes 40 minutes with --images 128.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training_curves
from benchmarks.commands import machine, progress
from benchmarks.training_rounds import passes, process, settle, source_run
from benchmarks.training_tasks import (
    ART,
    FIRST,
    NO_ITERATION,
    OFFICIAL,
    PASSES,
    SPEED,
    Go,
    Round,
    Task,
    best,
    counted,
    everybody,
    precisions,
)
from cartl_cli.core.registry.architectures import parse_architecture
from cartl_cli.core.runtime.devices import resolve_device

K, FDM_LAMBDA, NEFT_BETA = 6, 0.005, 0.4
SMALL_K = 2  # where nearly all of the model is frozen, and its features are taken once
LEAST_STEPS = 4  # of an epoch of transfer, whose steps are short
PAPER_ARCH, PAPER_IMAGES, PAPER_EPOCHS = "wrn-34-10", 50_000, 100  # of its CIFAR-100 source
Figures = dict[str, Any]
Found = dict[str, list[Round]]


def in_turns(work: Mapping[str, Go], rounds: int) -> Found:
    """What each competitor measures, round by round in the order A B C A B C."""
    found: Found = {name: [] for name in work}
    for number in range(rounds):
        for name, go in work.items():
            found[name].append(go())
            speed = found[name][-1][SPEED]
            progress.print(f"round {number + 1}: {name} {speed:.1f} images/s", markup=False)
    return found


def ratio(found: Found, ours: str, theirs: str) -> float:
    """The median, over the rounds, of our speed over theirs."""
    pairs = zip(found[ours], found[theirs], strict=True)
    return statistics.median(our[SPEED] / their[SPEED] for our, their in pairs)


def medians(found: Found, what: str) -> dict[str, float]:
    return {
        name: statistics.median(one[what] for one in each)
        for name, each in found.items()
        if what in each[0]
    }


def compared(task: Task, rounds: int, skip: list[str]) -> Figures:
    """All competitors at one task, each in a process of its own, in turns."""
    names = [name for name in everybody(task) if name not in skip]
    progress.print(f"{title(task)}: {', '.join(names)}", markup=False)
    with contextlib.ExitStack() as processes:
        work = {name: processes.enter_context(process(name, task)) for name in names}
        found = in_turns(work, rounds)
    figures: Figures = {
        "title": title(task),
        **asdict(task),
        SPEED: medians(found, SPEED),
        FIRST: medians(found, FIRST),
    }
    ours = best(task)
    if OFFICIAL in found:
        figures["times the official style"] = {who: ratio(found, who, OFFICIAL) for who in found}
    if {ours, PASSES} <= found.keys():
        figures["passes"] = counted(task)
        figures["step over its passes"] = ratio(found, PASSES, ours)
    if {ours, ours + NO_ITERATION} <= found.keys():
        figures["part of the power iteration"] = 1 - ratio(found, ours, ours + NO_ITERATION)
    return figures


def title(task: Task) -> str:
    if task.kind == "transfer":
        method = "vanilla" if task.neft_beta is None else f"NEFT β {task.neft_beta:g}"
        what = f"{method}, k {task.k}"
    else:
        what = f"PGD-{task.pgd_steps}" + (f" + FDM, k {task.k}" if task.fdm_lambda else "")
    return f"{task.arch.upper()}, {what}, batches of {task.images}"


def matrix_rate(device: torch.device) -> float:
    """FLOPs a second of a large square product at its fastest, in bfloat16 where that is native."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precisions(device)[0] == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        settle(device)
        began = time.perf_counter()
        torch.mm(left, right)
        settle(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


def flops(task: Task) -> float:
    """Floating-point operations of a step's passes, for each image."""
    some = replace(task, images=8)
    step = passes(some, precisions(task.where)[0])
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops() / some.images)


def of_the_rate(figures: Figures, task: Task, rate: float) -> Figures:
    """How much of the matrix rate a pre-training uses; the hours of the paper's source."""
    found: Figures = {"matrix FLOPs a second": rate, "FLOPs an image": flops(task)}
    if best(task) in figures[SPEED]:
        speed = figures[SPEED][best(task)]
        found["part of the matrix rate"] = found["FLOPs an image"] * speed / rate
    if task.arch == PAPER_ARCH and task.fdm_lambda > 0:
        found["hours of the paper's source"] = {
            who: PAPER_IMAGES * PAPER_EPOCHS / one / 3600
            for who, one in figures[SPEED].items()
            if who != PASSES
        }
    return found


def written(figures: Figures) -> str:
    """The figures as Markdown."""
    lines = ["| | | images/s | first epoch | × official style |", "|---|---|--:|--:|--:|"]
    notes = []
    for part in figures["tasks"]:
        for who, speed in part[SPEED].items():
            first, times = part[FIRST].get(who), part.get("times the official style", {}).get(who)
            cells = [
                part["title"] if who == next(iter(part[SPEED])) else "",
                who,
                f"{speed:,.1f}",
                "" if first is None else f"{first:,.1f}",
                "" if times is None else f"{times:.2f} ×",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        if "step over its passes" in part:
            over = 100 * (part["step over its passes"] - 1)
            notes.append(
                f"- {part['title']}: step over its passes {over:+.1f} % ({part['passes']})"
            )
        if "part of the matrix rate" in part:
            share = 100 * part["part of the matrix rate"]
            giga = part["FLOPs an image"] / 1e9
            notes.append(
                f"- {part['title']}: {giga:.2f} GFLOPs an image, {share:.0f} % of the matrix rate"
            )
        if "part of the power iteration" in part:
            share = 100 * part["part of the power iteration"]
            notes.append(f"- {part['title']}: the power iteration takes {share:.1f} % of a step")
        for who, hours in part.get("hours of the paper's source", {}).items():
            notes.append(f"- The paper's CIFAR-100 source with {who}: {hours:,.1f} hours")
    return "\n".join([*lines, "", *notes])


def tasks(options: argparse.Namespace, device: torch.device, place: Path) -> list[Task]:
    """What is measured, of each architecture."""
    found = []
    images = options.images * len(options.archs) if len(options.images) == 1 else options.images
    for arch, batch in zip(options.archs, images, strict=True):
        k = min(K, parse_architecture(arch).count())
        common = partial(
            Task, arch=arch, images=batch, steps=options.steps, k=k, device=str(device)
        )
        if "pretrain" not in options.skip:
            found += [common("pretrain", fdm_lambda=weight) for weight in (0.0, FDM_LAMBDA)]
        if "transfer" not in options.skip:
            source = source_run(arch, k, place, options.device)
            steps = max(options.steps, LEAST_STEPS)
            found += [
                common("transfer", k=blocks, steps=steps, neft_beta=beta, source=source)
                for blocks, beta in ((k, None), (k, NEFT_BETA), (SMALL_K, None))
            ]
    return found


def versions(device: torch.device) -> str:
    """Hardware and versions, for beside a figure."""
    where = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    try:
        art = f", ART {version('adversarial-robustness-toolbox')}"
    except PackageNotFoundError:
        art = ""
    return f"{machine()}{where}, threads: {torch.get_num_threads()}{art}"


def store(figures: Figures, folder: Path) -> None:
    """Keep what has been measured so far."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = json.dumps(figures, indent=1, ensure_ascii=False)
    (folder / "training-speed.json").write_text(stored + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", help="default: wrn-16-2 wrn-28-4, on a GPU wrn-34-10")
    parser.add_argument("--images", type=int, nargs="+", help="of a batch: one number, or by arch")
    parser.add_argument("--steps", type=int, help="of a round of pre-training")
    parser.add_argument("--rounds", type=int, default=5)
    skipped = ("pretrain", "transfer", OFFICIAL, ART, PASSES)
    parser.add_argument("--skip", nargs="+", default=[], choices=skipped)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--curves", action="store_true", help="measure and draw them as well")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    device = resolve_device(options.device)
    on_gpu = device.type == "cuda"
    if options.archs is None:
        options.archs = ["wrn-16-2", "wrn-28-4", *([PAPER_ARCH] if on_gpu else [])]
        options.images = options.images or ([128] if on_gpu else [128, 32])
    options.images = options.images or [128]
    options.steps = options.steps or (10 if on_gpu else 1)
    if len(options.images) not in (1, len(options.archs)):
        parser.error(f"--images: one number, or {len(options.archs)}, one for each of --archs")
    if importlib.util.find_spec("art") is None:
        progress.print(f"{ART} is not here and skipped; pip install 'cartl[bench]'")
    figures: Figures = {"measured": versions(device), "tasks": []}
    with tempfile.TemporaryDirectory() as place:
        for task in tasks(options, device, Path(place)):
            found = compared(task, options.rounds, options.skip)
            if task.kind == "pretrain":
                found |= of_the_rate(found, task, matrix_rate(device))
            found.pop("source")
            figures["tasks"].append(found)
            store(figures, options.out)
        if options.curves:
            figures["curves"] = training_curves.measured(device, options.rounds, Path(place))
            store(figures, options.out)
    if options.curves:
        for name, what in {"speed": training_curves.TIME, "memory": training_curves.MEMORY}.items():
            picture = training_curves.drawn(figures["curves"], what, figures["measured"])
            (options.out / f"training-{name}.png").write_bytes(picture)
    print(written(figures))
    print(figures["measured"])


if __name__ == "__main__":
    main()
