"""Architecture names and their block counts; importing it loads no torch.

Blocks are the unit of transfer: a model of L blocks is cut into a feature extractor (the first
L−k) and a sub-model (the last k). A stem belongs to no block.
"""

import re
from dataclasses import dataclass

from cartl_cli.core.errors import UsageError

KNOWN = "wrn-D-W with D = 6n+4 (wrn-16-1, wrn-28-4, wrn-34-10, …) and resnet-18"


@dataclass(frozen=True)
class Architecture:
    """A parsed name: ``n`` residual blocks per stage, channel multiplier ``width``."""

    family: str
    n: int
    width: int

    @property
    def block_count(self) -> int:
        """L: 3n + 2 for a wide ResNet; 9 for ResNet-18."""
        return 3 * self.n + 2 if self.family == "wrn" else 4 * self.n + 1


def parse_architecture(name: str) -> Architecture:
    """``"wrn-34-10"`` → its family, depth and width. Raises UsageError on any other name."""
    if name == "resnet-18":
        return Architecture("resnet", 2, 1)
    match = re.fullmatch(r"wrn-([1-9]\d{0,2})-([1-9]\d?)", name)
    if match and int(match[1]) >= 10 and (int(match[1]) - 4) % 6 == 0:
        return Architecture("wrn", (int(match[1]) - 4) // 6, int(match[2]))
    raise UsageError(f"--arch: {name!r} is unknown; known: {KNOWN}")
