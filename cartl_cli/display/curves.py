"""Pictures of a report: the trade-off (Fig. 4 of the paper), k (Fig. 3), fraction (Fig. 5)."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cartl_cli.core.reporting import METHODS, Row
from cartl_cli.core.statistics import Spread
from cartl_cli.core.values import shown_pixels
from cartl_cli.display.differences import attack_words, data_pair, varied
from cartl_cli.display.plots import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    plain,
    rendered,
    style,
)

ENDINGS = ("png", "svg", "pdf")
COLOURS = dict(zip(METHODS, (PURPLE, BLUE, ORANGE, GREEN, RED), strict=True))
MARKERS = dict(zip(METHODS, ("P", "s", "v", "D", "o"), strict=True))
DASHES = ("-", "--", ":", "-.")
MOST = 12  # lines of a legend

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
    wanted = {"Trade-off": "tradeoff", "Blocks tuned": "k", "Training images": "fraction"}
    with style():
        return {
            title: rendered(FIGURES[name](rows), "svg")
            for title, name in wanted.items()
            if rows and (name == "tradeoff" or any(len(s) > 1 for s in _series(rows, name)))
        }


def tradeoff(rows: Sequence[Row]) -> Figure:
    """Robust accuracy, the worst of all, against clean: a point for each row, its k beside it."""
    figure, axes = _figure(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.setting.method, []).append(row)
    several_k = len({row.setting.k for row in rows}) > 1
    for method, members in groups.items():
        axes.errorbar(
            [100 * row.clean.mean for row in members],
            [100 * row.robust.mean for row in members],
            xerr=_errors([row.clean for row in members]),
            yerr=_errors([row.robust for row in members]),
            color=COLOURS[members[0].setting.method],
            fmt=MARKERS[members[0].setting.method],
            elinewidth=0.7,
            ms=7,
            label=method,
        )
        for row in members if several_k else ():
            at = (100 * row.clean.mean, 100 * row.robust.mean)
            axes.annotate(f"k={row.setting.k}", at, (5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="clean accuracy, %", ylabel="worst of all attacks, % (upper bound)")
    figure.legend(loc="outside lower center", ncols=5)
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
    figure, axes = _figure(rows)
    series = [line for line in _series(rows, name) if line[0].setting.method != "source"]
    labels = _labels(series, name)
    looks: dict[str, Any] = {method: itertools.cycle(DASHES) for method in METHODS}
    for line, label in zip(series, labels, strict=True):
        method = line[0].setting.method
        dashes = next(looks[method])
        for part, filled in (("clean", "none"), ("robust", "full")):
            found: list[Spread] = [getattr(row, part) for row in line]
            axes.errorbar(
                [position(row) for row in line],
                [100 * one.mean for one in found],
                yerr=_errors(found),
                color=COLOURS[method],
                marker=MARKERS[method],
                fillstyle=filled,
                linestyle=dashes,
                elinewidth=0.7,
                capsize=2,
                label=label if part == "robust" else None,
            )
    axes.set(ylabel="accuracy, %; hollow: clean, filled: worst of all", ylim=(0, 100))
    handles, texts = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles[:MOST], texts[:MOST], loc="outside lower center", ncols=2)
    return figure, axes


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


def _labels(series: Sequence[Sequence[Row]], name: str) -> list[str]:
    """The method of each line, with the settings in which the lines of that method differ."""
    firsts = [line[0] for line in series]
    told = [_told(row, varied(firsts), name) for row in firsts]
    labels = []
    for row, one in zip(firsts, told, strict=True):
        method = row.setting.method
        alike = [
            other
            for first, other in zip(firsts, told, strict=True)
            if first.setting.method == method
        ]
        differing = [text for key, text in one.items() if any(o.get(key) != text for o in alike)]
        labels.append(plain(", ".join([method, *differing])))
    return labels


def _told(row: Row, others: Sequence[str], name: str) -> dict[str, str]:
    setting = row.setting
    found = {
        "k": f"k {setting.k}",
        "beta": "" if setting.neft_beta is None else f"beta {setting.neft_beta:g}",
        "fdm": "" if not setting.fdm_lambda else f"lambda {setting.fdm_lambda:g}",
        "lwf": "" if setting.lwf_lambda is None else f"lambda {setting.lwf_lambda:g}",
        "fraction": f"{setting.fraction:.0%} of images",
        "freeze_bn": f"bn {setting.freeze_bn}",
        "eps": f"eps {shown_pixels(row.eps)}",
        "data": data_pair(row).replace("→", "to"),
        "arch": setting.arch,
        **{key: f"{key} {value}" for key, value in setting.others if key in others},
    }
    return {key: text for key, text in found.items() if text and key != name}


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
