"""Intervals for accuracies, and for the difference of two on the same images."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FEW = 100  # images below which Wilson's interval may cover less than it says
Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval (Wilson 1927) of a fraction; covers the choice of images only."""
    fraction = successes / n
    spread = Z95**2 / n
    centre = (fraction + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (fraction * (1 - fraction) + spread / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    """95 % exact interval (Clopper & Pearson 1934) of a fraction: covers at least 95 %.

    Each end is the fraction that gives so many successes, or so few, a probability of 2.5 %.
    """
    low = 0.0 if successes == 0 else _root(lambda p: _at_most(n - successes, n, 1 - p) - 0.025)
    high = 1.0 if successes == n else _root(lambda p: 0.025 - _at_most(successes, n, p))
    return low, high


def accuracy_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a fraction: exact where Wilson's is not to be trusted, else Wilson's."""
    exact = n < FEW or successes in (0, n)
    return clopper_pearson(successes, n) if exact else wilson_interval(successes, n)


def at_chance(right: int, n: int, largest: int) -> bool:
    """Whether a model that got so many of n images right may be one that always answers the same.

    ``largest`` counts the images of the largest class; within the 95 % interval nothing is shown.
    """
    return accuracy_interval(right, n)[0] <= largest / n


def chance(right: int, n: int, largest: int) -> str:
    """The same in words, which end what begins with "clean accuracy"; none if more is shown."""
    if not at_chance(right, n, largest):
        return ""
    if right <= largest < n:
        return "is at chance"
    return f"may be at chance: n = {n} is too few to tell"


def too_few(n: int, right: int | None = None) -> str:
    """A warning if n images are too few to say much; none of more.

    The interval is that of ``right`` of them, or the widest.
    """
    if n >= FEW:
        return ""
    low, high = accuracy_interval(n // 2 if right is None else right, n)
    wide = f"{'up to ' * (right is None)}{100 * (high - low):.0f} points"
    return f"warning: with n = {n} the 95 % interval is {wide} wide"


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p value (McNemar 1947) that b and c, out of b + c, are as likely.

    ``b`` and ``c`` count the images that only one and only the other of two models gets right.
    """
    n = b + c
    tail = sum(math.comb(n, i) for i in range(min(b, c) + 1))
    return float(min(1.0, 2 * tail / 2**n))


def holm(ps: Sequence[float]) -> list[float]:
    """The p values adjusted for all of them being looked at (Holm 1979), in the order given.

    The i-th smallest of m is multiplied by m + 1 − i, and is no smaller than those before it.
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class Spread:
    """An accuracy of one or more seeds: ``sd`` is that of a sample, None from one seed.

    ``low`` and ``high`` are the 95 % interval from the choice of ``n`` images, which all seeds
    share; that of one model with the mean accuracy is wide enough for their mean.
    """

    values: tuple[float, ...]
    mean: float
    sd: float | None
    low: float
    high: float


def spread(values: Sequence[float], n: int) -> Spread:
    """Mean, standard deviation and interval of the accuracies of some seeds on n images."""
    mean = math.fsum(values) / len(values)
    low, high = accuracy_interval(round(mean * n), n)
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(tuple(values), mean, sd, low, high)


@dataclass(frozen=True)
class Difference:
    """How two models differ on the same images; ``value`` = (b − c) / n with its 95 % interval."""

    b: int
    c: int
    value: float
    low: float
    high: float
    p: float


def paired_difference(first: "Tensor", second: "Tensor") -> Difference:
    """Accuracy of ``first`` minus that of ``second``, verdicts (N,) bool on the same images.

    The interval is Tango's score interval (Tango 1998, Stat. Med. 17:891), the differences d with
    |b − c − nd| ≤ z·√(n(2p̃ + d(1 − d))), p̃ the likeliest share of c given d. It stays within ±1
    and, unlike Wald's, has a width where b = c = 0. p is McNemar's.
    """
    n, b, c = len(first), int((first & ~second).sum()), int((~first & second).sum())

    def score(d: float) -> float:
        linear = (2 * n - b + c) * d - b - c
        share = (math.sqrt(linear**2 + 8 * n * c * d * (1 - d)) - linear) / (4 * n)
        variance = n * (2 * share + d * (1 - d))
        distance = b - c - n * d
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    value = (b - c) / n
    low = -1.0 if c == n else _root(lambda d: Z95 - score(d), -1.0, value)
    high = 1.0 if b == n else _root(lambda d: -Z95 - score(d), value, 1.0)
    return Difference(b, c, value, low, high, mcnemar(b, c))


def _at_most(successes: int, n: int, p: float) -> float:
    """P(X ≤ successes) for X from Binomial(n, p), 0 < p < 1."""
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * math.log(p)
        + (n - i) * math.log1p(-p)
        for i in range(successes + 1)
    )
    return math.fsum(map(math.exp, logs))


def _root(rising: Callable[[float], float], low: float = 0.0, high: float = 1.0) -> float:
    """Where a function that rises from ``low`` to ``high`` is zero, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
