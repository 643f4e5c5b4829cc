"""What a method gains in robust accuracy at the clean accuracy of another (CARTL, Section 7.1)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from cartl_cli.core.registry.transfer_methods import SOURCE
from cartl_cli.core.reports.rows import Row, meeting, methods
from cartl_cli.core.statistics import Z95


@dataclass(frozen=True)
class Gain:
    """A row beside a baseline's robust accuracy at its clean accuracy.

    ``theirs`` lies on the line between the two rows ``between``, the baseline's on either side;
    ``value`` is ours minus that, with its 95 % interval from the choice of images.
    """

    ours: Row
    between: tuple[Row, Row]
    theirs: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outside:
    """A row whose clean accuracy no two rows of the baseline enclose.

    ``curve``: the baseline's rows on the same images, by rising clean accuracy.
    """

    ours: Row
    curve: tuple[Row, ...]


def gains(rows: Sequence[Row], baseline: str) -> list[Gain | Outside]:
    """The gain of every row of another method between two of the baseline's, or that it has none.

    All are of the same images, attack and source data. Nothing where ``baseline`` is no method, or
    has no two rows to be between.
    """
    method = next((name for name in methods() if name.lower() == baseline.lower()), None)
    found: list[Gain | Outside] = []
    for row in rows:
        if row.setting.method not in (method, SOURCE.label):
            alike = [
                one for one in rows if one.setting.method == method and meeting(one) == meeting(row)
            ]
            found.append(_between(row, sorted(alike, key=lambda one: one.clean.mean)))
    reached = any(isinstance(one, Gain) or len(one.curve) > 1 for one in found)
    return found if reached else []


def _between(row: Row, curve: Sequence[Row]) -> Gain | Outside:
    """The gain of a row between two of a curve."""
    for low, high in itertools.pairwise(curve):
        c0, c1 = low.clean.mean, high.clean.mean
        if c0 <= row.clean.mean <= c1 and c0 < c1:
            return gain(row, low, high)
    return Outside(row, tuple(curve))


def gain(ours: Row, low: Row, high: Row) -> Gain:
    """Our robust accuracy minus that of the line through two rows, at our clean accuracy.

    With t the part of the way and s the slope, the variance is that of
    r − s·c − Σ w·(rᵢ − s·cᵢ), w = 1 − t and t: each accuracy p of n images has p(1 − p)/n.
    """
    (c, r), (c0, r0), (c1, r1) = ((row.clean.mean, row.robust.mean) for row in (ours, low, high))
    part, slope = (c - c0) / (c1 - c0), (r1 - r0) / (c1 - c0)
    theirs = r0 + part * (r1 - r0)
    n = ours.conditions.n
    weighed = ((1.0, c, r), (1 - part, c0, r0), (part, c1, r1))
    variance = sum(
        w**2 * (robust * (1 - robust) + slope**2 * clean * (1 - clean)) / n
        for w, clean, robust in weighed
    )
    reach = Z95 * math.sqrt(variance)
    return Gain(ours, (low, high), theirs, r - theirs, r - theirs - reach, r - theirs + reach)
