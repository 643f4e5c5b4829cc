"""The curves on the page of one model, as SVG so small that their words are read on a phone."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.metrics import Line
from cartl_cli.display.attack_plots import BLUE, RED, accuracy_over_eps, rendered, style

SIZE = (4.6, 3.6)  # inches, for each of the axes
LOOKS = {
    "clean": {"color": BLUE, "marker": "o", "ls": "-"},
    "adversarial": {"color": RED, "marker": "s", "ls": "-"},
    "fgsm": {"color": "0.3", "marker": "^", "ls": "--"},
    "pgd": {"color": "0.3", "marker": "v", "ls": ":"},
}
ENDING = "_accuracy"


def training_curves(epochs: Sequence[Line]) -> bytes:
    """Loss and accuracies against the epoch, on the batches of the training, as SVG."""
    with style():
        figure = Figure(figsize=(SIZE[0], 1.6 * SIZE[1]), layout="constrained")
        upper, lower = figure.subplots(2, sharex=True)
        measured = dict.fromkeys(name for line in epochs for name in line if name.endswith(ENDING))
        for name in measured:
            lines = [line for line in epochs if name in line]
            short = name.removesuffix(ENDING)
            upper.plot(
                [line["epoch"] for line in lines],
                [100 * line[name] for line in lines],
                label=short,
                ms=4,
                **LOOKS.get(short, {}),
            )
        lower.plot(
            [line["epoch"] for line in epochs], [line["loss"] for line in epochs], "ko-", ms=4
        )
        upper.set(ylabel="accuracy, %", ylim=(0, 102))
        lower.set(xlabel="epoch", ylabel="loss")
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (upper, lower):
            axes.grid(alpha=0.3)
        upper.legend()
        return rendered(figure, "svg")


def eps_curve(attack: Run) -> bytes:
    """Accuracy over eps, as ``cartl attack --plot`` draws it, without its title, as SVG."""
    with style():
        figure = accuracy_over_eps(attack)
        figure.axes[0].set_title("")  # the page has it as text
        figure.set_size_inches(SIZE)
        return rendered(figure, "svg")
