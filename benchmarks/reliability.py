"""How often something was lost: the figures of docs/reliability.md.

    python -m benchmarks.reliability             all parts, writes docs/figures/reliability.json
    python -m benchmarks.reliability kills       one part of it

The parts and what counts as lost are those of the tests, which run a sample of each.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from benchmarks.commands import machine
from cartl_cli.core.runs import checkpoints
from tests import tiny
from tests.crashes import call, fault, power_cuts, sync_sites, undisturbed
from tests.disks import FAULTS, MODELS
from tests.fuzzing import fuzz
from tests.processes import FORGET, Sabotage, finish, run, start
from tests.test_resume import METHODS, POINTS, SIGNALS

COMMANDS = ("pretrain", "neft", "attack")
KILLS = 300
FUZZED = 100_000
SHOWN = {"pretrain": "pretrain", "neft": "transfer (NEFT)", "attack": "attack"}
progress = Console(stderr=True, highlight=False)

Figures = dict[str, Any]


def base(root: Path) -> Path:
    """A folder of runs with the finished source run that the other commands start from."""
    tiny.make_images(root / "images")
    (root / "base").mkdir()
    code, said = call([*tiny.command("pretrain")[:-1], "source"], root / "base")
    assert code == 0, said
    return root / "base" / "runs"


def faults(root: Path) -> Figures:
    """Refuse every operation in turn, for good and once."""
    before = base(root)
    found: Figures = {}
    for name in COMMANDS:
        whole = undisturbed(name, before, root / name)
        operations = refused = lost = 0
        for error, lasting in FAULTS:
            number = 1
            while (wrong := fault(whole, root / "fault", number, error, lasting)) is not None:
                refused += 1
                lost += bool(wrong)
                for line in wrong:
                    progress.print(f"{name}, operation {number}: {line}", markup=False)
                number += 1
            operations = max(operations, number - 1)
        found[SHOWN[name]] = {"operations": operations, "faults": refused, "lost": lost}
        progress.print(f"faults in {name}: {found[SHOWN[name]]}")
    return found


def power(root: Path) -> Figures:
    """Cut the power after every operation; then again without each fsync of the product."""
    before = base(root)
    found: Figures = {}
    for name in COMMANDS:
        first = root / "nothing" if name == "pretrain" else before
        whole = undisturbed(name, first, root / name)
        cuts = [cut for model in MODELS for cut in power_cuts(whole, root / f"{name}-cuts", model)]
        without = {}
        for site in sync_sites(whole):
            lost = [c for m in MODELS for c in power_cuts(whole, root / "without", m, site) if c]
            without[site] = len(lost)
        found[SHOWN[name]] = {
            "cuts": len(cuts),
            "lost": sum(bool(cut) for cut in cuts),
            "lost without": without,
        }
        progress.print(f"power cuts in {name}: {found[SHOWN[name]]}", markup=False)
    return found


def kills(root: Path) -> Figures:
    """Kill a command at a random moment, go on, compare the bytes; 300 times."""
    before = base(root)
    draws = random.Random(0)
    found: Figures = {}
    for name in COMMANDS:
        straight = tiny.scene(before, root / f"straight-{name}")
        times = []
        for _ in range(3):
            shutil.rmtree(straight)
            tiny.scene(before, straight)
            began = time.monotonic()
            assert run(tiny.command(name), straight).code == 0
            times.append(time.monotonic() - began)
        left = tiny.left(straight / "runs" / name)
        counts = {"kills": 0, "in the middle": 0, "before the run began": 0, "identical ends": 0}
        for number in range(KILLS // len(COMMANDS)):
            at = tiny.scene(before, root / "killed")
            child = start(tiny.command(name), at)
            while number % 2 and not (at / "runs" / name).exists():
                time.sleep(0.001)  # every other kill comes after the run has begun
            time.sleep(draws.uniform(0, 1) * statistics.median(times))
            child.kill()
            finish(child, at)
            begun = (at / "runs" / name).exists()
            ended = run(tiny.resume(name) if begun else tiny.command(name), at)
            same = ended.code == 0 and tiny.left(at / "runs" / name) == left
            counts["kills"] += 1
            counts["in the middle"] += "going on after" in ended.err
            counts["before the run began"] += not begun
            counts["identical ends"] += same and tiny.orphans(at) == []
            shutil.rmtree(at)
        found[SHOWN[name]] = counts
        progress.print(f"kills of {name}: {counts}")
    return found


def matrix(root: Path) -> Figures:
    """Save point × stop × method; then with one part of the state forgotten at a time."""
    before = base(root)
    straight = tiny.scene(before, root / "straight")
    left = {}
    for method in METHODS:
        assert run(tiny.command(method), straight).code == 0
        left[method] = tiny.left(straight / "runs" / method)

    def differs(method: str, stop: Sabotage, forget: str = "") -> bool:
        at = tiny.scene(before, root / "stopped")
        run(tiny.command(method), at, stop)
        ended = run(tiny.resume(method), at, Sabotage(stop.step, forget=forget))
        assert ended.code == 0, ended.err
        other: bool = tiny.left(at / "runs" / method) != left[method]
        shutil.rmtree(at)
        return other

    unequal = [
        f"{method}, {point}, {stop}"
        for method in METHODS
        for point in POINTS
        for stop in SIGNALS
        if differs(method, Sabotage(POINTS[point], SIGNALS[stop]))
    ]
    tried_on = {"schedule": "vanilla", "batch norm": "vanilla", "spectral": "neft"}
    seen = {
        forget: differs(
            tried_on.get(forget, "pretrain"),
            Sabotage(3 if forget == "counters" else 2, signal.SIGKILL),
            forget,
        )
        for forget in FORGET
    }
    found = {
        "resumes": len(METHODS) * len(POINTS) * len(SIGNALS),
        "unequal": unequal,
        "forgetting is seen": seen,
    }
    progress.print(f"matrix: {found}", markup=False)
    return found


def fuzzing(root: Path) -> Figures:
    """Mutated manifests, checkpoints and weights: an object or a CartlError, quickly."""
    summary = fuzz(FUZZED, 0, root)
    found: Figures = vars(summary)
    progress.print(f"fuzzing: {found}", markup=False)
    return found


def cost(root: Path) -> Figures:
    """The part of a pre-training on the built-in data that is spent on a checkpoint a minute."""
    spent: list[float] = []
    real = checkpoints.save

    def timed(*arguments: Any) -> None:
        began = time.monotonic()
        real(*arguments)
        spent.append(time.monotonic() - began)

    began = time.monotonic()
    with mock.patch.object(checkpoints, "save", timed):
        code, said = call(["pretrain", "--fdm-lambda", "0.005", "--save-every", "1m"], root)
    assert code == 0, said
    whole = time.monotonic() - began
    found = {
        "seconds": round(whole, 1),
        "checkpoints": len(spent),
        "milliseconds each": round(1000 * statistics.median(spent), 1),
        "ratio": round(whole / (whole - sum(spent)), 5),
    }
    progress.print(f"cost: {found}")
    return found


PARTS: dict[str, Callable[[Path], Figures]] = {
    "faults": faults,
    "power": power,
    "kills": kills,
    "matrix": matrix,
    "fuzzing": fuzzing,
    "cost": cost,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/reliability.json"))
    options = parser.parse_args()
    stored = json.loads(options.out.read_text()) if options.out.exists() else {}
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as root:
            began = time.monotonic()
            figures = PARTS[part](Path(root))
        where = f"{machine()}; {threads} threads; {time.monotonic() - began:.0f} s"
        stored[part] = {"figures": figures, "measured": where}
        options.out.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
