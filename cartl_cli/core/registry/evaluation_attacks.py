"""The attacks of ``cartl attack``, by name."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cartl_cli.core.errors import UsageError

Dashes = str | tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class EvaluationAttack:
    """An attack that measures robust accuracy.

    ``code`` names its function, an ``Attack`` of ``attacks.contract``. ``loss`` names the loss of
    ``method.losses`` that it raises, as far as the short attacks within the checks can follow it.
    ``independent``: run on every image that is right when clean, so that its own accuracy can be
    cited; the others attack what those before them left. ``to_the_end``: as the first of several it
    can walk on with fallen images, for ``--final-iterate``.

    ``takes``: which of steps and queries it uses. ``iterates``: (steps, queries) → how many
    iterates its curve has; None if it says neither at which iterate an image falls nor where it led
    one that stands. ``counted``:
    what they count, where that needs words. ``package``: what must be installed, and the extra that
    has it. ``few_classes``: what is different with fewer than 4 classes. The line of its plots has
    a colour, a marker and dashes.
    """

    name: str
    code: str
    loss: Literal["cross_entropy", "margin"]
    colour: str
    marker: str
    dashes: Dashes
    takes: Literal["steps", "queries", "nothing"] = "steps"
    independent: bool = False
    to_the_end: bool = False
    iterates: Callable[[int, int], int] | None = lambda steps, queries: steps
    counted: str = ""
    package: tuple[str, str] | None = None
    few_classes: str = ""

    def require_package(self) -> None:
        """Raise UsageError where the package that it needs is not installed."""
        if self.package is not None and importlib.util.find_spec(self.package[0]) is None:
            package, extra = self.package
            raise UsageError(
                f"--attack: {self.name} needs the package {package}; pip install 'cartl[{extra}]'"
            )


_HERE = "cartl_cli.core.attacks"
# the colours are those of Okabe and Ito, which everybody can tell apart
EVALUATION_ATTACKS: dict[str, EvaluationAttack] = {
    attack.name: attack
    for attack in (
        EvaluationAttack(
            "fgsm",
            f"{_HERE}.judged_pgd:fgsm",
            "cross_entropy",
            *("#56B4E9", "v", "-"),
            takes="nothing",
            iterates=lambda steps, queries: 1,
        ),
        EvaluationAttack(
            "pgd",
            f"{_HERE}.judged_pgd:pgd_cross_entropy",
            "cross_entropy",
            *("#0072B2", "s", "--"),
            independent=True,
            to_the_end=True,
        ),
        EvaluationAttack(
            "pgd-margin",
            f"{_HERE}.judged_pgd:pgd_margin",
            "margin",
            *("#E69F00", "^", "-."),
            independent=True,
        ),
        EvaluationAttack(
            "apgd-ce", f"{_HERE}.apgd:apgd_ce", "cross_entropy", *("#CC79A7", "P", (0, (5, 1)))
        ),
        EvaluationAttack(
            "apgd-t",
            f"{_HERE}.apgd:apgd_t",
            "margin",
            *("#D55E00", "D", (0, (3, 1, 1, 1))),
            counted="iterates towards one class",
            few_classes="aims with the margin, not the DLR loss",
        ),
        EvaluationAttack(
            "square",
            f"{_HERE}.square:square_attack",
            "margin",
            *("#000000", "X", ":"),
            takes="queries",
            iterates=lambda steps, queries: queries,
        ),
        EvaluationAttack(
            "feature", f"{_HERE}.feature:feature", "cross_entropy", *("#009E73", "*", (0, (1, 1)))
        ),
        EvaluationAttack(
            "autoattack",
            f"{_HERE}.autoattack:autoattack_ensemble",
            "margin",
            *("#808080", "h", (0, (8, 2))),
            takes="nothing",
            independent=True,
            iterates=None,
            package=("pyautoattack", "autoattack"),
        ),
    )
}

STRONG = ("pgd-margin", "apgd-t")
"""What ``--attack strong`` is made of."""
