"""How a check is made of a value and its limits."""

import math

from cartl_cli.core.runs.results import Check, Verdict


def limited(
    name: str, value: float, text: str, *, warn: float = math.inf, fail: float = math.inf
) -> Check:
    """The check that a value is at most ``warn``, or at least at most ``fail``; NaN fails."""
    if not value <= fail:
        return Check(id=name, verdict="fail", value=finite(value), text=text)
    verdict: Verdict = "pass" if value <= warn else "warn"
    return Check(id=name, verdict=verdict, value=finite(value), text=text)


def required(name: str, holds: bool, value: float, text: str) -> Check:
    """The check that something holds."""
    return Check(id=name, verdict="pass" if holds else "fail", value=finite(value), text=text)


def finite(value: float) -> float | None:
    """A value as it is stored: JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
