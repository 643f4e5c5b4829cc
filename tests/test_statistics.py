import pytest
import torch

from cartl_cli.core.evaluation import share, stratified
from cartl_cli.core.statistics import wilson_interval


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
