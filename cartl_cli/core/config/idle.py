"""Settings that have no effect beside the others."""

from pydantic import BaseModel

from cartl_cli.core.config.attack_settings import AttackConfig
from cartl_cli.core.config.pretrain_settings import PretrainConfig


def idle(config: BaseModel) -> dict[str, str]:
    """What nothing looks at, each with the flag that makes it so: ``--schedule onecycle``."""
    if isinstance(config, AttackConfig):
        counts = {"pgd_steps": "steps", "queries": "queries", "restarts": "restarts"}
        unused = [name for name, count in counts.items() if count not in config.effort]
        return dict.fromkeys(unused, f"--attack {','.join(config.attack)}")
    found: dict[str, str] = {}
    if getattr(config, "schedule", None) == "onecycle":
        found |= dict.fromkeys(("milestones", "warmup_epochs"), "--schedule onecycle")
    if isinstance(config, PretrainConfig) and config.method in ("natural", "free"):
        growing = ["eps_warmup"] if config.method == "natural" else []
        found |= dict.fromkeys(["pgd_steps", *growing], f"--method {config.method}")
    return found
