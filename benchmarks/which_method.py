"""Which transfer method pays: the table and plots of docs/which-method.md.

    python -m benchmarks.which_method --data-dir DATA --runs-dir DIR        everything
    python -m benchmarks.which_method --targets shapes --methods vanilla latent --seeds 0 1 2
    python -m benchmarks.which_method --plots                table and plots of what is measured

DATA holds gtsrb.zip and photos.zip; for shapes it is not needed. Every method starts from the same
source model of a target, whatever the seed, which is that of the transfer. Where the source is the
one that comes with cartl, there is none with FDM, so CARTL and CARTL-W are left out. All are
attacked on the same images. AutoAttack takes longer than all else together and is run where it is
asked for. A finished cell is written to the JSON file at once and not measured again; an unfinished
run is gone on with.
"""

import argparse
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.commands import made, progress
from benchmarks.gain import FDM_LAMBDA
from benchmarks.signs import halves
from cartl_cli.core.config.values import PACKAGED
from cartl_cli.core.registry.transfer_methods import Look, looks
from cartl_cli.core.runs.reader import read_run
from cartl_cli.display.attack_plots import rendered, style

Flags = tuple[object, ...]
KS = (4, 6, 8)


@dataclass(frozen=True)
class Method:
    """A row of the table: the flags of ``cartl transfer``, tried at each k.

    ``look`` is the label of the ``Look`` that draws it. ``fdm``: from the source model with FDM.
    """

    look: str
    flags: Flags = ()
    ks: tuple[int, ...] = KS
    fdm: bool = False


HEAD, VANILLA = "head only", "vanilla"
METHODS: dict[str, Method] = {
    HEAD: Method(HEAD, ks=(1,)),
    VANILLA: Method("vanilla"),
    "NEFT β 1": Method("NEFT", ("--neft-beta", 1)),
    "NEFT β 0.4": Method("NEFT", ("--neft-beta", 0.4)),
    "CARTL": Method("CARTL", ("--neft-beta", 0.4), ks=(6,), fdm=True),
    "latent": Method("latent", ("--method", "latent", "--radius", "auto")),
    "latent 0.01": Method("latent", ("--method", "latent", "--radius", 0.01)),
    "latent 0.04": Method("latent", ("--method", "latent", "--radius", 0.04)),
    "CARTL-W": Method("CARTL-W", ("--method", "latent", "--neft-beta", 1), ks=(6,), fdm=True),
    "fast": Method("fast", ("--method", "fast")),
    "at": Method("at", ("--method", "at", "--pgd-steps", 3)),
    "trades": Method("trades", ("--method", "trades")),
    "keep": Method("keep", ("--keep-lambda", 1)),
    "interpolate": Method("interpolate", ("--interpolate", 0.5)),
    "head-first": Method("head-first", ("--head-first", 5)),
}
LOOKS = {
    look.label: look
    for look in (
        Look(HEAD, "#444444", "P"),
        Look("interpolate", "#0072B2", ">"),
        Look("head-first", "#CC79A7", "^"),
        *looks(),
    )
}
UNKNOWN = Look("", "#999999", "x")
FILLS = ("full", "none", "left", "right")  # of rows that share a look
SIZES = {1: 7, 4: 6, 6: 8, 8: 10}  # of markers, by k
EVERY_ATTACK = "pgd,strong,feature,square"
ACCURACIES = ("clean", "pgd", "strong", "worst")
JUDGED, DROP = ("clean", "worst"), "▼"  # what is marked where it is below the head alone
GUIDE: dict[str, Any] = {"color": "0.5", "lw": 0.8, "ls": "--", "zorder": 0}


@dataclass(frozen=True)
class Target:
    """What ``pretrain`` and ``transfer`` are told of a target; ``n`` images of it are attacked.

    Without ``pretrain``, the source model is the one that comes with cartl, trained on CIFAR-10.
    """

    transfer: Flags
    pretrain: Flags | None
    n: int

    @property
    def attacks(self) -> str:
        """As ``--attack`` takes them; the packaged model is too large for all of them on a CPU."""
        return EVERY_ATTACK if self.pretrain is not None else "pgd,strong"


