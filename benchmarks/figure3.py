"""Figure 3 of the paper on the built-in data: accuracy and robustness against k.

    python -m benchmarks.figure3                 writes docs/figures/figure3.{png,svg,json}

One plain adversarially trained source model, vanilla transfer of its last k = 1..L blocks, PGD-100
under both losses on each. Runs in the folder are used again or gone on with, those of
`benchmarks.gain` too.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.commands import machine, made
from benchmarks.gain import ATTACK
from cartl_cli.display.attack_grid import GREEN
from cartl_cli.display.attack_plots import BLUE, RED, rendered, style

BLOCKS = 8  # wrn-16-1
LEARNING_RATE = 0.015
KEPT = (
    *("n", "eps", "steps", "clean_accuracy", "robust_accuracy", "robust_accuracy_ce"),
    *("robust_accuracy_margin", "interval"),
)


def measure(runs_dir: Path, seed: int) -> list[dict[str, Any]]:
    """The attack's result for every k."""
    source = f"source-at-{seed}"
    made(runs_dir, source, "pretrain", "--seed", seed)
    results = []
    for k in range(1, BLOCKS + 1):
        name = f"vanilla-k{k}-{seed}"
        tuning = ["--source", source, "--k", k, "--lr", LEARNING_RATE, "--seed", seed]
        made(runs_dir, name, "transfer", *tuning)
        result = made(runs_dir, f"{name}-attack", "attack", name, *ATTACK, "--seed", seed)
        results.append({"k": k, **{key: result[key] for key in KEPT}})
    return results


def plot(results: list[dict[str, Any]], conditions: str) -> Figure:
    """Clean and robust accuracy in percent against k."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    ks = [result["k"] for result in results]
    for key, label, look, colour in (
        ("clean_accuracy", "clean", "o-", GREEN),
        ("robust_accuracy_ce", "PGD-100, cross-entropy", "s-", BLUE),
        ("robust_accuracy", "PGD-100, worst of both losses", "^--", RED),
    ):
        axes.plot(ks, [100 * result[key] for result in results], look, color=colour, label=label)
    low = [100 * (result["robust_accuracy"] - result["interval"][0]) for result in results]
    high = [100 * (result["interval"][1] - result["robust_accuracy"]) for result in results]
    worst = [100 * result["robust_accuracy"] for result in results]
    axes.errorbar(ks, worst, yerr=[low, high], fmt="none", ecolor=RED, capsize=3, alpha=0.6)
    axes.set(xlabel="k: blocks tuned, counted from the end", ylabel="accuracy, %", ylim=(0, 100))
    axes.set_title(f"Vanilla transfer, shapes → shapes-target\n{conditions}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.7))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", type=Path, default=Path("demo-runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = measure(options.runs_dir, options.seed)
    n = results[0]["n"]
    with style():
        conditions = f"WRN-16-1, eps 8/255, n = {n}, seed {options.seed}, 95 % intervals"
        figure = plot(results, conditions)
        for ending in ("png", "svg"):
            (options.out / f"figure3.{ending}").write_bytes(rendered(figure, ending))
    stored = {"machine": machine(), "results": results}
    (options.out / "figure3.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
