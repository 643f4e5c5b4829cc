"""How a source model is trained: ``--method`` of ``cartl pretrain``, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainingAttack:
    """A way to make the images that a source model is trained on.

    ``code`` names the function (model) → attack of ``method.training_attacks``; None where
    the training makes no images beforehand. ``takes``: settings of this method alone.
    ``refuses``: other settings that do not go with it, each with the reason. ``single_step``: may
    overfit catastrophically, so that training looks out for it. ``one_process``: not for torchrun.
    """

    name: str
    about: str
    code: str | None
    takes: frozenset[str] = frozenset()
    refuses: Mapping[str, str] = field(default_factory=dict)
    single_step: bool = False
    one_process: bool = False


_HERE = "cartl_cli.core.method.training_attacks"
_NEEDS_IMAGES = "needs adversarial images; drop it or --method natural"

TRAINING_ATTACKS: dict[str, TrainingAttack] = {
    attack.name: attack
    for attack in (
        TrainingAttack("at", "on images of PGD", f"{_HERE}:pgd_attack"),
        TrainingAttack(
            "fast", "on images of N-FGSM", f"{_HERE}:n_fgsm", single_step=True, one_process=True
        ),
        TrainingAttack(
            "free",
            "PGD for free",
            None,
            takes=frozenset({"replays"}),
            refuses={
                "awp_gamma": "needs a backward pass of its own, which free training has not; "
                "drop it",
                "step_size": "steps of free training are as long as eps; drop it",
            },
            one_process=True,
        ),
        TrainingAttack(
            "trades", "the loss of TRADES", f"{_HERE}:trades", takes=frozenset({"trades_beta"})
        ),
        TrainingAttack(
            "natural",
            "on clean images",
            None,
            refuses={"fdm_lambda": _NEEDS_IMAGES, "awp_gamma": _NEEDS_IMAGES},
        ),
    )
}


def owner(setting: str) -> str | None:
    """The method that a setting belongs to, None where it belongs to all."""
    return next((one.name for one in TRAINING_ATTACKS.values() if setting in one.takes), None)