def shapes(data_dir: Path, runs_dir: Path) -> Target:
    """Drawn objects, from other drawn objects."""
    return Target((), (), 200)


def signs(data_dir: Path, runs_dir: Path) -> Target:
    """Half of the traffic signs, 42 images of each, from the other half."""
    archive = data_dir / "gtsrb.zip"
    even, odd = halves(archive)
    source = ("--dataset", archive, "--classes", even, "--arch", "wrn-16-2", "--epochs", 10)
    target = ("--dataset", archive, "--classes", odd, "--fraction", 0.2, "--epochs", 30)
    return Target(target, source, 200)


def cifar_signs(data_dir: Path, runs_dir: Path) -> Target:
    """All traffic signs, 21 images of each, from CIFAR-10."""
    return Target(("--dataset", data_dir / "gtsrb.zip", "--fraction", 0.1), None, 200)


def photos(data_dir: Path, runs_dir: Path) -> Target:
    """Photographs of ants and bees, from CIFAR-10."""
    archive = runs_dir / "photos.zip"
    if not archive.exists():
        with_test_split(data_dir / "photos.zip", archive)
    return Target(("--dataset", archive, "--epochs", 30), None, 153)


TARGETS: dict[str, Callable[[Path, Path], Target]] = {
    "shapes": shapes,
    "signs": signs,
    "cifar-signs": cifar_signs,
    "photos": photos,
}


def with_test_split(archive: Path, copy: Path) -> None:
    """A copy of a zip of images whose held-out split is named ``val``, as we want it: ``test``."""
    unfinished = copy.with_suffix(".part")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(unfinished, "w") as new:
        for member in old.infolist():
            if not member.is_dir():
                new.writestr(member.filename.replace("/val/", "/test/"), old.read(member))
    unfinished.rename(copy)


@dataclass(frozen=True)
class Cell:
    """One transfer and what is left of its model. Accuracies in percent; ``run`` is its name.

    ``pgd`` is alone, ``strong`` the worst of three, ``worst`` of all ``attacks``. ``autoattack`` is
    on the same images, if it was asked for. ``checks`` is what the checks of the attacks say.
    """

    target: str
    method: str
    k: int
    seed: int
    run: str
    seconds: float
    made_on: str
    n: int
    clean: float
    pgd: float
    strong: float
    worst: float
    attacks: str
    checks: str
    autoattack: float | None = None


def run_name(target: str, method: str, k: int, seed: int) -> str:
    """The name of a transfer: other flags, another run."""
    how = METHODS[method]
    flags = "-".join(str(flag).removeprefix("--") for flag in how.flags) or "natural"
    return f"{target}-{flags}{'-fdm' if how.fdm else ''}-k{k}-{seed}"


def source_name(target: str, own: bool, fdm: bool) -> str:
    """What ``--source`` takes: the target's own source model, or the one that comes with cartl."""
    return f"{target}-source-{'fdm' if fdm else 'at'}" if own else PACKAGED


def make_source(runs_dir: Path, name: str, pretrain: Flags, fdm: bool) -> None:
    """Train a source model, with FDM at k = 6 or without."""
    more = ("--k", 6, "--fdm-lambda", FDM_LAMBDA) if fdm else ()
    made(runs_dir, name, "pretrain", *pretrain, *more, threads=1)


