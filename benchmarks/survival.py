"""How much of CARTL survives a strong attack: the table and plot of docs/strength.md.

    python -m benchmarks.survival                       built-in data, three seeds
    python -m benchmarks.survival --signs gtsrb.zip     and traffic signs, even → odd classes

For each k: vanilla and NEFT targets from one plain adversarially trained source model, and CARTL
from a source model with FDM at that k. Each is attacked with the default attack and, unless
--no-autoattack, with AutoAttack, on all images or a --limit of them. A run in the folder is used
again, an unfinished one gone on with.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.commands import machine, made, progress
from benchmarks.gain import FDM_LAMBDA
from benchmarks.signs import halves
from cartl_cli.display.attack_plots import BLUE, RED, rendered, style

NEFT = ("--freeze-bn", "affine", "--neft-beta")
METHODS: dict[str, tuple[object, ...]] = {
    "vanilla": (),
    "NEFT β 1": (*NEFT, 1),
    "NEFT β 0.6": (*NEFT, 0.6),
    "NEFT β 0.4": (*NEFT, 0.4),
    "CARTL": (*NEFT, 0.4),
}
ATTACK = ("--pgd-steps", 100, "--checks", "off", "--batch-size", 500)
BLACK, ORANGE, SKY = "#000000", "#E69F00", "#56B4E9"
COLUMNS = ("clean", "pgd", "strong", "autoattack")
COLOURS = dict(zip(METHODS, (BLACK, SKY, BLUE, ORANGE, RED), strict=True))
MARKERS = dict(zip(METHODS, "os^Dv", strict=True))


@dataclass(frozen=True)
class Scene:
    """A pair of data sets: what ``pretrain``, ``transfer`` and ``attack`` are told about it."""

    name: str
    seed: int
    source: tuple[object, ...] = ()
    target: tuple[object, ...] = ()
    attack: tuple[object, ...] = ()


@dataclass(frozen=True)
class Row:
    """One attacked target model. Accuracies in percent; ``strong`` is the default attack's."""

    scene: str
    seed: int
    method: str
    k: int
    n: int
    clean: float
    pgd: float
    strong: float
    autoattack: float | None


def scenes(seeds: Iterable[int], archive: Path | None) -> list[Scene]:
    found = [Scene("shapes", seed) for seed in seeds]
    if archive is not None:
        even, odd = halves(archive)
        source = ("--dataset", archive, "--classes", even, "--arch", "wrn-16-2", "--epochs", 20)
        target = ("--dataset", archive, "--classes", odd, "--epochs", 20)
        found.insert(0, Scene("signs", 0, source, target, ("--limit", 420)))
    return found


def pretrained(runs_dir: Path, scene: Scene, k: int | None) -> None:
    """A source model, with FDM at ``k`` or without."""
    fdm = ("--k", k, "--fdm-lambda", FDM_LAMBDA) if k else ("--k", 6)
    made(
        runs_dir,
        _source(scene, k),
        "pretrain",
        *scene.source,
        *fdm,
        "--seed",
        scene.seed,
        threads=1,
    )


def attacked(
    runs_dir: Path, scene: Scene, method: str, k: int, autoattack: bool, limit: int | None
) -> Row:
    """A target model and what is left of it, on ``limit`` images or all that measure it."""
    source = _source(scene, k if method == "CARTL" else None)
    name = f"{scene.name}-{scene.seed}-{method.replace(' ', '-').replace('β-', '')}-k{k}"
    settings = (*scene.target, *METHODS[method], "--source", source, "--k", k, "--seed", scene.seed)
    made(runs_dir, name, "transfer", *settings, threads=1)
    attacks = ("--attack", "pgd,strong,autoattack" if autoattack else "pgd,strong")
    some = scene.attack if limit is None else ("--limit", limit)
    run = f"{name}-attack" if limit is None else f"{name}-attack-{limit}"
    result = made(runs_dir, run, "attack", name, *attacks, *ATTACK, *some, threads=1)
    by_attack = {added["attack"]: added for added in result["by_eps"][-1]["added"]}
    return Row(
        scene.name,
        scene.seed,
        method,
        k,
        result["n"],
        100 * result["clean_accuracy"],
        100 * by_attack["pgd"]["alone"],
        100 * by_attack["apgd-t"]["robust_accuracy"],
        100 * by_attack["autoattack"]["alone"] if autoattack else None,
    )


