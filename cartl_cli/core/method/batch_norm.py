"""The batch-norm cases of transfer (CARTL Section 6, Table 1)."""

from torch.nn.modules.batchnorm import _BatchNorm

from cartl_cli.core.choices import FreezeBatchNorm
from cartl_cli.core.models.blocks import BlockModel, extractor, sub_model


def freeze(model: BlockModel, k: int, freeze_bn: FreezeBatchNorm) -> None:
    """Freeze the extractor and the batch-norm parts named by ``freeze_bn``; set training mode.

    | value  | extractor statistics | sub-model affine |
    |--------|----------------------|------------------|
    | none   | updated              | trained          |
    | affine | updated              | frozen           |
    | stats  | frozen               | trained          |
    | all    | frozen               | frozen           |

    The extractor's weights and affine parameters are always frozen; the sub-model's statistics
    are always updated. Statistics are frozen by evaluation mode, which ``eval_mode`` restores.
    """
    model.train()
    extractor(model, k).requires_grad_(False)
    extractor(model, k).train(freeze_bn in ("none", "affine"))
    for module in sub_model(model, k).modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(freeze_bn in ("none", "stats"))


def settled(model: BlockModel, k: int) -> bool:
    """Whether an image's features at block L−k are the same in every step.

    ``freeze`` leaves no parameter of the extractor to train; its batch-norm statistics may move,
    and then each batch is normalized by its own.
    """
    norms = [module for module in extractor(model, k).modules() if isinstance(module, _BatchNorm)]
    return not any(norm.training for norm in norms)
