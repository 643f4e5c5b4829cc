"""``cartl pretrain --method shaky``: training on images with noise of the size of eps."""

from torch import Tensor

from cartl_cli.core.method.norm_ball import scatter
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.method.training_attacks import TrainingAttack as Attack
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS, TrainingAttack


def shaky(model: BlockModel) -> Attack:
    def attack(images: Tensor, labels: Tensor, noise: Tensor, budget: Budget) -> Tensor:
        return scatter(images, noise, budget.eps, "linf")

    return attack


TRAINING_ATTACKS["shaky"] = TrainingAttack(
    "shaky",
    "with noise",
    f"{__name__}:shaky",
    refuses={"pgd_steps": "noise takes no steps; drop it"},
)