def measured(
    runs_dir: Path, target: Target, options: argparse.Namespace, key: tuple[str, str, int, int]
) -> Cell:
    """Transfer and attack, on ``--limit`` images or as many as the target has it."""
    name, method, k, seed = key
    how, run = METHODS[method], run_name(*key)
    source = source_name(name, target.pretrain is not None, how.fdm)
    tuning = ("--source", source, *target.transfer, *how.flags, "--k", k, "--seed", seed)
    tuned = made(runs_dir, run, "transfer", *tuning, threads=1)
    n = options.limit or target.n
    conditions = ("--limit", n, "--batch-size", 100, "--checks", options.checks)

    def attacked(attacks: str, steps: int) -> dict[str, Any]:
        label = f"{run}-{attacks.replace(',', '-')}-{n}"
        flags = ("--attack", attacks, "--pgd-steps", steps, *conditions)
        return made(runs_dir, label, "attack", run, *flags, threads=1)

    strongest = attacked(target.attacks, 100)
    reference = attacked("autoattack", 100) if options.autoattack else None
    by_attack = {added["attack"]: added for added in strongest["by_eps"][-1]["added"]}
    said = {result["headline"] for result in (strongest, reference) if result}
    return Cell(
        *key,
        run=run,
        seconds=tuned["seconds"],
        made_on=made_on(Path(tuned["folder"])),
        n=strongest["n"],
        clean=100 * strongest["clean_accuracy"],
        pgd=100 * by_attack["pgd"]["alone"],
        strong=100 * by_attack["apgd-t"]["robust_accuracy"],
        worst=100 * strongest["robust_accuracy"],
        attacks=target.attacks,
        checks=" and ".join(sorted(said - {"ok"})) or "ok",
        autoattack=100 * reference["robust_accuracy"] if reference else None,
    )


def made_on(folder: Path) -> str:
    """Hardware and torch of a run."""
    versions = read_run(folder).manifest.versions
    return f"{versions['hardware']}, torch {versions['torch']}"


def finished(tasks: Iterable[Callable[[], Cell]], jobs: int) -> Iterator[Cell]:
    """Cells as they are done; one that fails is told, and the others go on."""
    with ThreadPoolExecutor(jobs) as pool:
        for task in as_completed([pool.submit(task) for task in tasks]):
            try:
                yield task.result()
            except SystemExit as failure:
                progress.print(f"failed with exit code {failure.code}", style="bold red")


def stored(file: Path) -> list[Cell]:
    """The cells of the JSON file that belong to rows as they are now."""
    cells = [Cell(**cell) for cell in json.loads(file.read_text())] if file.exists() else []
    return [
        cell
        for cell in cells
        if cell.method in METHODS
        and cell.run == run_name(cell.target, cell.method, cell.k, cell.seed)
    ]


def store(cells: list[Cell], file: Path) -> None:
    """Write all cells, or leave the file as it was."""
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
    unfinished.rename(file)


@dataclass(frozen=True)
class Row:
    """Means over the seeds of one method at one k, by name, and how they compare.

    ``times``: the transfer's time as a multiple of vanilla's at this k on the same machine;
    ``gain``: points under all attacks above vanilla's at this k; both None if not measured.
    ``autoattack``: as the table shows it, of those of its cells that have it.
    ``dropped``: what of clean and worst accuracy is below the head alone.
    """

    target: str
    method: str
    k: int
    cells: tuple[Cell, ...]
    values: dict[str, float]
    times: float | None
    gain: float | None
    autoattack: str
    dropped: frozenset[str]


def rows_of(cells: list[Cell]) -> list[Row]:
    """The cells of each target, method and k, in the order of the tables above."""
    keys = product(TARGETS, METHODS, sorted({cell.k for cell in cells}))
    groups = {key: [c for c in cells if (c.target, c.method, c.k) == key] for key in keys}
    return [row_of(group, cells) for group in groups.values() if group]


