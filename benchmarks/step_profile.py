"""Where the time of a step of pre-training goes: kernels, copies, gaps between them, the host.

    python -m benchmarks.step_profile [--arch resnet-18] [--images 128] [--compile] [--device auto]

PGD-7 with FDM on random images, through the loop of `cartl pretrain`. *Busy* is the time in which
the device computes, *gap* that in which it waits for the host. On a CPU, which is its own host, the
kernels are torch's operators.
"""

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile

from benchmarks.commands import machine
from benchmarks.training_rounds import cartl_pretraining, settle
from benchmarks.training_tasks import Task, precisions
from cartl_cli.core.runtime.devices import keep_freed_memory, resolve_device

WARM = 2  # epochs before the one that is watched
SHOWN = 25  # kernels


def union(spans: list[tuple[float, float]]) -> float:
    """The length of what spans (begin, end) cover together."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def watched(epoch: Callable[[], object], device: torch.device) -> tuple[float, EventList]:
    """Seconds of one epoch, and what was done in it."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    settle(device)
    with profile(activities=activities) as found:
        began = time.perf_counter()
        epoch()
        settle(device)
        seconds = time.perf_counter() - began
    events = found.events()
    assert events is not None
    return seconds, events


def kernels(events: EventList, device: torch.device) -> Counter[str]:
    """Microseconds by kernel, on a CPU by operator."""
    found: Counter[str] = Counter()
    for event in events:
        if device.type != "cuda":
            found[event.name] += event.self_cpu_time_total
        elif event.device_type.name == "CUDA":
            found[event.name] += event.device_time_total
    return found


def busy(events: EventList, device: torch.device) -> float:
    """Seconds in which the device computes."""
    where = device.type.upper()
    spans = [(e.time_range.start, e.time_range.end) for e in events if e.device_type.name == where]
    return union(spans) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet-18")
    parser.add_argument("--images", type=int, default=128, help="of a batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--k", type=int, default=6)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = resolve_device(options.device)
    keep_freed_memory()
    task = Task(
        "pretrain",
        options.arch,
        options.images,
        options.steps,
        options.k,
        str(device),
        fdm_lambda=0.005,
    )
    epoch = cartl_pretraining(task, precisions(device)[0], options.compile)
    for _ in range(WARM):
        epoch()
    settle(device)
    began = time.perf_counter()
    epoch()
    settle(device)
    step = (time.perf_counter() - began) / options.steps
    seconds, events = watched(epoch, device)
    computing, parts = busy(events, device) / options.steps, kernels(events, device)
    total = sum(parts.values())
    copies = sum(spent for name, spent in parts.items() if "copy" in name or "Memcpy" in name)
    print(f"{options.arch}, batches of {options.images}, {machine()}, {device}")
    print(f"a step: {1e3 * step:.1f} ms, {options.images / step:,.0f} images/s")
    print(f"while watched: {1e3 * seconds / options.steps:.1f} ms, busy {1e3 * computing:.1f} ms")
    print(
        f"gap: {max(0.0, 1 - computing / step):.0%} of a step; copies {copies / total:.0%} of busy"
    )
    print("\n| kernel | part | ms a step |\n|---|--:|--:|")
    for name, spent in itertools.islice(parts.most_common(), SHOWN):
        print(f"| {name[:80]} | {spent / total:.1%} | {spent / 1e3 / options.steps:.2f} |")


if __name__ == "__main__":
    main()
