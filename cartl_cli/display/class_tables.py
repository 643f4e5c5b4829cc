"""Accuracy class by class, clean and under attack."""

from rich.table import Table

from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.evaluation.confusion import Confusion
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.results import headline
from cartl_cli.core.statistics import accuracy_interval
from cartl_cli.display.tables import cell, percent, titled

MOST = 20  # classes that are all shown; of more, the worst
WORST = 5


def class_table(run: Run, clean: Confusion, attacked: Confusion) -> Table:
    """What the largest eps of an attack leaves of each class, of few or the worst ones."""
    labels, invalid = clean.labels, headline(run.attack_results.trust) == "invalid"
    some = ""
    if len(labels) > MOST:
        labels = sorted(labels, key=lambda one: (attacked.accuracy(one), clean.accuracy(one)))
        labels, some = labels[:WORST], f", the {WORST} worst of {len(labels)}"
    eps = shown_pixels(run.attack_results.by_eps[-1].eps)
    title = f"{run.source.run}: class by class, eps {eps}{some}"
    headings = ("images", "clean", "accuracy left", "95 %")
    table = titled(cell(title), cell(in_a_line(clean, attacked, invalid)), ("class",), headings)
    table.add_column("most often taken for")
    for label in labels:
        images, mistaken = attacked.images(label), attacked.mistaken_for(label)
        low, high = accuracy_interval(attacked.counts[label, label], images)
        table.add_row(
            cell(label),
            f"{images:,}",
            percent(clean.accuracy(label)),
            "INVALID" if invalid else percent(attacked.accuracy(label)),
            f"{100 * low:.1f}–{100 * high:.1f}",
            cell(f"{mistaken[0]} ({mistaken[1]:,})" if mistaken else ""),
        )
    return table


def in_a_line(clean: Confusion, attacked: Confusion, invalid: bool) -> str:
    """The worst class and the balanced accuracy, clean and under attack."""
    worst, balanced = (
        [f"{name} {value}" for name, value in zip(("clean", "under attack"), values, strict=True)]
        for values in (
            [
                f"{one.worst_named} ({percent(one.accuracy(one.worst))})"
                for one in (clean, attacked)
            ],
            [percent(one.balanced_accuracy) for one in (clean, attacked)],
        )
    )
    shown = slice(1 if invalid else 2)
    return (
        f"worst class: {', '.join(worst[shown])}; balanced accuracy, the mean of the classes: "
        f"{', '.join(balanced[shown])}"
    )