def _source(scene: Scene, k: int | None) -> str:
    return f"{scene.name}-{scene.seed}-source-{f'fdm-k{k}' if k else 'at'}"


def everything(tasks: Iterable[Callable[[], Any]], jobs: int) -> list[Any]:
    """What the tasks give; one that fails is told, and the others go on."""

    def tried(task: Callable[[], Any]) -> Any:
        try:
            return task()
        except SystemExit as failure:
            progress.print(f"failed with exit code {failure.code}", style="bold red")
            return None

    with ThreadPoolExecutor(jobs) as pool:
        return [done for done in pool.map(tried, tasks) if done is not None]


def markdown(rows: list[Row]) -> str:
    """One line for each scene, method and k: means over the seeds."""
    lines = [
        "| data | method | k | seeds | n | clean | PGD-100 | strong | AutoAttack |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (scene, method, k), group in grouped(rows).items():
        values = [_mean(getattr(row, name) for row in group) for name in COLUMNS]
        about = (scene, method, k, len(group), group[0].n)
        lines.append(f"| {' | '.join(map(str, (*about, *values)))} |")
    return "\n".join(lines)


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.1f}" if known else ""


def grouped(rows: list[Row]) -> dict[tuple[str, str, int], list[Row]]:
    """The rows of each scene, method and k, in that order."""
    order = list(METHODS)
    keys = {(row.scene, row.method, row.k) for row in rows}
    return {
        key: [row for row in rows if (row.scene, row.method, row.k) == key]
        for key in sorted(keys, key=lambda key: (key[0], order.index(key[1]), key[2]))
    }


def plot(rows: list[Row]) -> Figure:
    """Robust against clean accuracy: from what PGD-100 leaves down to what a strong attack does."""
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    axes = figure.subplots()
    drawn: set[str] = set()
    told: dict[tuple[float, float], list[str]] = {}  # k = 1 and 2 can be one model
    for (_, method, k), group in grouped(rows).items():
        look: dict[str, Any] = {"color": COLOURS[method], "marker": MARKERS[method]}
        clean, pgd, strong = (
            mean(getattr(row, name) for row in group) for name in ("clean", "pgd", "strong")
        )
        axes.plot([clean, clean], [pgd, strong], color=look["color"], lw=1, zorder=1)
        axes.plot([clean], [pgd], mfc="white", **look)
        axes.plot([clean], [strong], label=None if method in drawn else method, ls="", **look)
        told.setdefault((clean, strong), []).append(str(k))
        drawn.add(method)
    for place, ks in told.items():
        axes.annotate(", ".join(ks), place, (4, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="clean accuracy, %", ylabel="robust accuracy, %", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(title="hollow: PGD-100, cross-entropy\nfull: strong attack; numbers: k")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--signs", type=Path, help="a zip of train/<class>/… and test/<class>/…")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--k", type=int, nargs="+", default=[6, 4, 8, 2, 1])
    parser.add_argument("--autoattack", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--limit", type=int, help="images of each attack (default: all, signs 420)")
    parser.add_argument("--jobs", type=int, default=1, help="commands at the same time")
    parser.add_argument("--runs-dir", type=Path, default=Path("survival-runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures/survival.json"))
    options = parser.parse_args()
    chosen, runs_dir = scenes(options.seeds, options.signs), options.runs_dir
    sources = product((None, *options.k), chosen)
    everything((partial(pretrained, runs_dir, scene, k) for k, scene in sources), options.jobs)
    targets = product(options.k, METHODS, chosen)
    rows = everything(
        (
            partial(attacked, runs_dir, scene, method, k, options.autoattack, options.limit)
            for k, method, scene in targets
        ),
        options.jobs,
    )
    write(rows, machine(), options.out)
    print(markdown(rows))


def write(rows: list[Row], made_on: str, out: Path) -> None:
    """The rows as JSON, and beside it the plot of each pair of data sets."""
    stored = {"machine": made_on, "rows": [asdict(row) for row in rows]}
    out.write_text(json.dumps(stored, indent=1) + "\n")
    for scene in {row.scene for row in rows}:
        with style():
            figure = plot([row for row in rows if row.scene == scene])
            for ending in ("png", "svg"):
                picture = out.with_name(f"{out.stem}-{scene}.{ending}")
                picture.write_bytes(rendered(figure, ending))


if __name__ == "__main__":
    main()
