"""Two attacks on the same images: is one model more robust, or was it chance?"""

import math

import torch
from torch import Tensor

from cartl_cli.core.config import AttackConfig
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.evaluation.confusion import confusions
from cartl_cli.core.runs.baselines import baselines
from cartl_cli.core.runs.manifest import Manifest, Run
from cartl_cli.core.runs.reader import attacks_on
from cartl_cli.core.runs.recorded import read_recorded
from cartl_cli.core.runs.results import headline
from cartl_cli.core.runs.weights import from_bytes
from cartl_cli.core.statistics import Difference, paired_difference

SAME = ("attacks", "norm", "eps", "pgd_steps", "restarts", "queries")


def compare(ours: Run, theirs: Run) -> dict[float | None, Difference]:
    """By eps, and under None on clean images: our accuracy minus theirs, image by image.

    Raises UsageError if the attacks, the data or the images differ: then only the intervals of
    each can be compared.
    """
    first, second = read_outcomes(ours), read_outcomes(theirs)
    check_comparable(ours.manifest, first["indices"], theirs)
    found: dict[float | None, Difference] = {
        None: paired_difference(first["clean"], second["clean"])
    }
    for number, by_eps in enumerate(ours.attack_results.by_eps):
        found[by_eps.eps] = paired_difference(_worst(first, number), _worst(second, number))
    return found


def beside_baselines(attack: Run, attacked: Run) -> list[str]:
    """What the ``baselines`` of an attacked transfer kept under the same attack of the same images.

    It is a warning if the transfer is less robust than one of them by more than chance. An attack
    that is other, or damaged, is passed over.
    """
    found = []
    for what, baseline in baselines(attacked).items():
        for other in attacks_on(baseline):
            try:
                difference = [*compare(attack, other).values()][-1]
            except (RunError, UsageError):
                continue
            ours, theirs = (
                run.attack_results.by_eps[-1].robust_accuracy for run in (attack, other)
            )
            less, alike = difference.high < 0, difference.low <= 0 <= difference.high
            advice = "; try --method fast, or a smaller --k" if less else ""
            found.append(
                f"{'warning: ' * less}beside {baseline.name}, {what}, under the same attack: "
                f"{100 * ours:.1f} % robust here, {100 * theirs:.1f} % there: "
                f"{100 * difference.value:+.1f} points, {'within' if alike else 'more than'} "
                f"chance{advice}"
            )
            break
    return found


def beside_a_constant(attack: Run) -> list[str]:
    """From which eps on the answer that is always the largest class withstands more, if any.

    Nothing changes that answer. Nothing is said of an attack that is invalid, or did not keep its
    answers.
    """
    if headline(attack.attack_results.trust) == "invalid":
        return []
    for clean in confusions(attack)[:1]:
        largest = max(clean.labels, key=clean.images)
        constant = clean.images(largest) / clean.n
        for found in attack.attack_results.by_eps:
            if found.robust_accuracy < constant:
                return [
                    f"note: from eps {shown_pixels(found.eps)} on, a model that always answers "
                    f"{largest!r} withstands more: {100 * constant:.1f} %, where this one has "
                    f"{100 * found.robust_accuracy:.1f} %"
                ]
    return []


def check_comparable(ours: Manifest, indices: Tensor, theirs: Run) -> None:
    """Refuse attacks, data or images (``indices`` are ours) that differ from those of ``theirs``.

    Raises UsageError naming what does, RunError if ``theirs`` is not complete.
    """
    mine, other = ours.config, theirs.attack
    assert isinstance(mine, AttackConfig)
    for name in SAME:
        if getattr(mine, name) != getattr(other, name):
            raise UsageError(
                f"--compare: {theirs.name!r} has {name.replace('_', ' ')} "
                f"{_shown(getattr(other, name))}, here {_shown(getattr(mine, name))}; "
                "attack both alike"
            )
    for eps in mine.eps:
        if not math.isclose(mine.step(eps), other.step(eps)):
            raise UsageError(
                f"--compare: {theirs.name!r} has step size {_shown(other.step(eps))} at eps "
                f"{_shown(eps)}, here {_shown(mine.step(eps))}; attack both alike"
            )
    here, there = ours.data, theirs.manifest.data
    if here.measured != there.measured:
        raise UsageError(
            f"--compare: {theirs.name!r} was measured on {there.measured} images, here on "
            f"{here.measured} images"
        )
    if here.fingerprint != there.fingerprint:
        raise UsageError(f"--compare: {theirs.name!r} was measured on other data")
    if not indices.equal(read_outcomes(theirs)["indices"]):
        raise UsageError(f"--compare: {theirs.name!r} was measured on other images")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_shown, value))
    return shown_pixels(value) if isinstance(value, float) else str(value)


def read_outcomes(run: Run) -> dict[str, Tensor]:
    """The per-image outcomes of a finished attack, by name. Raises RunError.

    Older ones have no ``labels`` and no ``answers``.
    """
    record, config = run.manifest.outcomes, run.manifest.config
    if record is None or not isinstance(config, AttackConfig):
        raise RunError(f"attack {run.name!r} is not complete ({run.manifest.status})")
    n, eps, attacks = run.attack_results.n, len(config.eps), len(config.attacks)
    with torch.device("meta"):
        expected = {
            "clean": torch.empty(n, dtype=torch.bool),
            "margin": torch.empty(n),
            "fell_at": torch.empty(eps, attacks, n, dtype=torch.int32),
            "last": torch.empty(eps, n, dtype=torch.bool),
            "indices": torch.empty(n, dtype=torch.int64),
        }
        later = {
            "labels": torch.empty(n, dtype=torch.int32),
            "answers": torch.empty(1 + eps, n, dtype=torch.int32),
        }
    data, path = read_recorded(run.folder, record), run.folder / record.name
    return from_bytes(data, expected, path, later)


def _worst(outcomes: dict[str, Tensor], eps: int) -> Tensor:
    return outcomes["clean"] & ~(outcomes["fell_at"][: eps + 1] >= 0).flatten(0, 1).any(0)
