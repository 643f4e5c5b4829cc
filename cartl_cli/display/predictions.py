"""Answers as lines of a file, and as tables."""

import csv
import json
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from rich.table import Table

from cartl_cli.core.choices import NORM_SIGNS
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.evaluation.confusion import Confusion
from cartl_cli.core.predictions.answers import Answer, Asking
from cartl_cli.core.predictions.tally import Tally
from cartl_cli.core.statistics import accuracy_interval
from cartl_cli.display.tables import cell, percent, titled

WIDEST = 10  # classes of a confusion matrix that a screen has room for


def line_writer(asked: Asking, out: TextIO) -> Callable[[Sequence[Answer]], None]:
    """Writes answers to a stream as CSV, after the names of its columns, or as JSON lines."""
    table = csv.writer(out, lineterminator="\n")
    if as_csv := asked.config.format == "csv":
        table.writerow(_columns(asked))

    def write(found: Sequence[Answer]) -> None:
        if as_csv:
            table.writerows(_row(asked, answer) for answer in found)
        else:
            out.writelines(f"{json.dumps(_as_object(asked, answer))}\n" for answer in found)
        out.flush()

    return write


def _columns(asked: Asking) -> list[str]:
    places = ["", *(f"_{place}" for place in range(2, asked.config.top + 1))]
    ranked = [f"{name}{place}" for place in places for name in ("answer", "probability")]
    return ["file", "label", *ranked, *(["survives"] if asked.budget else []), *_conditions(asked)]


def _row(asked: Asking, answer: Answer) -> list[Any]:
    ranked = [value for pair in answer.top for value in pair]
    survives = [json.dumps(answer.survives)] if asked.budget else []
    return [answer.name, answer.label, *ranked, *survives, *_conditions(asked).values()]


def _as_object(asked: Asking, answer: Answer) -> dict[str, Any]:
    name, probability = answer.top[0]
    return {
        "file": answer.name,
        "label": answer.label,
        "answer": name,
        "probability": probability,
        "top": [{"class": one, "probability": share} for one, share in answer.top],
        **({"survives": answer.survives} if asked.budget else {}),
        **_conditions(asked),
    }


def _conditions(asked: Asking) -> dict[str, Any]:
    """The attack that answers survive or not; nothing without one."""
    if asked.budget is None:
        return {}
    return {"attack": asked.config.attack, "eps": asked.budget.eps, "steps": asked.budget.steps}


def survivors(asked: Asking, found: int, survived: int) -> str:
    """How many answers survive which attack."""
    assert asked.budget is not None
    eps, norm = shown_pixels(asked.budget.eps), NORM_SIGNS[asked.budget.norm]
    return (
        f"{survived:,} of {found:,} answers survive {asked.config.attack} "
        f"({norm}, eps {eps}, {asked.budget.steps} steps)"
    )


def answers_table(asked: Asking, name: str, found: Sequence[Answer], tally: Tally) -> Table:
    """The answers of the run ``name`` for each file, and the ``tally`` of all that were asked."""
    what, plural = "mistake" if asked.config.mistakes else "image", "s" * (len(found) > 1)
    table = Table(title=cell(f"{name}: {len(found):,} {what}{plural}"))
    labelled = any(answer.label is not None for answer in found)
    for heading, shown in (
        ("file", True),
        ("label", labelled),
        ("answer", True),
        ("probability", True),
        ("then", asked.config.top > 1),
        ("survives", asked.budget is not None),
    ):
        if shown:
            table.add_column(heading, justify="right" if heading == "probability" else "left")
    for answer in found:
        (best, share), *others = answer.top
        row = [answer.name]
        row += [answer.label or ""] if labelled else []
        row += [best, percent(share)]
        if asked.config.top > 1:
            row.append(", ".join(f"{other} {percent(share)}" for other, share in others))
        if asked.budget is not None:
            row.append("yes" if answer.survives else "no")
        table.add_row(*map(cell, row))
    if asked.budget is not None:
        table.caption = cell(survivors(asked, tally.answered, tally.survived))
    return table


def accuracy_table(name: str, confusion: Confusion) -> Table:
    """The accuracy of the run ``name``, of all labelled images and of those of each class."""
    low, high = accuracy_interval(confusion.right, confusion.n)
    caption = (
        f"n = {confusion.n:,} images in a folder named like a class; 95 % interval of the accuracy "
        f"{100 * low:.1f}–{100 * high:.1f}; worst class: {confusion.worst_named}"
    )
    title = f"{name}: the answers, against the names of the folders"
    table = titled(cell(title), cell(caption), ("class",), ("images", "right", "accuracy"))
    table.add_column("most often mistaken for")
    for label in confusion.labels:
        images, right = confusion.images(label), confusion.counts[label, label]
        mistaken = confusion.mistaken_for(label)
        table.add_row(
            cell(label),
            f"{images:,}",
            f"{right:,}",
            percent(confusion.accuracy(label)),
            cell(f"{mistaken[0]} ({mistaken[1]:,})" if mistaken else ""),
        )
    table.add_section()
    overall = percent(confusion.overall_accuracy)
    table.add_row("all", f"{confusion.n:,}", f"{confusion.right:,}", overall, "")
    table.add_row("balanced: mean of the classes", "", "", percent(confusion.balanced_accuracy), "")
    return table


def confusion_table(confusion: Confusion) -> Table | None:
    """How many images of each label got each answer; None where a screen has no room for it."""
    met = confusion.met
    if len(met) > WIDEST:
        return None
    numbers = tuple(str(place) for place in range(1, len(met) + 1))
    caption = "rows: the folder's class; columns: the answer, by its row's number"
    table = titled("confusion matrix", caption, ("", "class"), numbers)
    for number, label in zip(numbers, met, strict=True):
        counts = [confusion.counts[label, answer] for answer in met]
        table.add_row(number, cell(label), *(f"{count:,}" for count in counts))
    return table
