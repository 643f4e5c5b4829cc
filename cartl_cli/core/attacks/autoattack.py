"""AutoAttack (Croce & Hein 2020), the standard ensemble, as the package ``pyautoattack`` has it.

The reference that our own attacks are measured against: APGD on cross-entropy, towards nine classes
on the targeted DLR loss, FAB towards nine classes, and Square with 5,000 queries.
"""

import copy
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.contract import (
    STANDS,
    WRONG_CLASSES,
    AttackSetting,
    Batch,
    Outcome,
    by_batches,
)
from cartl_cli.core.attacks.judged_pgd import correct, predict
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runtime.devices import float32


@by_batches
def autoattack_ensemble(
    model: BlockModel, batch: Batch, budget: Budget, setting: AttackSetting
) -> Outcome:
    """The ensemble with a seed of each restart."""
    return autoattack(model, batch.images, batch.labels, budget, WRONG_CLASSES, setting.own_seed)


def autoattack(
    model: nn.Module, images: Tensor, labels: Tensor, budget: Budget, targets: int, seed: int
) -> Outcome:
    """The ensemble at ``budget.eps`` and its norm; everything else is its own, all in float32.

    It draws for the whole batch at once, so that its verdicts, alone among our attacks', depend on
    the batch. An image that falls has ``fell_at`` 0: it does not say at which iterate. With fewer
    than 4 classes, where the targeted DLR loss is not defined, it goes without that attack.
    """
    from pyautoattack import AutoAttack

    images = images.contiguous()
    model = copy.deepcopy(model).eval().requires_grad_(False)  # it calls backward() on all of it
    with float32(images.device), _left_alone(images.device):
        classes = predict(model, images[:1]).shape[1]
        ensemble = AutoAttack(
            model,
            norm={"linf": "Linf", "l2": "L2"}[budget.norm],
            eps=budget.eps,
            seed=seed,
            device=images.device,
        )
        for attack in (ensemble.apgd_targeted, ensemble.fab):
            attack.n_target_classes = min(targets, classes - 1)
        if classes < 4:
            ensemble.attacks_to_run.remove("apgd-t")
        adversarial, _ = ensemble.run_standard_evaluation(images, labels, batch_size=len(labels))
        fallen = ~correct(predict(model, adversarial), labels)
    return Outcome(adversarial, torch.where(fallen, 0, STANDS), fallen)


@contextmanager
def _left_alone(device: torch.device) -> Iterator[None]:
    """Keep global random state and tracer, and the log of a package with checks of its own."""
    tracer, log = sys.gettrace(), logging.getLogger("auto-attack")
    disabled, log.disabled = log.disabled, True
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        log.disabled = disabled
        sys.settrace(tracer)
