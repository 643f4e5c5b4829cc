"""From start to verdict: `cartl attack --attack pgd` beside a script that calls torchattacks.

    python -m benchmarks.whole_command cartl-0 --runs-dir demo-runs

RUN is a finished transfer on `shapes-target`. The script loads torch, the model and the images, and
attacks all test images with the same steps (PGD-100), as a person without cartl would. It makes no
checks; `cartl` makes those of `--checks fast`, but in the second line of the table. The commands
take turns; figures are medians. Needs `pip install 'cartl[bench]'` (see `benchmarks.peers`). About
10 minutes on two cores.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.commands import machine, progress
from benchmarks.competitors import BATCH, budget, model_of, pixels
from benchmarks.peers import peer
from cartl_cli.core.data.shapes import shapes_target

STEPS = 100
PEER = "torchattacks"


def attack_by_peer(runs_dir: Path, name: str) -> None:
    """The script: print how much accuracy PGD leaves."""
    model = model_of(runs_dir, name)
    attack = peer(PEER, model, budget(STEPS))
    images, labels = pixels(shapes_target().evaluation)
    right = 0
    for batch, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        clean = model(batch).argmax(1) == truth
        attacked = model(attack(batch, truth)).argmax(1) == truth
        right += int((clean & attacked).sum())
    print(right / len(labels))


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--runs-dir", type=Path, default=Path("demo-runs"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="be the script")
    options = parser.parse_args()
    if options.peer:
        attack_by_peer(options.runs_dir, options.run)
        return
    python, place = [sys.executable, "-m"], [options.run, "--runs-dir", str(options.runs_dir)]
    attack = [*python, "cartl_cli", "attack", *place, "--attack", "pgd", "--force"]
    commands = {
        "cartl attack --attack pgd": attack,
        "the same, --checks off": [*attack, "--checks", "off"],
        f"a script with {PEER}": [*python, "benchmarks.whole_command", *place, "--peer"],
    }
    found: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(options.rounds):
        for name, command in commands.items():
            found[name].append(seconds(command))
            progress.print(f"round {number + 1}: {name} {found[name][-1]:.1f} s", markup=False)
    print(f"| {machine()} | seconds | of the script's |\n|---|--:|--:|")
    *_, script = found.values()
    for name, taken in found.items():
        ratio = statistics.median(b / a for a, b in zip(taken, script, strict=True))
        print(f"| {name} | {statistics.median(taken):.1f} | {ratio:.2f} × |")


if __name__ == "__main__":
    main()