def row_of(group: list[Cell], cells: list[Cell]) -> Row:
    """One row, compared with vanilla (which at k = 1 is the head alone) and the head alone."""
    first, values = group[0], means(group)
    of_target = [cell for cell in cells if cell.target == first.target]
    vanilla = [c for c in of_target if c.k == first.k and c.method in (VANILLA, HEAD)]
    timed = [cell.seconds for cell in vanilla if cell.made_on == first.made_on]
    head = means([cell for cell in of_target if cell.method == HEAD])
    return Row(
        *(first.target, first.method, first.k, tuple(group), values),
        # other work on the machine only slows a run down: the quickest one tells most
        times=min(cell.seconds for cell in group) / min(timed) if timed else None,
        gain=values["worst"] - means(vanilla)["worst"] if vanilla else None,
        autoattack=referenced(group),
        dropped=frozenset(name for name in JUDGED if head and values[name] < head[name]),
    )


def referenced(group: list[Cell]) -> str:
    """AutoAttack's mean, and what all other attacks left of the same models; empty if not run."""
    both = [(c.autoattack, c.worst) for c in group if c.autoattack is not None]
    if not both:
        return ""
    reference, ours = (mean(column) for column in zip(*both, strict=True))
    return f"{reference:.1f} ({ours:.1f})"


def means(cells: list[Cell]) -> dict[str, float]:
    """The mean of each accuracy; nothing of no cells."""
    return {name: mean(getattr(cell, name) for cell in cells) for name in ACCURACIES if cells}


def markdown(rows: list[Row]) -> str:
    """A table for each target."""
    targets = dict.fromkeys(row.target for row in rows)
    tables = [table([row for row in rows if row.target == target]) for target in targets]
    return "\n\n".join([*tables, f"{DROP} is below the head alone."])


def table(rows: list[Row]) -> str:
    """One line for each method and k of a target; what is below the head alone has a mark."""
    first = rows[0].cells[0]
    heading = "clean | PGD-100 | strong | all | AutoAttack (all)"
    lines = [
        f"**{first.target}**, n = {first.n}; all: {first.attacks}",
        "",
        f"| method | k | {heading} | time | seeds | checks |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        numbers = [
            f"{row.values[name]:.1f}{DROP if name in row.dropped else ''}" for name in ACCURACIES
        ]
        times = f"{row.times:.1f}×" if row.times else ""
        checks = "; ".join(sorted({cell.checks for cell in row.cells}))
        seeds = str(len(row.cells))
        line = (row.method, str(row.k), *numbers, row.autoattack, times, seeds, checks)
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines)


def drawn(
    rows: list[Row],
    place: Callable[[Row], tuple[float, float]],
    guides: Callable[[Axes, list[Row]], None],
    labels: tuple[str, str],
) -> Figure:
    """A panel for each target: a line for each method through its ks, at the ``place`` of a row."""
    methods = [method for method in METHODS if any(row.method == method for row in rows)]
    targets = [target for target in TARGETS if any(row.target == target for row in rows)]
    down = math.ceil(len(targets) / 2)
    figure = Figure(figsize=(9.6, 4.4 * down), layout="constrained")
    panels = list(figure.subplots(down, 2, squeeze=False).flat)
    for axes in panels[len(targets) :]:
        axes.set_axis_off()
    for axes, target in zip(panels, targets, strict=False):
        of_target = [row for row in rows if row.target == target]
        guides(axes, of_target)
        for method in methods:
            found = [row for row in of_target if row.method == method]
            look = appearance(method)
            xs, ys = ([place(row)[axis] for row in found] for axis in (0, 1))
            axes.plot(xs, ys, c=look["c"], lw=0.8, alpha=0.4)
            for row, x, y in zip(found, xs, ys, strict=True):
                axes.plot([x], [y], ms=SIZES.get(row.k, 6), **look)
        axes.set(title=target, xlabel=labels[0], ylabel=labels[1])
        axes.grid(alpha=0.3)
    handles = [panels[0].plot([], [], label=m, **appearance(m))[0] for m in methods]
    title = "marks grow with k: 4, 6, 8; a line joins those of a method"
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=8, title=title)
    return figure


