"""How close ``--attack strong`` comes to AutoAttack, and in what part of its time.

    python -m benchmarks.strength vanilla-0 cartl-0 --runs-dir demo-runs

Both attacks run on the same images of each run, one after the other in this order; all four attacks
of AutoAttack are made. Writes docs/figures/strength.json and prints the table of docs/strength.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.commands import machine, made

CONDITIONS = ("--pgd-steps", 100, "--checks", "off", "--batch-size", 100)


def measure(runs_dir: Path, name: str, limit: int) -> dict[str, Any]:
    """Accuracies (fractions) and seconds of both attacks on one run."""
    results = {
        attack: made(
            runs_dir,
            f"{name}-{attack}",
            *("attack", name, "--attack", attack, "--limit", limit),
            *CONDITIONS,
        )
        for attack in ("strong", "autoattack")
    }
    strong, reference = results["strong"], results["autoattack"]
    return {
        "run": name,
        "n": strong["n"],
        "clean": strong["clean_accuracy"],
        "strong": strong["robust_accuracy"],
        "autoattack": reference["robust_accuracy"],
        "strong_seconds": strong["seconds"],
        "autoattack_seconds": reference["seconds"],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line for each run."""
    lines = [
        "| model | n | clean | strong | AutoAttack | strong − AutoAttack | time of strong |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gap = 100 * (row["strong"] - row["autoattack"])
        seconds = f"{row['strong_seconds']:.0f} s of {row['autoattack_seconds']:.0f} s"
        part = row["autoattack_seconds"] / row["strong_seconds"]
        accuracies = " | ".join(
            f"{100 * row[name]:.1f} %" for name in ("clean", "strong", "autoattack")
        )
        lines.append(
            f"| {row['run']} | {row['n']} | {accuracies} | {gap:+.1f} | {seconds}: 1/{part:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="finished runs: pretrained or transferred models")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--runs-dir", type=Path, default=Path("demo-runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/strength.json"))
    options = parser.parse_args()
    rows = [measure(options.runs_dir, name, options.limit) for name in options.runs]
    options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(markdown(rows))
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
