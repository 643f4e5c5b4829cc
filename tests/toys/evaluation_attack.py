"""``cartl attack --attack guess``: one random point of the ball."""

import torch

from cartl_cli.core.attacks.contract import STANDS, AttackSetting, Batch, Outcome, by_batches
from cartl_cli.core.attacks.judged_pgd import correct, predict, start
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS, EvaluationAttack


@by_batches
def guess(model: BlockModel, batch: Batch, budget: Budget, setting: AttackSetting) -> Outcome:
    points = start(batch, budget, setting, "guess")
    wrong = ~correct(predict(model, points), batch.labels)
    return Outcome(points, torch.where(wrong, 0, STANDS), wrong)


EVALUATION_ATTACKS["guess"] = EvaluationAttack(
    "guess",
    f"{__name__}:guess",
    "cross_entropy",
    *("#654321", "p", "--"),
    takes="nothing",
    iterates=lambda steps, queries: 1,
)
