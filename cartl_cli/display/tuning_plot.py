"""The picture of a search: clean against robust accuracy, and the front."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cartl_cli.core.config.tune_settings import Want
from cartl_cli.core.sweeps.halving import Outcome, front
from cartl_cli.display.attack_plots import RED, plain, rendered, style


def front_plot(outcome: Outcome, want: Want, dataset: str) -> bytes:
    """A PNG: the finalists with their k, the front as a line, the chosen one in a ring."""
    best, drawn = outcome.best(want), outcome.finalists
    with style():
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        axes: Axes = figure.subplots()
        ends = sorted(front(drawn), key=lambda one: one.clean)
        axes.plot(
            [100 * one.clean for one in ends],
            [100 * one.robust for one in ends],
            color="0.6",
            linestyle="--",
            label="front",
        )
        labelled: set[str] = set()
        for one in drawn:
            look = one.candidate.look
            clean, robust = 100 * one.clean, 100 * one.robust
            label = look.label if look.label not in labelled else None
            labelled.add(look.label)
            axes.plot(
                clean, robust, color=look.colour, marker=look.marker, linestyle="none", label=label
            )
            axes.annotate(f" k {one.candidate.k}", (clean, robust), fontsize=8)
        axes.plot(
            100 * best.clean,
            100 * best.robust,
            color=RED,
            marker="o",
            ms=14,
            fillstyle="none",
            linestyle="none",
            label=f"chosen ({want})",
        )
        axes.set(xlabel="clean accuracy, %", ylabel="robust accuracy, %")
        axes.set_title(
            f"{plain(dataset)}: n = {best.n} training images, not seen by the models",
            fontsize=9,
            parse_math=False,
        )
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=4)
        return rendered(figure, "png")
