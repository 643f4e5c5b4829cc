"""The block table of an architecture."""

from dataclasses import dataclass

import torch

from cartl_cli.core.errors import UsageError
from cartl_cli.core.registry.architectures import build_model


@dataclass(frozen=True)
class BlockRow:
    """One block: its number from the start, the k that makes it the first tuned one, its layers."""

    number: int
    k: int
    layers: str
    output: tuple[int, ...]
    parameters: int


def block_table(arch: str, image_size: int, num_classes: int = 10) -> list[BlockRow]:
    """Blocks 0 (the stem) to L, with output shapes such as (C, H, W) or (C,). Computes nothing.

    Raises UsageError for an architecture that cannot be built, or takes no images of this size.
    """
    rows = []
    with torch.device("meta"):
        model = build_model(arch, num_classes).eval()
        features = model.normalize(torch.empty(1, 3, image_size, image_size))
        for number, module in enumerate((model.stem, *model.blocks)):
            try:
                features = module(features)
            except Exception as error:  # another's network may raise anything
                reason = " ".join(str(error).split()) or type(error).__name__
                where = f"block {number}" if number else "the stem"
                raise UsageError(
                    f"--image-size: {where} of {arch} does not take images of {image_size} pixels: "
                    f"{reason}"
                ) from error
            rows.append(
                BlockRow(
                    number=number,
                    k=len(model.blocks) - number + 1,
                    layers=_layers(module),
                    output=tuple(features.shape[1:]),
                    parameters=sum(p.numel() for p in module.parameters()),
                )
            )
    return rows


KINDS = {
    "Conv2d": "conv",
    "BatchNorm2d": "norm",
    "LayerNorm": "norm",
    "LayerNorm2d": "norm",
    "LeakyReLU": "act",
    "ReLU": "act",
    "GELU": "act",
    "MaxPool2d": "pool",
    "AdaptiveAvgPool2d": "pool",
    "Linear": "linear",
    "ResidualSum": "add",
}


def _layers(module: torch.nn.Module) -> str:
    leaves = [child for child in module.modules() if not list(child.children())]
    names = [type(leaf).__name__ for leaf in leaves]
    return " ".join(KINDS[name] for name in names if name in KINDS)
