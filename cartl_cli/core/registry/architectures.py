"""The networks by name. A model of L blocks is cut into a feature extractor (the first L−k blocks)
and a sub-model (the last k); a stem belongs to no block.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from cartl_cli.core.errors import UsageError

Renames = tuple[tuple[str, str], ...]
"""Rules (regular expression, replacement) that turn published names of tensors into ours.

At most one rule matches a name. A name that becomes empty is of a tensor that no pass uses.
"""


@dataclass(frozen=True)
class Architecture:
    """A network with L = ``block_count`` blocks; None if it must be built to know: see ``count``.

    ``code`` names the function that builds it: (``*arguments``, number of classes) → BlockModel.
    ``published``: its ``renames``, or the name of the function that finds them: ``*arguments`` →
    Renames. ``image_size``: the side of the images that it is made for.
    """

    block_count: int | None
    code: str
    arguments: tuple[int | float | str, ...] = ()
    published: Renames | str = ()
    image_size: int = 32

    @property
    def renames(self) -> Renames:
        """The names of its tensors in published checkpoints. May build it: see ``build_model``."""
        if isinstance(self.published, str):
            found: Renames = resolve_name(self.published)(*self.arguments)
            return found
        return self.published

    def count(self) -> int:
        """L. Where its name does not tell, the network is built, without memory for weights.

        Raises UsageError if it cannot be built.
        """
        if self.block_count is not None:
            return self.block_count
        return len(self.empty().blocks)

    def empty(self) -> Any:
        """Its ``BlockModel`` for two classes, with no memory for weights. Raises UsageError."""
        import torch

        with torch.device("meta"):
            return resolve_name(self.code)(*self.arguments, 2)


@dataclass(frozen=True)
class Family:
    """Architectures whose names have one form, which ``form`` says in words.

    ``parse`` gives the architecture of a name, None for a name of another form. It looks at nothing
    but the name: manifests are full of names.
    """

    form: str
    parse: Callable[[str], Architecture | None]


WHOLE = "whole:"
"""Before the name of a user's own network that is taken as it is, uncut, and can't be tuned."""

_MODELS = "cartl_cli.core.models"
_STATISTICS = ((r"^mu$", "normalize.mean"), (r"^sigma$", "normalize.std"))


def _wide_resnet(name: str) -> Architecture | None:
    """WRN-D-W with D = 6n+4: n residual blocks in each of three stages, L = 3n + 2."""
    match = re.fullmatch(r"wrn-([1-9]\d{0,2})-([1-9]\d?)(-relu)?", name)
    if match is None or int(match[1]) < 10 or (int(match[1]) - 4) % 6:
        return None
    n, width, slope = (int(match[1]) - 4) // 6, int(match[2]), 0.0 if match[3] else 0.1
    last = 3 * n + 1
    renames = (
        (r"^conv1\.", "stem."),
        *_stages("block{}.layer.{}", (n, n, n), _PRE_ACTIVATION),
        (r"^bn1\.", f"blocks.{last - 1}.0."),
        (r"^fc\.", f"blocks.{last}.linear."),
        (r"^sub_block1\..*", ""),  # RobustBench keeps it for old files
        *_STATISTICS,
    )
    return Architecture(last + 1, f"{_MODELS}.wide_resnet:wide_resnet", (n, width, slope), renames)


def _preact_resnet18(name: str) -> Architecture | None:
    """With RobustBench's PreActBlockV2 and a last norm, or (raw) with PreActBlock and without."""
    match = re.fullmatch("preact-resnet-18(-raw)?", name)
    if match is None:
        return None
    renames = (
        (r"^conv1\.", "stem."),
        *_stages("layer{}.{}", (2, 2, 2, 2), _PRE_ACTIVATION),
        (r"^bn\.", "blocks.8.norm."),
        (r"^linear\.", "blocks.8.linear."),
        *_STATISTICS,
    )
    code = f"{_MODELS}.preact_resnet:preact_resnet18"
    return Architecture(9, code, (0 if match[1] else 1,), renames)


def _resnet18(name: str) -> Architecture | None:
    if name != "resnet-18":
        return None
    return Architecture(9, f"{_MODELS}.resnet:resnet18", (), _resnet_renames((2, 2, 2, 2)))


_OF_TORCHVISION = {
    "resnet18": ("basic", 64, (2, 2, 2, 2)),
    "resnet34": ("basic", 64, (3, 4, 6, 3)),
    "resnet50": ("bottleneck", 64, (3, 4, 6, 3)),
    "wide_resnet50_2": ("bottleneck", 128, (3, 4, 6, 3)),
}
"""Kind of block, width of the first stage's 3×3 convolutions, blocks of each stage."""


