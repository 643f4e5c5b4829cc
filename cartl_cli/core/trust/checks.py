"""What a check says, and what all of them together say."""

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel

from cartl_cli.core.config import SETTINGS

Verdict = Literal["pass", "warn", "fail"]
Headline = Literal["ok", "upper bound, attack incomplete", "invalid"]


class Check(BaseModel):
    """One check: ``value`` is what was measured, where that is a number; ``text`` a sentence."""

    model_config = SETTINGS

    id: str
    verdict: Verdict
    value: float | None
    text: str


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


def headline(checks: Iterable[Check]) -> Headline:
    """The worst that the checks say: a failed invariant (V…) voids the number."""
    failed = [check.id for check in checks if check.verdict == "fail"]
    if any(name.startswith("V") for name in failed):
        return "invalid"
    return "upper bound, attack incomplete" if failed else "ok"
