"""Sizes, formulas and settings are those of the paper and its official code."""

from benchmarks.fidelity import lines


def test_nothing_that_can_be_computed_differs() -> None:
    found = list(lines())
    assert len(found) > 20
    assert [line for line in found if line.official != line.ours] == []
