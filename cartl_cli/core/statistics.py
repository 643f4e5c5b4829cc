"""Intervals for accuracies."""

import math

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval (Wilson 1927) of a fraction; covers the choice of images only."""
    fraction = successes / n
    spread = Z95**2 / n
    centre = (fraction + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (fraction * (1 - fraction) + spread / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
