import torch

from benchmarks.strength import Found, counted, counts, markdown
from cartl_cli.core.data.split import DataSet
from cartl_cli.core.models.blocks import BlockModel
from tests.test_evaluation import measure, plan


def test_passes_of_the_model_and_of_its_copies_are_counted(
    model: BlockModel, data: DataSet
) -> None:
    with counted(model) as passes:
        verdicts = measure(model, data.evaluation, plan("pgd-margin", eps=(0.0,), steps=4))
    n, right = len(verdicts.clean), int(verdicts.clean.sum())
    assert right > 0
    assert sum(passes) == n + 4 * right + right  # clean, a gradient each step, the last iterate
    verdicts = measure(model, data.evaluation, plan("pgd-margin", eps=(0.0,), steps=4))
    assert sum(passes) == n + 5 * right  # no longer


def test_gaps_are_those_to_autoattack() -> None:
    def found(stands: list[bool], passes: int) -> Found:
        return Found(torch.tensor([True, True, True, False]), torch.tensor(stands), passes, 1.0)

    row = counts(
        {
            "autoattack": found([True, False, False, False], 1000),
            "one round": found([True, True, True, False], 100),
            "strong": found([False, True, False, False], 50),
        }
    )
    assert (row["n"], row["clean"]) == (4, 3)
    assert (row["one round"]["missed"], row["one round"]["alone"]) == (2, 0)
    assert (row["strong"]["missed"], row["strong"]["alone"]) == (1, 1)
    shown = markdown([{"run": "x"} | row])
    assert "| x | 4 | 75.0 % | 25.0 % | +50.00 | +0.00 | 1/20.0 |" in shown
    assert "one round: +50.000 points above AutoAttack on average, +50.00 at most" in shown
