"""The block table of an architecture."""

from dataclasses import dataclass

import torch

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
    """Blocks 0 (the stem) to L, with output shapes (C, H, W) or (C,). Computes nothing."""
    with torch.device("meta"):
        model = build_model(arch, num_classes).eval()
        image = torch.empty(1, 3, image_size, image_size)
        rows = []
        for number in range(len(model.blocks) + 1):
            module = model.stem if number == 0 else model.blocks[number - 1]
            rows.append(
                BlockRow(
                    number=number,
                    k=len(model.blocks) - number + 1,
                    layers=_layers(module),
                    output=tuple(model.features(image, number).shape[1:]),
                    parameters=sum(p.numel() for p in module.parameters()),
                )
            )
    return rows


def _layers(module: torch.nn.Module) -> str:
    leaves = [child for child in module.modules() if not list(child.children())]
    kinds = {
        "Conv2d": "conv",
        "BatchNorm2d": "norm",
        "LeakyReLU": "act",
        "ReLU": "act",
        "AdaptiveAvgPool2d": "pool",
        "Linear": "linear",
        "ResidualSum": "add",
    }
    return " ".join(kinds[type(leaf).__name__] for leaf in leaves if type(leaf).__name__ in kinds)
