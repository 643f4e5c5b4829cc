"""The worst case in feature space: CARTL's idea taken to its end.

CARTL makes the source's features h = f^(L−k)(x) nearly the same for x and its adversarial x̃
(Eq. 10), and limits how much the last k blocks can amplify the rest (Eq. 11). Here these blocks are
trained on the rest itself: on the worst features within a small ball around h. No adversarial image
is made, and every gradient goes through the last k blocks alone. A relative is latent adversarial
training (Sinha et al. 2019, arXiv 1905.05186).
"""

from torch import Tensor

from cartl_cli.core.method.losses import cross_entropy
from cartl_cli.core.method.norm_ball import normal, sizes, uphill
from cartl_cli.core.method.pgd import Budget, ascent
from cartl_cli.core.method.training_attacks import TrainingAttack
from cartl_cli.core.models.blocks import BlockModel, eval_mode


def worst_features(model: BlockModel, k: int, steps: int) -> TrainingAttack:
    """The worst features in the ball of radius r·‖h‖₂ around h, as the steps find them.

    Called with features h (B, …) in the place of images; r is the eps of the budget. δ₀ is random
    with ‖δ₀‖ = r·‖h‖/2; each step goes to where the loss is largest if it is linear,
    δ ← r·‖h‖·g/‖g‖ with the gradient g at h + δ. Of an affine sub-model and two classes this is the
    maximum. In evaluation mode.
    """
    cut = len(model.blocks) - k

    def attack(features: Tensor, labels: Tensor, noise: Tensor, budget: Budget) -> Tensor:
        reach = budget.eps * sizes(features, "l2")  # r·‖h‖, (B, 1, …)
        worst = features + reach / 2 * uphill(normal(noise), "l2")
        with eval_mode(model):
            for _ in range(steps):
                _, gradient = ascent(
                    lambda moved: model.classify(moved, cut), worst, labels, cross_entropy
                )
                worst = features + reach * uphill(gradient, "l2")
        return worst

    return attack
