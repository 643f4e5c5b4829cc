"""Which architecture a file of weights is of, by its names and shapes: a hint, not a proof."""

import re
from collections.abc import Mapping

from torch import Tensor


def recognise(found: Mapping[str, Tensor]) -> str | None:
    """The likely ``--arch`` of weights under their published names, in words; None if unknown."""
    for look in (_wide_resnet, _own_wide_resnet, _resnet, _foreign):
        if (arch := look(found)) is not None:
            return arch
    return None


def _wide_resnet(found: Mapping[str, Tensor]) -> str | None:
    """TRADES' and RobustBench's ``block1.layer.0.conv1``: n blocks in each of three stages."""
    first = found.get("block1.layer.0.conv1.weight")
    if first is None:
        return None
    n = _count(found, r"block1\.layer\.(\d+)\.conv1\.weight")
    return f"wrn-{6 * n + 4}-{first.shape[0] // 16}-relu"


def _own_wide_resnet(found: Mapping[str, Tensor]) -> str | None:
    """Ours: residual blocks, 3n of them, before one of batch norm and one of the classifier."""
    first = found.get("blocks.0.conv1.weight")
    if first is None or "blocks.0.norm_act1.norm.weight" not in found:
        return None
    n = _count(found, r"blocks\.(\d+)\.conv1\.weight") // 3
    return f"wrn-{6 * n + 4}-{first.shape[0] // 16}"


def _resnet(found: Mapping[str, Tensor]) -> str | None:
    """ResNets of torchvision (7×7 stem, ``fc``) and those for CIFAR (3×3 stem, ``linear``)."""
    stem, second = found.get("conv1.weight"), found.get("layer1.0.conv2.weight")
    if stem is None or second is None or second.shape[0] != second.shape[1]:  # groups: a ResNeXt
        return None
    depths = tuple(_count(found, rf"layer{stage}\.(\d+)\.conv1\.weight") for stage in range(1, 5))
    bottleneck, wide = "layer1.0.conv3.weight" in found, second.shape[0] == 128
    if stem.shape[-1] == 7 and "fc.weight" in found:
        names: dict[tuple[tuple[int, ...], bool], str] = {
            ((2, 2, 2, 2), False): "torchvision:resnet18",
            ((3, 4, 6, 3), False): "torchvision:resnet34",
            ((3, 4, 6, 3), True): f"torchvision:{'wide_resnet50_2' if wide else 'resnet50'}",
        }
        return names.get((depths, bottleneck))
    if depths == (2, 2, 2, 2) and not bottleneck and stem.shape[-1] == 3:
        if "layer2.0.shortcut.1.weight" in found:
            return "resnet-18"
        return "preact-resnet-18" if "bn.weight" in found else "preact-resnet-18-raw"
    if bottleneck and stem.shape[-1] == 3:
        return "a ResNet with bottlenecks for small images, for which there is no --arch by name"
    return None


def _foreign(found: Mapping[str, Tensor]) -> str | None:
    """Families that one name gives away."""
    signs = {
        "init_conv.weight": "DeepMind's wide ResNet (SiLU), for which there is no --arch by name",
        "stem.stem.0.weight": "a ConvNeXt with ConvStem, for which there is no --arch by name",
        "stages.0.blocks.0.conv_dw.weight": "a ConvNeXt of timm: timm:convnext_…",
        "cls_attn_blocks.0.norm1.weight": "an XCiT of timm: timm:xcit_…",
        "layers.0.blocks.0.attn.relative_position_bias_table": "a Swin of timm: timm:swin_…",
        "blocks.0.attn.qkv.weight": "a vision transformer of timm: timm:vit_… or timm:deit_…",
    }
    return next((arch for sign, arch in signs.items() if sign in found), None)


def _count(found: Mapping[str, Tensor], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in found)
