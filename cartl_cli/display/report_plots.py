"""Pictures of a report: the trade-off (Fig. 4 of the paper), k (Fig. 3), fraction (Fig. 5)."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.registry.transfer_methods import SOURCE, looks
from cartl_cli.core.reports.rows import Row
from cartl_cli.core.statistics import Spread
from cartl_cli.display.attack_plots import rendered, style
from cartl_cli.display.report_differences import attack_words, data_pair, in_words

ENDINGS = ("png", "svg", "pdf")
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
MOST = 12  # lines of a legend
LONGEST = 72  # characters of a label
BROAD = 76  # characters of all columns of a legend
HANDLE = 8  # of these for the line or marker before a label
HALVES = ("left", "right", "top", "bottom")
FILLS: tuple[dict[str, Any], ...] = tuple(
    {"ms": size, "markerfacecoloralt": "white", **fill}
    for size in (7, 10)
    for fill in ({}, {"markerfacecolor": "white"}, *({"fillstyle": half} for half in HALVES))
)
"""How the markers of one method differ by its settings: by what is white, then by their size."""

Label = tuple[tuple[str, str], ...]


def curves(rows: Sequence[Row], names: Sequence[str]) -> dict[str, bytes]:
    """File name → content of each picture named, in every format."""
    with style():
        return {
            f"{name}.{ending}": rendered(FIGURES[name](rows), ending)
            for name in names
            for ending in ENDINGS
        }


def fitting(rows: Sequence[Row]) -> dict[str, bytes]:
    """Title → SVG of each picture that these rows can fill."""
    wanted = {
        "Robust against clean accuracy": "tradeoff",
        "Accuracy by k, the number of blocks tuned": "k",
        "Accuracy by the part of the training images used": "fraction",
    }
    with style():
        return {
            title: rendered(FIGURES[name](rows), "svg")
            for title, name in wanted.items()
            if rows and (name == "tradeoff" or any(len(s) > 1 for s in _series(rows, name)))
        }


def tradeoff(rows: Sequence[Row]) -> Figure:
    """Robust accuracy, the worst of all, against clean: a point for each row, its k beside it.

    A method has a colour and a marker; each of its settings fills the marker in its own way.
    """
    figure, axes = _figure(rows)
    series = _series(rows, "k")
    several_k = len({row.setting.k for row in rows}) > 1
    looks_of = {look.label: (look, itertools.cycle(FILLS)) for look in looks()}
    for members, label in zip(series, _labels(rows, series, "k"), strict=True):
        look, fills = looks_of[members[0].setting.method]
        axes.errorbar(
            [100 * row.clean.mean for row in members],
            [100 * row.robust.mean for row in members],
            xerr=_errors([row.clean for row in members]),
            yerr=_errors([row.robust for row in members]),
            color=look.colour,
            fmt=look.marker,
            elinewidth=0.7,
            label=label,
            **next(fills),
        )
        for row in members if several_k else ():
            at = (100 * row.clean.mean, 100 * row.robust.mean)
            axes.annotate(f"k={row.setting.k}", at, (5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="clean accuracy, %", ylabel="worst of all attacks, % (upper bound)")
    _legend(figure, axes)
    return figure


def over_k(rows: Sequence[Row]) -> Figure:
    """Clean and robust accuracy against the number of blocks tuned."""
    figure, axes = _against(rows, "k", lambda row: row.setting.k)
    axes.set_xlabel("k: blocks tuned, counted from the end")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def over_fraction(rows: Sequence[Row]) -> Figure:
    """Clean and robust accuracy against the part of the training images used."""
    figure, axes = _against(rows, "fraction", lambda row: 100 * row.setting.fraction)
    axes.set(xlabel="training images used, %", xlim=(0, 105))
    return figure


FIGURES: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "tradeoff": tradeoff,
    "k": over_k,
    "fraction": over_fraction,
}


def _against(
    rows: Sequence[Row], name: str, position: Callable[[Row], float]
) -> tuple[Figure, Axes]:
    every = [line for line in _series(rows, name) if line[0].setting.method != SOURCE.label]
    series = [line for line in every if len(line) > 1] or every
    drawn = [row for line in series for row in line]
    figure, axes = _figure(drawn or rows)
    labels = _labels(drawn, series, name)
    by_label = {look.label: (look, itertools.cycle(DASHES)) for look in looks()}
    for line, label in zip(series, labels, strict=True):
        look, cycle = by_label[line[0].setting.method]
        dashes: Any = next(cycle)
        for part, filled in (("clean", "none"), ("robust", "full")):
            found: list[Spread] = [getattr(row, part) for row in line]
            axes.errorbar(
                [position(row) for row in line],
                [100 * one.mean for one in found],
                yerr=_errors(found),
                color=look.colour,
                marker=look.marker,
                fillstyle=filled,
                linestyle=dashes,
                elinewidth=0.7,
                capsize=2,
                label=label if part == "robust" else None,
            )
    axes.set(ylabel="accuracy, %", ylim=(0, 100))
    notes = [axes.get_title(), "hollow: clean, filled: worst of all attacks"]
    if len(series) < len(every):
        notes.append(f"left out, with one {name} alone: {len(every) - len(series)}")
    axes.set_title("\n".join(notes), fontsize=8)
    _legend(figure, axes)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    """The labels below the axes, in as many columns as they leave room for."""
    handles, texts = axes.get_legend_handles_labels()
    if handles:
        columns = max(1, min(5, BROAD // (max(map(len, texts)) + HANDLE)))
        lines = min(-(-len(texts) // columns), MOST)
        figure.set_figheight(figure.get_figheight() + 0.2 * lines)
        shown = lines * columns
        if shown < len(texts):
            texts[shown - 1] = f"... and {len(texts) - shown + 1} more"
        figure.legend(
            handles[:shown], texts[:shown], loc="outside lower center", ncols=columns, fontsize=9
        )


def _series(rows: Sequence[Row], name: str) -> list[list[Row]]:
    """Rows that differ by the setting ``name`` alone, each line in its rising order."""
    lines: dict[object, list[Row]] = {}
    for row in rows:
        setting = {key: value for key, value in vars(row.setting).items() if key != name}
        others = tuple(one for one in row.setting.others if one[0] != f"source {name}")
        key = (tuple({**setting, "others": others}.items()), row.conditions, row.eps)
        lines.setdefault(key, []).append(row)
    return [
        sorted(line, key=lambda row: float(getattr(row.setting, name))) for line in lines.values()
    ]


def _labels(rows: Sequence[Row], series: Sequence[Sequence[Row]], name: str) -> list[str]:
    """The method of each line, and what tells it from others; its key is that of the tables."""
    words = in_words(rows, (name, f"source {name}"))
    place = {id(row): number for number, row in enumerate(rows)}
    return [_ascii(", ".join(words[place[id(first)]])) for first, *_ in series]


def _ascii(text: str) -> str:
    """What every font has, no longer than a legend can hold."""
    for sign, word in (("λ", "lambda"), ("β", "beta"), ("→", "to")):
        text = text.replace(sign, word)
    shown = text.encode("ascii", "backslashreplace").decode()
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def _errors(accuracies: Sequence[Spread]) -> list[list[float]]:
    """± the standard deviation over seeds, or of one seed its interval from the images."""
    return [
        [100 * (one.sd if one.sd is not None else one.mean - one.low) for one in accuracies],
        [100 * (one.sd if one.sd is not None else one.high - one.mean) for one in accuracies],
    ]


def _figure(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    """Empty axes under a title that says what all rows have in common."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes: Axes = figure.subplots()
    said = [
        _common({data_pair(row) for row in rows}, "data"),
        _common({row.setting.arch for row in rows}, "architectures"),
        _common({f"n = {row.conditions.n}" for row in rows}, "n"),
        _common({f"eps {shown_pixels(row.eps)}" for row in rows}, "eps"),
    ]
    attack = _common({attack_words(row) for row in rows}, "attacks")
    kinds = {
        "95 % interval from the images, one seed"
        if len(row.results) == 1
        else "standard deviation over seeds"
        for row in rows
    }
    bars = f"bars: {' or '.join(sorted(kinds))}"
    title = "\n".join([", ".join(said), attack, bars])
    axes.set_title(title, fontsize=8, parse_math=False)
    axes.grid(alpha=0.3)
    return figure, axes


def _common(values: set[str], several: str) -> str:
    return next(iter(values)) if len(values) == 1 else f"several {several}"
