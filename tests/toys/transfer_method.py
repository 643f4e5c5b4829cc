"""``cartl transfer --method smooth``: fine-tuning with smoothed labels."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core.method.losses import right
from cartl_cli.core.method.objective import StepLoss
from cartl_cli.core.method.transfer_methods import Tuned, Tuning
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.transfer_methods import TRANSFER_METHODS, Look, TransferMethod
from cartl_cli.core.runtime.ranks import EVERYTHING, Part


@dataclass(frozen=True)
class SmoothedTraining:
    model: BlockModel

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, part: Part = EVERYTHING
    ) -> StepLoss:
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        return StepLoss(loss, {"clean": right(logits, labels)})


def smooth(tuning: Tuning) -> Tuned:
    return Tuned(SmoothedTraining(tuning.model))


TRANSFER_METHODS["smooth"] = TransferMethod(
    "smooth",
    Look("smooth", "#123456", "*"),
    f"{__name__}:smooth",
    about="with smoothed labels",
    freeze_bn="stats",
)
