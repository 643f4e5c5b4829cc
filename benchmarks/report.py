"""How long `cartl report` takes on many runs, and in how much memory.

    python -m benchmarks.report --runs 10000      made-up run folders, in a folder that is removed

A third of the folders are attacks. No weights or outcomes are read: a report needs manifests alone,
unless a paired test is asked for.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.commands import machine
from tests.reported import Runs

SEEDS = 5
MEASURED = """
import re, sys, time
from cartl_cli.app import main
try:
    main()
finally:
    peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]
    print(time.process_time(), peak, file=sys.stderr)
"""


def generate(folder: Path, count: int) -> None:
    """So many run folders: source, target and attack in turn, five seeds of each setting."""
    runs = Runs(folder)
    for number in range(-(-count // 3)):
        seed, setting = number % SEEDS, number // SEEDS
        source = runs.pretrain(f"source-{number}", seed=seed, fdm_lambda=0.005, k=6)
        beta = (setting % 999 + 1) / 1000
        target = runs.transfer(source, f"target-{number}", seed=seed, neft_beta=beta)
        runs.attack(target, f"attack-{number}", 880 + seed, 370 - seed, 400)


def measure(folder: Path, form: str) -> dict[str, float | str]:
    """Seconds and peak memory in MB of one report, start of Python and imports included."""
    words = [sys.executable, "-c", MEASURED, "report", "--runs-dir", str(folder)]
    began = time.monotonic()
    done = subprocess.run([*words, "--format", form], capture_output=True, check=True, text=True)
    seconds = time.monotonic() - began
    cpu, peak = map(float, done.stderr.split()[-2:])
    return {
        "format": form,
        "seconds": round(seconds, 2),
        "of processor": round(cpu, 2),
        "peak MB": round(peak / 1024),
        "output MB": round(len(done.stdout) / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        generate(folder, options.runs)
        forms = ("json", "csv", "table", "markdown", "latex", "html")
        results = [measure(folder, form) for form in forms]
    print(json.dumps({"machine": machine(), "runs": options.runs, "results": results}, indent=1))


if __name__ == "__main__":
    main()