def appearance(method: str) -> dict[str, Any]:
    """Colour, marker and filling; rows with the same look differ by the last."""
    name = METHODS[method].look
    look = LOOKS.get(name, UNKNOWN)
    alike = [other for other, how in METHODS.items() if how.look == name]
    return {
        "c": look.colour,
        "marker": look.marker,
        "fillstyle": FILLS[alike.index(method) % len(FILLS)],
        "ls": "",
        "mew": 0.7,
    }


def robust_against_clean(rows: list[Row]) -> Figure:
    """Under all attacks against clean; the dashed lines are those of the head alone."""

    def place(row: Row) -> tuple[float, float]:
        return row.values["clean"], row.values["worst"]

    def head(axes: Axes, of_target: list[Row]) -> None:
        for row in of_target:
            if row.method == HEAD:
                axes.axvline(place(row)[0], **GUIDE)
                axes.axhline(place(row)[1], **GUIDE)

    return drawn(rows, place, head, ("clean accuracy, %", "under all attacks, %"))


def gain_against_time(rows: list[Row]) -> Figure:
    """Points under all attacks above vanilla at the same k, against the time that they cost."""

    def place(row: Row) -> tuple[float, float]:
        return row.times or 1.0, row.gain or 0.0

    def vanilla(axes: Axes, of_target: list[Row]) -> None:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter("{x:g}×")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axvline(1, **GUIDE)
        axes.axhline(0, **GUIDE)

    compared = [
        row
        for row in rows
        if row.method not in (HEAD, VANILLA) and row.times is not None and row.gain is not None
    ]
    labels = ("time, in multiples of vanilla", "under all attacks, points above vanilla")
    return drawn(compared, place, vanilla, labels)


def draw(rows: list[Row], out: Path) -> None:
    """Both plots, beside the JSON file."""
    pictures = {"robust": robust_against_clean, "time": gain_against_time}
    for name, picture in pictures.items():
        with style():
            content = rendered(picture(rows), "png")
        out.with_name(f"{out.stem}-{name}.png").write_bytes(content)


def measure(options: argparse.Namespace, cells: list[Cell]) -> None:
    """Measure what is asked for and not among the ``cells``, which grow and are stored."""
    runs_dir, data_dir = options.runs_dir, options.data_dir
    runs_dir.mkdir(exist_ok=True)
    targets = {name: TARGETS[name](data_dir, runs_dir) for name in options.targets}
    known = {c.run for c in cells if c.autoattack is not None or not options.autoattack}
    wanted = [
        (target, method, k, seed)
        for seed, target, method in product(options.seeds, options.targets, options.methods)
        for k in METHODS[method].ks
        if k in options.k and run_name(target, method, k, seed) not in known
        if targets[target].pretrain is not None or not METHODS[method].fdm
    ]
    for name, fdm in sorted({(key[0], METHODS[key[1]].fdm) for key in wanted}):
        if (how := targets[name].pretrain) is not None:
            make_source(runs_dir, source_name(name, True, fdm), how, fdm)
    tasks = (partial(measured, runs_dir, targets[key[0]], options, key) for key in wanted)
    for cell in finished(tasks, options.jobs):
        cells[:] = [other for other in cells if other.run != cell.run] + [cell]
        store(cells, options.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--k", type=int, nargs="+", default=[1, *KS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--runs-dir", type=Path, default=Path("which-method-runs"))
    parser.add_argument("--limit", type=int, help="images of each attack, at most")
    parser.add_argument("--checks", default="fast", help="tier of the checks of the attacks")
    parser.add_argument("--autoattack", action="store_true", help="run the reference attack, too")
    parser.add_argument("--jobs", type=int, default=1, help="commands at the same time")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/which-method.json"))
    parser.add_argument("--plots", action="store_true", help="measure nothing; table and plots")
    options = parser.parse_args()
    cells = stored(options.out)
    if not options.plots:
        measure(options, cells)
    rows = rows_of(cells)
    draw(rows, options.out)
    print(markdown(rows))


if __name__ == "__main__":
    main()
