"""Every setting, its default, its bounds and its description: the only place that has them.

The command line is made from these models (field → flag, description → help text), a stored
configuration is a valid ``--config`` file, and a preset is a partial one. Names of methods, attacks
and architectures come from ``registry``.
"""

from typing import Literal

from cartl_cli.core.config.attack_settings import AttackConfig, SplitName
from cartl_cli.core.config.import_settings import ImportConfig
from cartl_cli.core.config.predict_settings import PredictConfig
from cartl_cli.core.config.pretrain_settings import PretrainConfig
from cartl_cli.core.config.sweep_settings import SweepConfig
from cartl_cli.core.config.transfer_settings import TransferConfig
from cartl_cli.core.config.tune_settings import TuneConfig
from cartl_cli.core.config.values import POSITIONAL, SETTINGS, own_eps

__all__ = [
    "CONFIGS",
    "POSITIONAL",
    "SETTINGS",
    "AttackConfig",
    "ImportConfig",
    "Kind",
    "PredictConfig",
    "PretrainConfig",
    "RunConfig",
    "SplitName",
    "SweepConfig",
    "TrainingConfig",
    "TransferConfig",
    "TuneConfig",
    "own_eps",
]

Kind = Literal["pretrain", "transfer", "attack", "import"]
TrainingConfig = PretrainConfig | TransferConfig
RunConfig = PretrainConfig | TransferConfig | AttackConfig | ImportConfig
CONFIGS: dict[Kind, type[RunConfig]] = {
    "pretrain": PretrainConfig,
    "transfer": TransferConfig,
    "attack": AttackConfig,
    "import": ImportConfig,
}
"""The settings of each kind of run."""
