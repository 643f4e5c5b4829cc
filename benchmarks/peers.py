"""PGD of other libraries on the same model: (images, labels) → adversarial images.

`pip install 'cartl[bench]'` brings them. torchattacks asks for an old `requests`; where that
conflicts, `pip install --no-deps torchattacks` does, since PGD makes no use of it.
"""

import importlib.util
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel

Peer = Callable[[Tensor, Tensor], Tensor]
PACKAGES = {"foolbox": "foolbox", "torchattacks": "torchattacks", "ART": "art"}
DISTRIBUTIONS = {
    "foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "ART": "adversarial-robustness-toolbox",
}


def missing(names: Collection[str]) -> list[str]:
    """Those of the peers ``names`` that are not installed, as pip knows them."""
    return [
        DISTRIBUTIONS[name]
        for name, package in PACKAGES.items()
        if name in names and importlib.util.find_spec(package) is None
    ]


PEERS = (*PACKAGES, "plain loop")


def peer(name: str, model: BlockModel, budget: Budget) -> Peer:
    """One of ``PEERS``; each in float32, from a random start, with the same steps."""
    if name == "foolbox":
        return _foolbox(model, budget)
    if name == "torchattacks":
        return _torchattacks(model, budget)
    if name == "ART":
        return _art(model, model.head.out_features, 32, budget)
    return _plain(model, budget)


def _foolbox(model: nn.Module, budget: Budget) -> Peer:
    import foolbox
    from foolbox.models.pytorch import PyTorchModel

    wrapped = PyTorchModel(model, bounds=(0, 1), device="cpu")
    pgd = foolbox.attacks.LinfPGD(
        abs_stepsize=budget.step_size, steps=budget.steps, random_start=True
    )

    def run(images: Tensor, labels: Tensor) -> Tensor:
        _, found, _ = pgd(wrapped, images, labels, epsilons=budget.eps)
        return found

    return run


def _torchattacks(model: nn.Module, budget: Budget) -> Peer:
    import torchattacks

    pgd = torchattacks.PGD(model, eps=budget.eps, alpha=budget.step_size, steps=budget.steps)
    return lambda images, labels: pgd(images, labels)


def _art(model: nn.Module, classes: int, size: int, budget: Budget) -> Peer:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, size, size),
        nb_classes=classes,
        clip_values=(0, 1),
        device_type="cpu",
    )
    pgd = ProjectedGradientDescentPyTorch(
        classifier,
        eps=budget.eps,
        eps_step=budget.step_size,
        max_iter=budget.steps,
        num_random_init=1,
        batch_size=2**20,
        verbose=False,
    )
    return lambda images, labels: torch.from_numpy(pgd.generate(images.numpy(), labels.numpy()))


def _plain(model: nn.Module, budget: Budget) -> Peer:
    """The loop of the official CARTL code: gradients of the parameters are made as well."""

    def run(images: Tensor, labels: Tensor) -> Tensor:
        noise = torch.empty_like(images).uniform_(-budget.eps, budget.eps)
        found = (images + noise).clamp(0, 1)
        for _ in range(budget.steps):
            found = found.detach().requires_grad_()
            model.zero_grad()
            F.cross_entropy(model(found), labels).backward()
            assert found.grad is not None
            moved = found.detach() + budget.step_size * found.grad.sign()
            delta = (moved - images).clamp(-budget.eps, budget.eps)
            found = (images + delta).clamp(0, 1)
        return found.detach()

    return run
