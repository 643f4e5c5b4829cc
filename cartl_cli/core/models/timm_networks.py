"""Networks of timm, cut into a stem, blocks and the classifier: a function for each class of timm.

What runs between two blocks is one tensor: (B, C, H, W), (B, H, W, C), or tokens (B, N, D).
"""

import importlib.util
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cartl_cli.core.errors import UsageError
from cartl_cli.core.models.adopted import last_block, moved_names, names_of
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import Renames


def build(name: str, num_classes: int) -> BlockModel:
    """The network that timm calls ``name``, with weights drawn by timm. Nothing is downloaded.

    Raises UsageError if timm is missing, has no such network, or one that is not cut here.
    """
    return _cut(name, _drawn(name, num_classes))


def renames(name: str) -> Renames:
    """The rules from the names of timm's tensors to ours. Raises UsageError like ``build``."""
    with torch.device("meta"):
        network = _drawn(name, 2)
        names = names_of(network)
        return moved_names(names, _cut(name, network))


def _drawn(name: str, num_classes: int) -> Any:
    if importlib.util.find_spec("timm") is None:
        raise UsageError(f"--arch: timm:{name} needs the package timm; pip install 'cartl[timm]'")
    import timm

    if not timm.is_model(name):
        raise UsageError(f"--arch: timm has no network {name!r}; timm.list_models() has the names")
    return timm.create_model(name, pretrained=False, num_classes=num_classes)


def _cut(name: str, network: Any) -> BlockModel:
    kind = type(network).__name__
    if kind not in CUTS:
        raise UsageError(
            f"--arch: timm:{name} is of timm's class {kind}, which is not cut into blocks here; "
            f"these are: {', '.join(CUTS)}"
        )
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise UsageError(f"--arch: timm:{name} does not end in one linear layer")
    return CUTS[kind](network, classifier)


def _convnext(network: Any, classifier: nn.Linear) -> BlockModel:
    head = network.head
    before = [network.norm_pre, head.global_pool]
    if hasattr(head, "norm"):  # else norm_pre is the norm
        before += [head.norm, head.flatten, head.pre_logits]
    last = last_block([*before, head.drop], classifier)
    return BlockModel(network.stem, [*_staged(network.stages), last])


def _swin(network: Any, classifier: nn.Linear) -> BlockModel:
    head = network.head
    last = last_block([network.norm, head.global_pool, head.drop], classifier)
    return BlockModel(network.patch_embed, [*_staged(network.layers), last])


def _staged(stages: Any) -> list[nn.Module]:
    """The blocks of all stages, the first of each with what comes before it."""
    blocks: list[nn.Module] = []
    for stage in stages:
        first, *others = stage.blocks
        reshaping = not isinstance(stage.downsample, nn.Identity)
        blocks += [nn.Sequential(stage.downsample, first) if reshaping else first, *others]
    return blocks


def _vision_transformer(network: Any, classifier: nn.Linear) -> BlockModel:
    blocks, before = list(network.blocks), [network.norm, _Pooled(network), network.fc_norm]
    last = last_block([*before, network.head_drop], classifier)
    network.blocks = nn.Sequential()
    network.norm = network.fc_norm = network.head_drop = network.head = nn.Identity()
    return BlockModel(_Embedding(network), [*blocks, last])


def _xcit(network: Any, classifier: nn.Linear) -> BlockModel:
    blocks = [_Squared(block) for block in network.blocks]
    token = _ClassToken(network.cls_token, network.cls_attn_blocks)
    pooled = _Pooled(network)
    last = last_block([token, network.norm, pooled, network.head_drop], classifier)
    del network.cls_token
    network.blocks, network.cls_attn_blocks = nn.ModuleList(), None
    network.norm = network.head_drop = network.head = nn.Identity()
    return BlockModel(_Embedding(network), [*blocks, last])


CUTS: dict[str, Callable[[Any, nn.Linear], BlockModel]] = {
    "ConvNeXt": _convnext,
    "VisionTransformer": _vision_transformer,
    "SwinTransformer": _swin,
    "Xcit": _xcit,
}
"""How networks of timm's classes are cut."""


class _Embedding(nn.Module):
    """What a transformer does before its blocks; ``network`` has none any more."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) → tokens (B, N, D)."""
        return cast(Tensor, self.network.forward_features(images))


class _Squared(nn.Module):
    """A block that must be told the height and width of its tokens: images are square."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → the same shape."""
        side = math.isqrt(tokens.shape[1])
        return cast(Tensor, self.block(tokens, side, side))


class _ClassToken(nn.Module):
    """The class token comes first, and attends to the others."""

    def __init__(self, token: nn.Parameter, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.token = token
        self.blocks = blocks

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, 1 + N, D)."""
        tokens = torch.cat((self.token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class _Pooled(nn.Module):
    """The first token, or the mean of the others."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        if network.global_pool not in ("token", "avg") or getattr(network, "attn_pool", None):
            raise UsageError("--arch: this network of timm pools by attention; it is not cut here")
        self.mean = network.global_pool == "avg"
        self.first = (
            0 if getattr(network, "pool_include_prefix", False) else network.num_prefix_tokens
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) → (B, D)."""
        return tokens[:, self.first :].mean(1) if self.mean else tokens[:, 0]
