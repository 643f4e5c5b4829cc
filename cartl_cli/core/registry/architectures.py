"""The networks by name. A model of L blocks is cut into a feature extractor (the first L−k blocks)
and a sub-model (the last k); a stem belongs to no block.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from cartl_cli.core.errors import UsageError


@dataclass(frozen=True)
class Architecture:
    """A network with L = ``block_count`` blocks.

    ``code`` names the function that builds it: (``*arguments``, number of classes) → BlockModel.
    """

    block_count: int
    code: str
    arguments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Family:
    """Architectures whose names have one form, which ``form`` says in words.

    ``parse`` gives the architecture of a name, None for a name of another form.
    """

    form: str
    parse: Callable[[str], Architecture | None]


def _wide_resnet(name: str) -> Architecture | None:
    """WRN-D-W with D = 6n+4: n residual blocks in each of three stages, L = 3n + 2."""
    match = re.fullmatch(r"wrn-([1-9]\d{0,2})-([1-9]\d?)", name)
    if match is None or int(match[1]) < 10 or (int(match[1]) - 4) % 6:
        return None
    n, width = (int(match[1]) - 4) // 6, int(match[2])
    return Architecture(3 * n + 2, "cartl_cli.core.models.wide_resnet:wide_resnet", (n, width))


def _resnet18(name: str) -> Architecture | None:
    if name != "resnet-18":
        return None
    return Architecture(9, "cartl_cli.core.models.resnet:resnet18")


FAMILIES: dict[str, Family] = {
    "wrn": Family("wrn-D-W with D = 6n+4 (wrn-16-1, wrn-28-4, wrn-34-10, …)", _wide_resnet),
    "resnet": Family("resnet-18", _resnet18),
}


def parse_architecture(name: str) -> Architecture:
    """The architecture of a name, such as ``wrn-34-10``. Raises UsageError if there is none."""
    for family in FAMILIES.values():
        if (found := family.parse(name)) is not None:
            return found
    known = " and ".join(family.form for family in FAMILIES.values())
    raise UsageError(f"--arch: {name!r} is unknown; known: {known}")


def build_model(arch: str, num_classes: int) -> Any:
    """A ``BlockModel`` with freshly drawn weights (global random state; see ``seeded``).

    Raises UsageError for an unknown ``arch``.
    """
    architecture = parse_architecture(arch)
    return resolve_name(architecture.code)(*architecture.arguments, num_classes)
