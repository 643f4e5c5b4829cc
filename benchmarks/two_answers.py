"""The picture of the README: images, what an attack makes of them, and what two models answer.

    python -m benchmarks.two_answers                  docs/figures/two-answers.png

One source model and two target models of it: plain fine-tuning, and the method ``fast``. Each is
attacked for itself. Shown are images that both get right, of as many classes as there is room for,
where the attack fells the plain model and not the other; the share of all images that each model
keeps stands beside them. Runs that are there are used again.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.commands import made
from cartl_cli import load_model
from cartl_cli.core.data.data_sets import DataChoice, load_data_set
from cartl_cli.core.evaluation.comparison import read_outcomes
from cartl_cli.core.evaluation.saved_images import read_saved
from cartl_cli.core.runs.reader import read_run
from cartl_cli.display.attack_plots import rendered, style

METHODS: dict[str, list[object]] = {"plain": [], "fast": ["--method", "fast", "--epochs", 20]}
NAMES = {"plain": "plain\nfine-tuning", "fast": "cartl\n--method fast"}
ATTACK = ("--attack", "pgd,pgd-margin", "--pgd-steps", 20, "--limit", 200, "--checks", "off")
SHOWN = 5  # images
HELD, FELL = "#1b6e3c", "#b3261e"


@dataclass(frozen=True)
class Attacked:
    """What an attack left of a model, on images numbered ``indices``.

    ``adversarial`` (N, C, H, W) is in [0, 1], and ``answers`` (N,) are those to it.
    """

    share: float
    indices: Tensor
    clean: Tensor
    stands: Tensor
    adversarial: Tensor
    answers: Tensor


def attacked(runs_dir: Path, method: str) -> Attacked:
    """One target model, trained and attacked."""
    made(runs_dir, method, "transfer", "--source", "source", *METHODS[method])
    made(runs_dir, f"{method}-attack", "attack", method, *ATTACK, "--save-adversarial")
    run = read_run(runs_dir / f"{method}-attack")
    results, file = run.attack_results, run.manifest.adversarial
    assert file is not None
    adversarial = read_saved(run, file, results.n)["adversarial"]
    outcomes = read_outcomes(run)
    with torch.no_grad():
        answers = load_model(runs_dir / method)(adversarial).argmax(1)
    share = results.by_eps[-1].robust_accuracy
    clean = outcomes["clean"]
    stands = clean & ~(outcomes["fell_at"] >= 0).flatten(0, 1).any(0)
    return Attacked(share, outcomes["indices"], clean, stands, adversarial, answers)


def chosen(labels: Tensor, found: dict[str, Attacked]) -> list[int]:
    """The first image of each class that only the method ``fast`` keeps."""
    plain, fast = found["plain"], found["fast"]
    differ = plain.clean & ~plain.stands & fast.stands
    firsts = [(differ & (labels == label)).nonzero() for label in labels.unique()]
    return [int(rows[0]) for rows in firsts if len(rows)][:SHOWN]


def drawn(images: Tensor, labels: Tensor, classes: tuple[str, ...], found: dict[str, Any]) -> bytes:
    """Columns of images, rows: clean, then attacked against each model, as PNG."""
    rows = chosen(labels, found)
    with style():
        figure = Figure(figsize=(1.5 * len(rows) + 1.6, 5.4))
        grid = figure.subplots(3, len(rows), squeeze=False)
        figure.subplots_adjust(left=1.5 / figure.get_figwidth(), right=0.99, top=0.93, bottom=0.02)
        for column, row in enumerate(rows):
            label = classes[labels[row]]
            grid[0, column].set_title(label, fontsize=10)
            grid[0, column].imshow(images[row].permute(1, 2, 0).numpy())
            for line, one in enumerate(found.values(), 1):
                answer = classes[one.answers[row]]
                grid[line, column].imshow(one.adversarial[row].permute(1, 2, 0).numpy())
                colour = HELD if answer == label else FELL
                grid[line, column].set_title(f"“{answer}”", fontsize=10, color=colour)
        heads = ["an image"]
        heads += [
            f"attacked:\n{NAMES[m]}\nkeeps {100 * one.share:.0f} %" for m, one in found.items()
        ]
        for axes, head in zip(grid[:, 0], heads, strict=True):
            at = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 10}
            axes.set_ylabel(head, labelpad=8, **at)
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[])
        return rendered(figure, "png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs-dir", type=Path, default=Path("two-answers-runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/two-answers.png"))
    options = parser.parse_args()
    runs = options.runs_dir
    made(runs, "source", "pretrain", "--fdm-lambda", 0.005, "--k", 6)
    found = {method: attacked(runs, method) for method in METHODS}
    spec = read_run(runs / "fast").manifest.model
    data = load_data_set(DataChoice("shapes-target"), spec.preprocessing)
    measured = data.evaluation.take(found["fast"].indices)
    options.out.write_bytes(drawn(measured.images / 255, measured.labels, data.classes, found))
    print(f"drawn {options.out}")


if __name__ == "__main__":
    main()
