"""The batch-norm cases of transfer (CARTL Section 6, Table 1)."""

from torch.nn.modules.batchnorm import _BatchNorm

from cartl_cli.core.choices import FreezeBatchNorm
from cartl_cli.core.models.blocks import BlockModel, extractor, sub_model

KEPT: dict[FreezeBatchNorm, tuple[bool, bool, bool]] = {
    # extractor's statistics, sub-model's affine parameters, sub-model's statistics
    "none": (False, False, False),
    "affine": (False, True, False),
    "stats": (True, False, False),
    "all": (True, True, False),
    "everything": (True, True, True),
}


def has_batch_norm(model: BlockModel) -> bool:
    """Whether there is anything to freeze."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def freeze(model: BlockModel, k: int, freeze_bn: FreezeBatchNorm) -> None:
    """Freeze the extractor and the batch-norm parts ``KEPT`` by ``freeze_bn``; set training mode.

    The extractor's weights and affine parameters are always frozen. Statistics are frozen by
    evaluation mode, which ``eval_mode`` restores. Of the extractor nothing else is in training
    mode: dropout would be noise on features that nothing learns.
    """
    outside, affine, inside = KEPT[freeze_bn]
    model.train()
    extractor(model, k).eval().requires_grad_(False)
    for module in extractor(model, k).modules():
        if isinstance(module, _BatchNorm):
            module.train(not outside)
    for module in sub_model(model, k).modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(not affine)
            module.train(not inside)


def settled(model: BlockModel, k: int) -> bool:
    """Whether an image's features at block L−k are the same in every step.

    ``freeze`` leaves no parameter of the extractor to train; its batch-norm statistics may move,
    and then each batch is normalized by its own.
    """
    norms = [module for module in extractor(model, k).modules() if isinstance(module, _BatchNorm)]
    return not any(norm.training for norm in norms)
