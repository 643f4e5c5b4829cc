"""The networks, as a stem and a list of blocks."""

from cartl_cli.core.architectures import parse_architecture
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.models.resnet import resnet18
from cartl_cli.core.models.wide_resnet import wide_resnet


def build_model(arch: str, num_classes: int) -> BlockModel:
    """A model with freshly drawn weights (global random state; see ``pretraining``).

    Raises UsageError for an unknown ``arch``.
    """
    architecture = parse_architecture(arch)
    if architecture.family == "wrn":
        return wide_resnet(architecture.n, architecture.width, num_classes)
    return resnet18(num_classes)
