import pytest
import torch

from cartl_cli.core.data.split import stratified
from cartl_cli.core.evaluation.verdicts import share
from cartl_cli.core.statistics import (
    accuracy_interval,
    at_chance,
    chance,
    clopper_pearson,
    mcnemar,
    paired_difference,
    too_few,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (50, 100, 0.404, 0.596),
        (250, 500, 0.456, 0.544),
        (300, 1000, 0.272, 0.329),
        (0, 1000, 0.0, 0.0038),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_interval_gives_published_values(
    successes: int, n: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-4)


def test_wilson_interval_solves_its_defining_equation() -> None:
    """Both ends p satisfy |p̂ − p| = z·√(p(1−p)/n)."""
    for p in wilson_interval(37, 120):
        assert abs(37 / 120 - p) == pytest.approx(1.959964 * (p * (1 - p) / 120) ** 0.5, rel=1e-5)


def test_few_images_are_told_with_the_width_that_they_leave() -> None:
    """One of two, exactly (Clopper-Pearson): the ends x solve x² and (1 − x)² = 2.5 %."""
    width = 1 - 2 * (1 - 0.975**0.5)
    assert too_few(2, 1) == (
        f"warning: with n = 2 the 95 % interval is {100 * width:.0f} points wide"
    )
    assert "with n = 99 " in too_few(99, 50)
    assert too_few(100, 50) == ""


def test_a_limited_set_is_stratified_and_seeded() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 5)
    chosen = stratified(labels, 30, seed=0, purpose="limit")
    assert torch.equal(chosen, chosen.unique())
    assert labels[chosen].bincount().tolist() == [13, 12, 5]
    assert torch.equal(chosen, stratified(labels, 30, seed=0, purpose="limit"))
    assert not torch.equal(chosen, stratified(labels, 30, seed=1, purpose="limit"))
    # a larger limit only adds images
    assert set(chosen.tolist()) <= set(stratified(labels, 60, seed=0, purpose="limit").tolist())


def test_share_counts_exactly() -> None:
    assert share(torch.tensor([True, False, True, True])) == 0.75


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.3085),
        (1, 10, 0.0025, 0.4450),
        (10, 10, 0.6915, 1.0),
        (0, 1000, 0.0, 0.0037),
        (15, 148, 0.0578, 0.1617),  # Newcombe 1998, Stat. Med. 17:857
        (81, 263, 0.2527, 0.3676),  # the same
        (1, 29, 0.0009, 0.1776),  # the same
    ],
)
def test_clopper_pearson_gives_published_values(
    successes: int, n: int, low: float, high: float
) -> None:
    assert clopper_pearson(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_clopper_pearson_at_the_ends_has_a_closed_form() -> None:
    high = 1 - 0.025 ** (1 / 10_000)
    assert clopper_pearson(0, 10_000) == pytest.approx((0, high), rel=1e-9)
    assert clopper_pearson(10_000, 10_000) == pytest.approx((1 - high, 1), rel=1e-9)


def test_the_exact_interval_is_taken_where_wilsons_is_not_to_be_trusted() -> None:
    for successes, n in ((40, 99), (0, 1000), (1000, 1000)):
        assert accuracy_interval(successes, n) == clopper_pearson(successes, n)
    assert accuracy_interval(40, 100) == wilson_interval(40, 100)


@pytest.mark.parametrize(
    ("b", "c", "p"), [(30, 60, 0.002), (6, 0, 0.031), (5, 0, 0.0625), (7, 7, 1.0), (0, 0, 1.0)]
)
def test_mcnemar_gives_published_values(b: int, c: int, p: float) -> None:
    assert mcnemar(b, c) == pytest.approx(p, abs=5e-4)
    assert mcnemar(c, b) == mcnemar(b, c)


def verdicts(both: int, b: int, c: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    first = [1] * both + [1] * b + [0] * c + [0] * neither
    second = [1] * both + [0] * b + [1] * c + [0] * neither
    return torch.tensor(first, dtype=torch.bool), torch.tensor(second, dtype=torch.bool)


def test_paired_difference_gives_published_values() -> None:
    """Bentur et al. 2009, as in Fagerland, Lydersen & Laake 2014, Stat. Med. 33:2850."""
    found = paired_difference(*verdicts(1, 1, 7, 12))
    assert (found.b, found.c) == (1, 7)
    assert found.value == pytest.approx(-0.286, abs=5e-4)
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert found.p == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize("table", [(420, 30, 60, 490), (0, 0, 0, 40), (3, 0, 12, 20)])
def test_paired_difference_is_consistent(table: tuple[int, int, int, int]) -> None:
    found = paired_difference(*verdicts(*table))
    assert -1 <= found.low < found.value < found.high <= 1
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    turned = paired_difference(*reversed(verdicts(*table)))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_paired_difference_at_the_ends() -> None:
    assert paired_difference(*verdicts(0, 10, 0, 0)).high == 1
    assert paired_difference(*verdicts(0, 0, 10, 0)).low == -1
    # no image tells the models apart: p̃ = 0, and the limit solves n·d² = z²·(1 − d)·d
    z2 = 1.959964**2
    assert paired_difference(*verdicts(5, 0, 0, 5)).high == pytest.approx(z2 / (10 + z2), rel=1e-5)


@pytest.mark.parametrize(
    ("right", "largest", "said"),
    [
        (140, 100, ""),  # two classes alike, 70 %: more than 1.5 times a half is not needed
        (107, 100, "may be at chance: n = 200 is too few to tell"),  # 53.5 %: a coin may do it
        (194, 194, "is at chance"),  # always the class of 97 %
        (100, 194, "is at chance"),
        (30, 20, ""),  # ten classes
    ],
)
def test_chance_is_the_largest_class(right: int, largest: int, said: str) -> None:
    assert at_chance(right, 200, largest) == bool(said)
    assert chance(right, 200, largest) == said
