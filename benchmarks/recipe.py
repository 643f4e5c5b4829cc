"""What each part of `--preset fast-robust-cpu` gives: the recipe of docs/pretrain.md.

    python -m benchmarks.recipe cifar10.zip [--epochs 6] [--seeds 0 1 2] [--only "batch 256"]

Every row departs from the preset in one thing. Where a step costs more, there are fewer epochs, so
that rows take about the same time. Accuracies are of 2,000 training images that are held out:
clean, and under PGD-20 at eps 8/255.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.commands import machine, made

HELD_OUT = 0.05  # of the training images


@dataclass(frozen=True)
class Change:
    """Flags beside the preset; ``cost``: passes of a step, as a multiple of the preset's."""

    flags: tuple[object, ...] = ()
    cost: float = 1


CHANGES = {
    "as it is": Change(),
    "batch 64": Change(("--batch-size", 64)),
    "batch 256": Change(("--batch-size", 256)),
    "peak learning rate 0.1": Change(("--lr", 0.1)),
    "peak learning rate 0.4": Change(("--lr", 0.4)),
    "steps down after epochs 4 and 5": Change(
        ("--schedule", "step", "--warmup-epochs", 1, "--milestones", "4,5")
    ),
    "weight decay 0.001": Change(("--weight-decay", 1e-3)),
    "full eps at once": Change(("--eps-warmup", 0)),
    "eps and steps grow half the time": Change(("--eps-warmup", 0.5)),
    "PGD-2": Change(("--method", "at", "--pgd-steps", 2), cost=7 / 4),
    "TRADES, one step": Change(("--method", "trades", "--pgd-steps", 1), cost=7 / 4),
}


def trained(archive: Path, runs_dir: Path, name: str, epochs: int, seed: int) -> dict[str, Any]:
    """What `cartl pretrain --json` prints of one row and seed."""
    change = CHANGES[name]
    run = f"{name.replace(' ', '-').replace(',', '')}-{epochs}-{seed}"
    return made(
        runs_dir,
        run,
        "pretrain",
        *("--preset", "fast-robust-cpu", "--dataset", archive, "--val-fraction", HELD_OUT),
        *("--epochs", max(1, round(epochs / change.cost)), "--seed", seed, *change.flags),
        threads=1,
    )


def line(name: str, runs: list[dict[str, Any]]) -> str:
    """A row of the table: means over seeds of the average of the weights, and of the last ones."""
    averaged, last = runs, [run["last_weights"] for run in runs]
    pairs = [
        " / ".join(
            f"{100 * mean(one[kind] for one in found):.1f}"
            for kind in ("clean_accuracy", "robust_accuracy")
        )
        for found in (averaged, last)
    ]
    minutes = mean(run["seconds"] for run in runs) / 60
    return f"| {name} | {' | '.join(pairs)} | {minutes:.0f} | {len(runs)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="CIFAR-10 as a zip of train/… and test/…")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--runs-dir", type=Path, default=Path("recipe-runs"))
    options = parser.parse_args()
    rows = {
        name: [
            trained(options.archive, options.runs_dir, name, options.epochs, seed)
            for seed in options.seeds
        ]
        for name in options.only
    }
    print(f"{machine()}; clean / robust accuracy, one thread\n")
    print(
        "| what departs from the preset | average of the weights | last weights | minutes | seeds |"
    )
    print("|---|--:|--:|--:|--:|")
    print("\n".join(line(name, runs) for name, runs in rows.items()))


if __name__ == "__main__":
    main()
