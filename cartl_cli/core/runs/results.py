"""What a run measured: the results in its manifest."""

from collections.abc import Collection, Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from cartl_cli.core.config import SETTINGS

Count = Annotated[int, Field(ge=0, lt=10**12)]
LayerName = Annotated[str, Field(pattern=r"^blocks\.\d{1,3}(\.[^.\x00-\x1f]+)*$")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Fraction, Fraction]
Distance = Annotated[float, Field(ge=0, strict=True)]
Distances = Annotated[tuple[Distance | None, ...], Field(max_length=1000)]
Verdict = Literal["pass", "warn", "fail"]
Headline = Literal["ok", "upper bound, attack incomplete", "invalid"]


class Check(BaseModel):
    """One check: ``value`` is what was measured, where that is a number; ``text`` a sentence."""

    model_config = SETTINGS

    id: str
    verdict: Verdict
    value: float | None
    text: str


def headline(checks: Iterable[Check]) -> Headline:
    """The worst that the checks say: a failed invariant (V…) voids the number."""
    failed = [check.id for check in checks if check.verdict == "fail"]
    if any(name.startswith("V") for name in failed):
        return "invalid"
    return "upper bound, attack incomplete" if failed else "ok"


MEANINGS = {
    "ok": "All checks of this attack passed. Robust accuracies are upper bounds: a stronger attack "
    "may leave less.",
    "off": "This attack was not checked (--checks off). Nobody knows whether it worked.",
    "upper bound, attack incomplete": "This attack failed a check: a stronger attack was found, or "
    "must be expected. The true robustness is lower than the figures, perhaps by much.",
    "invalid": "This attack is INVALID: it failed a check that voids its figures. Do not cite "
    "them. Attack the model again.",
}
"""What ``checked`` says of an attack, in sentences for a reader."""


def checked(checks: Collection[Check]) -> str:
    """The headline of an attack's checks, or ``off`` where it has none."""
    return headline(checks) if checks else "off"


class Moved(BaseModel):
    """How far adversarial images move what leaves one block, f_b; Δ_b = f_b(x̃) − f_b(x).

    ``distance``: mean of ‖Δ_b‖₂ / ‖f_b(x)‖₂. ``growth``: median of ‖Δ_b‖₂ / ‖Δ_{b−1}‖₂, which the
    stem (b = 0) does not have. Both are taken over the images of which they are finite, and None
    if there are none.
    """

    model_config = SETTINGS

    distance: float | None
    growth: float | None


class BlockMoved(BaseModel):
    """One block of the attacked model and, on the same images, of the source model behind it.

    ``block`` 0 is the stem, L gives the logits. ``tuned``: one of the last k, which transfer tunes.
    """

    model_config = SETTINGS

    block: int
    tuned: bool
    target: Moved
    source: Moved | None = None


class Diagnosis(BaseModel):
    """Blocks 0 to L, on ``n`` images that are right when clean."""

    model_config = SETTINGS

    n: Annotated[int, Field(ge=0)]
    blocks: Annotated[tuple[BlockMoved, ...], Field(min_length=2)]


class Accuracies(BaseModel):
    """Fractions of the n images that are right, clean and under PGD."""

    model_config = SETTINGS

    clean_accuracy: Fraction
    robust_accuracy: Fraction


class TrainingResults(BaseModel):
    """What a finished training measured. Accuracies are fractions; robust under PGD, n images.

    They are those of the run's model: of the average of the weights, if there is one, and then
    ``last_weights`` has those of the weights after the last step. ``collapsed_after`` is the epoch
    after which N-FGSM was found to overfit catastrophically, and PGD took its place. ``moved``, of
    a source model: how far adversarial images move what leaves each block 0..L, relative to it.
    ``train_accuracy``, of a target model: clean, on the images that it was trained on.
    """

    model_config = SETTINGS

    clean_accuracy: Fraction
    robust_accuracy: Fraction | None = None
    pgd_steps: int | None = None
    n: Annotated[Count, Field(ge=1)]
    seconds: float
    spectral_norms: dict[LayerName, float] = {}
    last_weights: Accuracies | None = None
    collapsed_after: Count | None = None
    moved: Distances = ()
    train_accuracy: Fraction | None = None


class ImportResults(BaseModel):
    """What was seen of a model from elsewhere: fractions of n images, None if it was not measured.

    ``moved`` is as in ``TrainingResults``.
    """

    model_config = SETTINGS

    of: Literal["import"] = "import"  # tells them from those of a training
    clean_accuracy: Fraction | None = None
    robust_accuracy: Fraction | None = None
    pgd_steps: int | None = None
    n: Count = 0
    seconds: float
    moved: Distances = ()


class Added(BaseModel):
    """One attack of several: how many images it was run on, how many of them fell.

    ``alone`` is the accuracy it leaves by itself, where it was run on every image that is right
    when clean; ``robust_accuracy`` the accuracy left by it and all before it.
    """

    model_config = SETTINGS

    attack: str
    attacked: Count
    fell: Count
    alone: Fraction | None
    robust_accuracy: Fraction


class EpsResults(BaseModel):
    """What is left at one eps. Accuracies are fractions of n; the interval is 95 %.

    ``robust_accuracy`` is the per-image worst over attacks, restarts, iterates and every smaller
    eps: an upper bound under these attacks. ``final_iterate_accuracy`` counts only the last iterate
    of the first restart of PGD, as the paper does.
    """

    model_config = SETTINGS

    eps: float
    step_size: float
    robust_accuracy: Fraction
    interval: Interval
    final_iterate_accuracy: Fraction | None
    added: tuple[Added, ...]

    def alone(self, attack: str) -> float | None:
        """The accuracy that one attack leaves by itself, if that was measured."""
        return next((added.alone for added in self.added if added.attack == attack), None)


class SavedImages(BaseModel):
    """The saved adversarial images, read from the disk and predicted again by the model read anew.

    ``accuracy`` is that on the float32 file, ``accuracy_8bit`` that on the pictures. Of the float32
    file, ``missed`` counts robust images that are wrong, ``recovered`` fallen ones that are right.
    """

    model_config = SETTINGS

    accuracy: Fraction
    accuracy_8bit: Fraction
    missed: Count
    recovered: Count


class AttackResults(BaseModel):
    """What an attack found, for each eps in rising order.

    ``half_eps`` is where half of the images that are right when clean have fallen, between the
    values of eps that were tried; None if none of them is as large. ``trust`` holds the checks that
    the attack worked, made at the largest eps; ``diagnosis``, if it was asked for, what the attack
    did to the features.
    """

    model_config = SETTINGS

    n: Annotated[Count, Field(ge=1)]
    clean_accuracy: Fraction
    clean_interval: Interval
    by_eps: Annotated[tuple[EpsResults, ...], Field(min_length=1)]
    half_eps: float | None
    trust: tuple[Check, ...] = ()
    saved: SavedImages | None = None
    diagnosis: Diagnosis | None = None
    seconds: float
