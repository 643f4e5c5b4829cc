"""What CARTL gains over plain fine-tuning, on the built-in data: the demo and its benchmark.

    python -m benchmarks.gain                    one seed: `make demo`
    python -m benchmarks.gain --seeds 0 1 2      the table of the README

For each seed: two source models (plain adversarial training, and with FDM), a vanilla and a CARTL
target at k = 6, and PGD-100 under both losses on each. Every step is a `cartl` command, shown as it
runs, and can be repeated by hand. A finished run in the folder is used again.
"""

import argparse
import resource
import time
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.commands import cartl, finished, machine

K, FDM_LAMBDA, NEFT_BETA = 6, 0.005, 0.4
METHODS = ("vanilla", "CARTL")
COLUMNS = {
    "clean": "clean_accuracy",
    "PGD-100 cross-entropy": "robust_accuracy_ce",
    "PGD-100 margin": "robust_accuracy_margin",
    "worst of both": "robust_accuracy",
}


def compare(seed: int, runs_dir: Path) -> dict[str, dict[str, Any]]:
    """The attack's result for each method, from pre-training to the end."""
    common = ["--seed", seed, "--runs-dir", runs_dir]
    plain, fdm = f"source-at-{seed}", f"source-fdm-{seed}"
    vanilla, tuned = f"vanilla-{seed}", f"cartl-{seed}"
    neft = ["--neft-beta", NEFT_BETA, "--freeze-bn", "affine"]
    for name, command in {
        plain: ["pretrain", "--k", K],
        fdm: ["pretrain", "--fdm-lambda", FDM_LAMBDA, "--k", K],
        vanilla: ["transfer", "--source", plain, "--k", K],
        tuned: ["transfer", "--source", fdm, "--k", K, *neft],
    }.items():
        if not finished(runs_dir, name):
            cartl(*command, *common, "--name", name)
    return {
        method: cartl("attack", name, "--pgd-steps", 100, *common)
        for method, name in zip(METHODS, (vanilla, tuned), strict=True)
    }


def table(results: list[dict[str, dict[str, Any]]], seeds: list[int], what: str) -> Table:
    """Methods as rows, accuracies in percent as columns, and the difference."""
    n = results[0][METHODS[0]]["n"]
    shown = Table(
        title=f"{what}, k = {K}: what CARTL gains",
        caption=f"{n} test images, eps 8/255, step 2/255, mean of seeds "
        f"{', '.join(map(str, seeds))}; robust accuracies are upper bounds under this attack",
    )
    for heading in ("method", *COLUMNS):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    means = {
        method: [100 * mean(result[method][key] for result in results) for key in COLUMNS.values()]
        for method in METHODS
    }
    labels = {
        "vanilla": "vanilla (AT source)",
        "CARTL": f"CARTL (λ {FDM_LAMBDA}, β {NEFT_BETA}, affine)",
    }
    for method in METHODS:
        shown.add_row(labels[method], *(f"{value:.1f} %" for value in means[method]))
    differences = [b - a for a, b in zip(means["vanilla"], means["CARTL"], strict=True)]
    shown.add_section()
    shown.add_row("difference, points", *(f"{value:+.1f}" for value in differences))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs-dir", type=Path, default=Path("demo-runs"))
    options = parser.parse_args()
    began = time.monotonic()
    results = [compare(seed, options.runs_dir) for seed in options.seeds]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    console = Console(width=100, highlight=False)
    console.print(table(results, options.seeds, "shapes → shapes-target, WRN-16-1"))
    console.print(f"{time.monotonic() - began:.0f} s in all, {memory:.1f} GiB at most; {machine()}")
    console.print(f"runs, models and results: {options.runs_dir}/")
    for result in results[-1].values():
        console.print(f"  {result['file']}")


if __name__ == "__main__":
    main()
