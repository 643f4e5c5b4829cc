"""Every setting, its default, its bounds and its description: the only place that has them.

The command line is made from these models (field → flag, description → help text), a stored
configuration is a valid ``--config`` file, and a preset is a partial one.
"""

from typing import Literal

from cartl_cli.core.config.attacking import POSITIONAL, AttackConfig, AttackName, Norm, SplitName
from cartl_cli.core.config.pretraining import PretrainConfig
from cartl_cli.core.config.shared import SETTINGS, own_eps
from cartl_cli.core.config.sweeping import SweepConfig
from cartl_cli.core.config.transferring import FreezeBatchNorm, TransferConfig

__all__ = [
    "POSITIONAL",
    "SETTINGS",
    "AttackConfig",
    "AttackName",
    "FreezeBatchNorm",
    "Kind",
    "Norm",
    "PretrainConfig",
    "SplitName",
    "SweepConfig",
    "TrainingConfig",
    "TransferConfig",
    "own_eps",
]

Kind = Literal["pretrain", "transfer", "attack"]
TrainingConfig = PretrainConfig | TransferConfig
