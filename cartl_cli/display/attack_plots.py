"""Pictures of what an attack found, each as a PNG and an SVG.

The same results give the same bytes with the same matplotlib. Lines differ by marker and dashes as
well as by a colour of Okabe and Ito's palette, so that they can be told apart in grey and by
everybody.
"""

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from cartl_cli.core.choices import NORM_SIGNS
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs.results import headline
from cartl_cli.display.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor

    from cartl_cli.core.runs.manifest import Run
    from cartl_cli.core.runs.results import Moved

BLUE, RED = "#0072B2", "#D55E00"
LONGEST_NAME = 36  # of a run, in a title


def attack_plots(run: "Run", outcomes: "Mapping[str, Tensor]") -> dict[str, bytes]:
    """File name → content of each picture of a finished attack and its per-image ``outcomes``."""
    with style():
        figures = {"accuracy-over-steps": accuracy_over_steps(run, outcomes)}
        if len(run.attack_results.by_eps) > 1:  # a line through two points would claim too much
            figures["accuracy-over-eps"] = accuracy_over_eps(run)
        if run.attack_results.diagnosis is not None:
            figures["feature-distance"] = feature_distance(run)
        return {
            f"{name}.{ending}": rendered(figure, ending)
            for name, figure in figures.items()
            for ending in ("png", "svg")
        }


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib as it comes, whatever the user has made of it; to draw and to render in."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.hashsalt": "cartl", "svg.fonttype": "none", "font.size": 10})
        yield


def rendered(figure: Figure, ending: str) -> bytes:
    """The figure as a file of that ending, ``png``, ``svg`` or ``pdf``, without a date."""
    content = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending)
    figure.savefig(content, format=ending, dpi=150, metadata=metadata)
    return content.getvalue()


def accuracy_over_eps(run: "Run") -> Figure:
    """Accuracy against eps: worst of all with its 95 % band, and each attack that has its own."""
    config, results = run.attack, run.attack_results
    unit, of = (255, "/255") if config.norm == "linf" else (1, "")
    eps = [0.0, *(unit * found.eps for found in results.by_eps)]
    figure, axes = _figure(run, f"n = {results.n}, eps up to {largest(run)}")
    intervals = [results.clean_interval, *(found.interval for found in results.by_eps)]
    low, high = ([100 * end for end in ends] for ends in zip(*intervals, strict=True))
    worst = [results.clean_accuracy, *(found.robust_accuracy for found in results.by_eps)]
    axes.plot(eps, [100 * value for value in worst], "ko-", ms=9, lw=3, label="worst of all")
    axes.fill_between(eps, low, high, color="0.85", label="95 % interval of the worst")
    for name in config.attacks:
        alone = [found.alone(name) for found in results.by_eps]
        if None not in alone:
            left = [100 * value for value in (results.clean_accuracy, *alone) if value is not None]
            axes.plot(eps, left, label=f"{name} alone", **_line(name))
    if results.half_eps is not None:
        half = unit * results.half_eps
        axes.axvline(half, color="0.4", linestyle=":", label=f"half have fallen: {half:.3g}{of}")
    axes.set(xlabel=f"eps{of and ', ' + of}; 0: clean", ylabel="accuracy, %", ylim=(0, 102))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def accuracy_over_steps(run: "Run", outcomes: "Mapping[str, Tensor]") -> Figure:
    """Accuracy against the iterates of each attack at the largest eps: a flat end has converged.

    A curve begins with the images that the attack was run on: what the attacks before it left, or
    all that are right when clean (independent ones), without those that fell at a smaller eps
    unless the attack is the first.
    """
    from cartl_cli.core.evaluation.diagnosis import fall
    from cartl_cli.core.evaluation.verdicts import UNTRIED

    config, results = run.attack, run.attack_results
    figure, axes = _figure(run, f"n = {results.n}, eps {largest(run)}")
    for place, name in enumerate(config.attacks):
        attack = EVALUATION_ATTACKS[name]
        if attack.iterates is None:
            continue
        fell_at = outcomes["fell_at"][-1, place]
        tried = fell_at != UNTRIED
        curve = fall(tried, fell_at, attack.iterates(config.pgd_steps, config.queries))
        counted = f", {attack.counted}" if attack.counted else ""
        axes.plot(
            [iterate for iterate, _ in curve],
            [100 * accuracy for _, accuracy in curve],
            drawstyle="steps-post",
            markevery=[0, -1],
            label=f"{name} (run on {int(tried.sum())}{counted})",
            **_line(name),
        )
    axes.set_xscale("symlog", linthresh=1, linscale=0.3)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    each = " of each restart" if config.restarts > 1 else ""
    by_query = [n for n in config.attacks if EVALUATION_ATTACKS[n].takes == "queries"]
    query = "".join(f"; {name}: queries" for name in by_query)
    axes.set_xlabel(f"iterate{each} (0: the start{query})")
    highest = max(5, 105 * results.clean_accuracy)
    axes.set(xlim=(-0.2, None), ylim=(0, highest), ylabel="accuracy, %")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def feature_distance(run: "Run") -> Figure:
    """Mean relative distance of adversarial from clean features by block, source and target."""
    diagnosis = run.attack_results.diagnosis
    assert diagnosis is not None
    blocks, boundary = diagnosis.blocks, len(diagnosis.blocks) - 1 - run.manifest.k
    figure, axes = _figure(run, f"n = {diagnosis.n} right when clean, eps up to {largest(run)}")
    compared = any(row.source for row in blocks)
    if compared:
        before = [_distance(row.source) for row in blocks]
        axes.plot(before, color=BLUE, marker="s", ls="--", label="source model")
    moved = [_distance(row.target) for row in blocks]
    axes.plot(moved, color=RED, marker="o", label="target model" if compared else "model")
    axes.axvline(
        boundary + 0.5, color="0.4", ls=":", label=f"L−k = {boundary}: frozen | tuned in transfer"
    )
    names = ["stem", *map(str, range(1, len(blocks) - 1)), "logits"]
    axes.set_xticks(range(len(blocks)), names, rotation=90 if len(blocks) > 16 else 0)
    axes.set(xlabel="block", ylabel="‖f(x̃) − f(x)‖₂ / ‖f(x)‖₂, mean", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _line(name: str) -> dict[str, Any]:
    """How the line of an attack is drawn."""
    attack = EVALUATION_ATTACKS[name]
    return {"color": attack.colour, "marker": attack.marker, "linestyle": attack.dashes}


def _distance(moved: "Moved | None") -> float:
    return math.nan if moved is None or moved.distance is None else moved.distance


def plain(name: str) -> str:
    """The name of a run with only what every font has, no longer than a title can hold."""
    text = printable(name).encode("ascii", "backslashreplace").decode()
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _figure(run: "Run", conditions: str) -> tuple[Figure, Axes]:
    """Empty axes under a title that says what was attacked, and how."""
    config, results = run.attack, run.attack_results
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes: Axes = figure.subplots()
    steps = f", {config.effort['steps']} steps" if "steps" in config.effort else ""
    lines = [
        f"{plain(run.name)}: attack on {plain(run.source.run)}",
        f"{conditions}, {NORM_SIGNS[config.norm]}{steps}, seed {config.seed}",
    ]
    if (trusted := headline(results.trust)) != "ok":
        lines.append(trusted)
    axes.set_title("\n".join(lines), fontsize=9, parse_math=False)  # a name may hold a $
    axes.grid(alpha=0.3)
    return figure, axes


def largest(run: "Run") -> str:
    """The largest eps of an attack, as it is shown."""
    return shown_pixels(run.attack_results.by_eps[-1].eps)
