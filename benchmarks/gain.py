"""What CARTL gains over plain fine-tuning, on the built-in data: the demo and its benchmark.

    python -m benchmarks.gain                                        one seed: `make demo`
    python -m benchmarks.gain --seeds 0 1 2 --same-batch-norm        the table of the README

For each seed: two source models (plain adversarial training, and with FDM), a vanilla target from
the first and a CARTL target (λ 0.005, β 0.4, affine) from the second at k = 6, and PGD-100 under
both losses on each. Every step is a `cartl` command, shown as it runs, and can be repeated by hand.
A run in the folder is used again, an unfinished one gone on with.
"""

import argparse
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.commands import machine, made

K, FDM_LAMBDA, NEFT_BETA = 6, 0.005, 0.4
SOURCES: dict[str, list[object]] = {"source-at": [], "source-fdm": ["--fdm-lambda", FDM_LAMBDA]}
TARGETS: dict[str, list[object]] = {
    "vanilla": [],
    "vanilla-affine": ["--freeze-bn", "affine"],
    "cartl": ["--neft-beta", NEFT_BETA, "--freeze-bn", "affine"],
}
ATTACK = ("--attack", "pgd,pgd-margin", "--pgd-steps", 100, "--checks", "off")
METHODS = {"vanilla": "vanilla", "vanilla-affine": "vanilla, --freeze-bn affine", "cartl": "CARTL"}
COLUMNS = {
    "clean": "clean_accuracy",
    "PGD-100 cross-entropy": "robust_accuracy_ce",
    "PGD-100 margin": "robust_accuracy_margin",
    "worst of both": "robust_accuracy",
}


def compare(seed: int, runs_dir: Path, methods: list[str]) -> dict[str, dict[str, Any]]:
    """The attack's result for each method, from pre-training to the end.

    What starts from one source model runs one after another; the two lanes run side by side, with
    half of the cores each.
    """
    lanes = {
        f"source-at-{seed}": [m for m in methods if m != "cartl"],
        f"source-fdm-{seed}": ["cartl"],
    }
    threads = max(1, (os.cpu_count() or 2) // len(lanes))

    def run(name: str, command: str, *settings: object) -> dict[str, Any]:
        return made(runs_dir, name, command, *settings, "--seed", seed, threads=threads)

    def lane(source: str) -> dict[str, dict[str, Any]]:
        run(source, "pretrain", "--k", K, *SOURCES[source.removesuffix(f"-{seed}")])
        results = {}
        for method in lanes[source]:
            name = f"{method}-{seed}"
            run(name, "transfer", "--source", source, "--k", K, *TARGETS[method])
            results[method] = run(f"{name}-attack", "attack", name, *ATTACK)
        return results

    with ThreadPoolExecutor(len(lanes)) as pool:
        done = list(pool.map(lane, lanes))
    return {method: result for results in done for method, result in results.items()}


def table(results: list[dict[str, dict[str, Any]]], seeds: list[int], what: str) -> Table:
    """Methods as rows, accuracies in percent as columns; CARTL's difference to each other row."""
    methods = list(results[0])
    shown = Table(
        title=f"{what}, k = {K}: what CARTL gains",
        caption=f"n = {results[0][methods[0]]['n']} test images, eps 8/255, step 2/255, seed "
        f"{', '.join(map(str, seeds))}; robust accuracies are upper bounds under this attack",
    )
    for heading in ("method", *COLUMNS):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    means = {
        method: [100 * mean(result[method][key] for result in results) for key in COLUMNS.values()]
        for method in methods
    }
    for method in methods:
        shown.add_row(METHODS[method], *(f"{value:.1f} %" for value in means[method]))
    shown.add_section()
    for method in methods[:-1]:
        differences = [b - a for a, b in zip(means[method], means["cartl"], strict=True)]
        label = f"CARTL − {METHODS[method]}, points"
        shown.add_row(label, *(f"{value:+.1f}" for value in differences))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs-dir", type=Path, default=Path("demo-runs"))
    parser.add_argument(
        "--same-batch-norm", action="store_true", help="add vanilla with CARTL's batch-norm case"
    )
    options = parser.parse_args()
    methods = [m for m in METHODS if m != "vanilla-affine" or options.same_batch_norm]
    began = time.monotonic()
    results = [compare(seed, options.runs_dir, methods) for seed in options.seeds]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    console = Console(width=100, highlight=False)
    console.print(table(results, options.seeds, "shapes → shapes-target, WRN-16-1"))
    console.print(f"{time.monotonic() - began:.0f} s in all, {memory:.1f} GiB at most; {machine()}")
    console.print(f"runs, models and results: {options.runs_dir}/")
    for result in results[-1].values():
        console.print(f"  {result['folder']}")


if __name__ == "__main__":
    main()