def _torchvision(name: str) -> Architecture | None:
    origin, _, which = name.partition(":")
    if origin != "torchvision" or which not in _OF_TORCHVISION:
        return None
    kind, width, counts = _OF_TORCHVISION[which]
    return Architecture(
        sum(counts) + 1,
        f"{_MODELS}.resnet:imagenet_resnet",
        (kind, width, *counts),
        _resnet_renames(counts),
        image_size=224,
    )


def _timm(name: str) -> Architecture | None:
    match = re.fullmatch(r"timm:([a-z0-9_]+)", name)
    if match is None:
        return None
    place = f"{_MODELS}.timm_networks"
    return Architecture(None, f"{place}:build", (match[1],), f"{place}:renames", image_size=224)


def own_network(name: str) -> tuple[str, str] | None:
    """The file and the function that a name such as ``my_model.py:factory`` means."""
    match = re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", name.removeprefix(WHOLE))
    return (match[1], match[2]) if match else None


def _own(name: str) -> Architecture | None:
    found, place = own_network(name), f"{_MODELS}.own_network"
    if found and name.startswith(WHOLE):
        return Architecture(1, f"{place}:build_whole", found)
    return found and Architecture(None, f"{place}:build", found, f"{place}:renames")


_RESIDUAL = ((r"conv(\d)\.", r"conv\1."), (r"bn(\d)\.", r"norm\1."), (r"downsample\.", "shortcut."))
_PRE_ACTIVATION = (
    (r"conv(\d)\.", r"conv\1."),
    (r"bn(\d)\.", r"norm_act\1.norm."),
    (r"(?:shortcut\.0|convShortcut)\.", "shortcut."),
)


def _resnet_renames(counts: Sequence[int]) -> Renames:
    """Names of torchvision, and of the ResNets with a stem for 32 pixels that go around."""
    return (
        (r"^conv1\.", "stem.0."),
        (r"^bn1\.", "stem.1."),
        *_stages("layer{}.{}", counts, (*_RESIDUAL, (r"shortcut\.", "shortcut."))),
        (r"^(?:fc|linear)\.", f"blocks.{sum(counts)}.linear."),
        *_STATISTICS,
    )


def _stages(form: str, counts: Sequence[int], within: Renames) -> Renames:
    """The rules ``within`` a block, for each block of each stage; ``form`` has both numbers."""
    names = [form.format(s, i) for s, count in enumerate(counts, 1) for i in range(count)]
    return tuple(
        (rf"^{re.escape(name)}\.{old}", f"blocks.{number}.{new}")
        for number, name in enumerate(names)
        for old, new in within
    )


FAMILIES: dict[str, Family] = {
    "wrn": Family(
        "wrn-D-W with D = 6n+4 (wrn-16-1, wrn-28-4, wrn-34-10, …), wrn-D-W-relu", _wide_resnet
    ),
    "resnet": Family("resnet-18", _resnet18),
    "preact": Family("preact-resnet-18 (or -raw)", _preact_resnet18),
    "torchvision": Family(f"torchvision:NAME ({', '.join(_OF_TORCHVISION)})", _torchvision),
    "timm": Family("timm:NAME (ConvNeXt, ViT and DeiT, Swin, XCiT)", _timm),
    "own": Family("your own, FILE.py:FUNCTION", _own),
}


def parse_architecture(name: str) -> Architecture:
    """The architecture of a name, such as ``wrn-34-10``. Raises UsageError if there is none."""
    for family in FAMILIES.values():
        if (found := family.parse(name)) is not None:
            return found
    known = ", ".join(family.form for family in FAMILIES.values())
    raise UsageError(f"--arch: {name!r} is unknown; known: {known}")


def build_model(arch: str, num_classes: int) -> Any:
    """A ``BlockModel`` with freshly drawn weights (global random state; see ``seeded``).

    Raises UsageError for an unknown ``arch``, and for one that cannot be built.
    """
    architecture = parse_architecture(arch)
    return resolve_name(architecture.code)(*architecture.arguments, num_classes)


def check_k(k: int, arch: str, blocks: int) -> None:
    """Refuse a k above the number of blocks. Raises UsageError."""
    if k > blocks:
        raise UsageError(f"--k: {k}, but {arch} has {blocks} blocks; use 1..{blocks}")


def renamed(renames: Renames, name: str) -> str:
    """The name that a tensor has here, from its published one; ours stay as they are."""
    for pattern, replacement in renames:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name
