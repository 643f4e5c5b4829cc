"""Your own images, for example: the even-numbered traffic signs to the odd-numbered ones.

    python -m benchmarks.signs gtsrb.zip         the table of docs/own-images.md

Source: WRN-16-2 with FDM on half of the classes. Target: the other half, vanilla and NEFT, k = 6.
"""

import argparse
import zipfile
from pathlib import Path

from rich.console import Console

from benchmarks.commands import machine, made
from benchmarks.gain import ATTACK, FDM_LAMBDA, NEFT_BETA, K, table


def halves(archive: Path) -> tuple[str, str]:
    """The classes of a zip of images, every other one, as ``--classes`` takes them."""
    with zipfile.ZipFile(archive) as opened:
        parts = [Path(info.filename).parts for info in opened.infolist() if not info.is_dir()]
    classes = sorted({part[-2] for part in parts if len(part) >= 3 and "train" in part})
    return ",".join(classes[::2]), ",".join(classes[1::2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="a zip of train/<class>/… and test/<class>/…")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--runs-dir", type=Path, default=Path("signs-runs"))
    options = parser.parse_args()
    even, odd = halves(options.archive)
    source = ["--dataset", options.archive, "--classes", even, "--arch", "wrn-16-2", "--k", K]
    source += ["--epochs", options.epochs]
    target = [
        "--dataset",
        options.archive,
        "--classes",
        odd,
        "--k",
        K,
        "--epochs",
        8,
        "--lr",
        0.015,
    ]
    runs = options.runs_dir
    made(runs, "signs", "pretrain", *source, "--fdm-lambda", FDM_LAMBDA)
    results = {}
    for method, more in {
        "vanilla": [],
        "cartl": ["--neft-beta", NEFT_BETA, "--freeze-bn", "affine"],
    }.items():
        made(runs, method, "transfer", "--source", "signs", *target, *more)
        results[method] = made(runs, f"{method}-attack", "attack", method, *ATTACK, "--limit", 210)
    console = Console(width=100, highlight=False)
    console.print(table([results], [0], "traffic signs, even → odd classes, WRN-16-2"))
    console.print(machine())


if __name__ == "__main__":
    main()
