"""The picture of a confusion matrix; the same answers give the same bytes."""

from matplotlib.figure import Figure

from cartl_cli.core.evaluation.confusion import Confusion
from cartl_cli.display.attack_plots import plain, rendered, style

INCHES, LEAST, MOST = 0.42, 2.0, 20.0  # a side: of each class, at least, at most
NUMBERED, NAMED = 30, 100  # classes at most whose cells have numbers, whose rows have names


def confusion_plot(
    name: str, confusion: Confusion, conditions: str = "", ending: str = "png"
) -> bytes:
    """Each label's row in shares of its images, as shades, with the number of images in each cell.

    Of the classes of the run ``name``, those are drawn that are a label or an answer.
    ``conditions``, if any, says in the title on which images. ``ending`` is ``png`` or ``svg``.
    """
    met = confusion.met
    shares = [
        [confusion.counts[label, answer] / max(1, confusion.images(label)) for answer in met]
        for label in met
    ]
    side = min(max(LEAST, INCHES * len(met)), MOST)
    with style():
        figure = Figure(figsize=(side + 3.2, side + 1.9), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        bar = figure.colorbar(image, ax=axes, shrink=0.8)
        bar.set_label("share of the label's images")
        names = [plain(label) for label in met] if len(met) <= NAMED else []
        places = range(len(names))
        axes.set_xticks(places, names, rotation=90, parse_math=False)
        axes.set_yticks(places, names, parse_math=False)
        axes.set(xlabel="answer", ylabel="label")
        for row, label in enumerate(met if len(met) <= NUMBERED else ()):
            for column, answer in enumerate(met):
                if count := confusion.counts[label, answer]:
                    colour = "white" if shares[row][column] > 0.5 else "black"
                    axes.text(
                        column, row, str(count), ha="center", va="center", color=colour, fontsize=8
                    )
        right = f"{100 * confusion.overall_accuracy:.1f} %"
        balanced = f"{100 * confusion.balanced_accuracy:.1f} %"
        title = ", ".join(filter(None, (plain(name), conditions)))
        figure.suptitle(
            f"{title}\nn = {confusion.n}, accuracy {right}, balanced {balanced}",
            fontsize=9,
            parse_math=False,
        )
        return rendered(figure, ending)
