"""What ``cartl sweep tune`` tries: the settings of a transfer, the most sensible first."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cartl_cli.core.config import TransferConfig
from cartl_cli.core.config.tune_settings import ADDED
from cartl_cli.core.registry.transfer_methods import TRANSFER_METHODS, Look, symbols

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """The settings that one transfer is made with, beside those that all share.

    They name at least ``method``, ``k``, ``lr`` and ``epochs``.
    """

    settings: Settings

    @property
    def k(self) -> int:
        """Blocks that are tuned."""
        found: int = self.settings["k"]
        return found

    @property
    def look(self) -> Look:
        """How it is called and drawn, as from a source model without FDM."""
        return TransferConfig(**self.settings).look(None)


def blocks_grid(blocks: int) -> tuple[int, ...]:
    """A few values of k for a model of so many blocks: about its quarters, up to all of it.

    The middle ones come first, since the ends are seldom best.
    """
    quarters = {max(1, round(blocks * part / 4)) for part in (1, 2, 3, 4)}
    return tuple(sorted(quarters, key=lambda k: (abs(k - blocks / 2), -k)))


def candidates(
    ks: Sequence[int], recipes: Sequence[str], radii: Mapping[int, float]
) -> list[Candidate]:
    """Every combination, the most sensible first: a method as it comes, then what departs from it.

    The first two recipes go side by side through the values of k, the others one after another. A
    recipe is a method, or ``neft`` or ``keep``: vanilla transfer with that. ``radii``: that of
    ``latent`` at each k, where it was measured; without it there is no candidate of ``latent``.
    """
    found = [
        (departures + (faster != 1) + (shorter != 1), Candidate(settings))
        for recipe, k in _in_order(ks, recipes)
        for departures, own in _variants(recipe, radii.get(k))
        for faster, shorter in itertools.product((1, 2.5), (1, 3))
        for settings in [_settings(own, k, faster, shorter)]
    ]
    return [candidate for _, candidate in sorted(found, key=lambda pair: pair[0])]


def _in_order(ks: Sequence[int], recipes: Sequence[str]) -> Iterator[tuple[str, int]]:
    yield from ((recipe, k) for k in ks for recipe in recipes[:2])
    yield from itertools.product(recipes[2:], ks)


def _variants(recipe: str, radius: float | None) -> list[tuple[int, Settings]]:
    """The settings of a recipe's own, each with how far it departs from the first."""
    if recipe == "latent":
        own = {"method": "latent"}
        halves = (
            [(1, own | {"radius": _rounded(part * radius)}) for part in (0.5, 2)] if radius else []
        )
        return [(0, own | {"radius": _rounded(radius)}), *halves] if radius else []
    if recipe in ADDED:
        weights = {"neft": {"neft_beta": 1.0}, "keep": {"keep_lambda": 1.0}}
        return [(0, {"method": "natural", **weights[recipe]})]
    return [(0, {"method": recipe})]


def _settings(own: Settings, k: int, faster: float, shorter: int) -> Settings:
    method = TRANSFER_METHODS[own["method"]]
    return {
        **own,
        "k": k,
        "lr": _rounded(faster * method.lr),
        "epochs": max(1, round(method.epochs / shorter)),
    }


def _rounded(number: float) -> float:
    """Three digits: what a person types."""
    return float(f"{number:.3g}")


def described(candidate: Candidate, trained: int | None = None) -> str:
    """``latent, k 4, radius 0.012, lr 0.05, 20 epochs``, or ``7 of 20 epochs`` if fewer are run."""
    symbol = symbols()
    words = [candidate.look.label, f"k {candidate.k}"]
    for name, value in candidate.settings.items():
        if name not in ("method", "k", "epochs"):
            words.append(f"{symbol.get(name, name)} {value:g}")
    epochs = candidate.settings["epochs"]
    part = f"{trained} of " if trained not in (None, epochs) else ""
    return ", ".join([*words, f"{part}{epochs} epochs"])
