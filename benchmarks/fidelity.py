"""What can be compared with the paper and its official code without running that code.

    python -m benchmarks.fidelity                                     sizes, formulas, settings
    python -m benchmarks.fidelity --source RUN --dataset photos.zip   how a classifier begins, too

The second prints, for the two ways in which a new classifier can be drawn, how far the logits of 64
training images lie apart and the norm of the gradient into the tuned blocks.
"""

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from benchmarks.commands import progress
from cartl_cli.core.choices import HeadInit
from cartl_cli.core.config import AttackConfig, PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import at_own_eps, configure
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.config.presets import read_preset
from cartl_cli.core.data.data_sets import DataChoice, augmentation, load_data_set
from cartl_cli.core.data.downloads import Place, Store
from cartl_cli.core.data.split import to_pixels
from cartl_cli.core.method.batch_norm import freeze
from cartl_cli.core.method.keeping import l1_distance
from cartl_cli.core.method.losses import feature_distance
from cartl_cli.core.method.neft import NonExpansive, apply_neft
from cartl_cli.core.method.transfer_methods import replace_head
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.reader import find_run
from cartl_cli.core.runs.weights import read_model
from cartl_cli.core.runtime.randomness import seeded
from cartl_cli.core.storage import cache_dir
from cartl_cli.core.training.loop import learning_rate

SIZES = {
    ("wrn-34-10", 100): (46_218_164, 17),
    ("wrn-28-4", 10): (5_849_050, 14),
    ("resnet-18", 10): (11_173_962, 9),
}
"""Architecture and classes: parameters and blocks of the official networks."""
STEPS = 391  # an epoch of CIFAR at batch 128
RATES = {1: 0.1, 40: 0.1, 41: 0.02, 70: 0.02, 71: 0.004, 90: 0.004, 91: 0.0008, 100: 0.0008}
"""The learning rate at the end of an epoch."""
IMAGES, K, BETA = 64, 6, 0.4


@dataclass(frozen=True)
class Line:
    """Something of the paper or its code, and the same here."""

    what: str
    official: Any
    ours: Any


def lines() -> Iterator[Line]:
    """Every comparison."""
    yield from sizes()
    yield from formulas()
    yield from settings()


def sizes() -> Iterator[Line]:
    """Parameters and blocks of the networks."""
    for (arch, classes), (parameters, blocks) in SIZES.items():
        with torch.device("meta"):
            model = build_model(arch, classes)
        ours = sum(p.numel() for p in model.parameters())
        yield Line(f"{arch}, {classes} classes: parameters", parameters, ours)
        yield Line(f"{arch}: blocks", blocks, len(model.blocks))


def formulas() -> Iterator[Line]:
    """Equations at numbers that can be worked out by hand."""
    moved = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 5.0, 12.0]])
    yield Line(
        "Eq. 10: Σ ‖f(x) − f(x̃)‖ / √d", (5 + 13) / 2, feature_distance(moved * 0, moved).item()
    )
    layer = NonExpansive(torch.diag(torch.tensor([3.0, 1.0])), BETA).eval()
    scaled = layer(torch.diag(torch.tensor([3.0, 1.0]))).diag().tolist()
    yield Line("Eq. 11: β W / σ(W), W = diag(3, 1)", (0.4, 0.1333), _rounded(scaled))
    z = torch.tensor([[1.0, -2.0, 0.0], [3.0, 0.0, 1.0]])
    yield Line("LwF: mean ‖z − z₀‖₁", (3 + 4) / 2, l1_distance(z, z * 0).mean().item())


def settings() -> Iterator[Line]:
    """What ``--preset paper`` and ``paper-lwf`` ask for, on CIFAR unless said."""
    preset = read_preset("paper")
    pretrain = configure(PretrainConfig, preset["pretrain"], {"dataset": "cifar100"})
    transfer = configure(TransferConfig, preset["transfer"], {"dataset": "cifar10"})
    attack = at_own_eps(configure(AttackConfig, preset["attack"]), "cifar10")
    lwf = configure(TransferConfig, read_preset("paper-lwf")["transfer"], {"dataset": "svhn"})
    for name, config in (("pre-training", pretrain), ("transfer", transfer)):
        sgd = (config.epochs, config.batch_size, config.momentum, config.weight_decay)
        yield Line(f"{name}: epochs, batch, momentum, decay", (100, 128, 0.9, 5e-4), sgd)
        rates = [learning_rate(config, epoch * STEPS - 1, STEPS) for epoch in RATES]
        epochs = ", ".join(map(str, RATES))
        yield Line(
            f"{name}: learning rate, epochs {epochs}", tuple(RATES.values()), _rounded(rates)
        )
    pgd = (_pixels(pretrain.eps), _pixels(pretrain.eps / 4), pretrain.pgd_steps)
    yield Line("pre-training: eps, step · 255, steps", (8, 2, 7), pgd)
    yield Line("pre-training: eps from the start", 0, pretrain.eps_warmup)
    (eps,) = attack.eps
    pgd = (_pixels(eps), _pixels(eps / 4), attack.pgd_steps)
    yield Line("attack: eps, step · 255, steps", (8, 2, 100), pgd)
    yield Line("LwF: epochs of the head, of all", (25, 27), (lwf.head_phase, lwf.epochs - 25))
    rest = (lwf.batch_size, lwf.lr, lwf.weight_decay)
    yield Line("LwF: batch, learning rate, decay", (128, 0.001, 2e-4), rest)
    for name in ("cifar10", "cifar100", "svhn", "gtsrb", "mnist"):
        official = ("crop", "flip", "rotate") if name.startswith("cifar") else ()
        yield Line(f"augmentation of {name}", official, augmentation(name, lwf.augment, 32))


def _rounded(numbers: list[float]) -> tuple[float, ...]:
    return tuple(round(number, 4) for number in numbers)


def _pixels(number: float) -> float:
    return round(255 * number, 6)


def beginnings(source: Path, dataset: str) -> Table:
    """How the logits and the gradients of the last k blocks begin with each classifier."""
    model = read_model(find_run(str(source), source.parent, "--source", ("pretrain",)))
    store = Store(None, False, progress.print)
    choice, preprocessing = DataChoice(dataset), Preprocessing(image_size=32)
    images = load_data_set(choice, preprocessing, Place(cache_dir(), store)).train
    some = images.take(torch.arange(0, len(images), max(1, len(images) // IMAGES))[:IMAGES])
    table = Table("β", "classifier", "spread of logits", "gradient", title=f"{source.name}, k {K}")
    for beta in (None, BETA):
        for init in get_args(HeadInit):
            target = copy.deepcopy(model)
            with seeded(0, "head"):
                replace_head(target, len(model.head.bias), init)
            freeze(target, K, "all")
            if beta is not None:
                apply_neft(target, K, beta)
            logits = target(to_pixels(some.images))
            F.cross_entropy(logits, some.labels).backward()
            spread = (logits - logits.mean(1, keepdim=True)).std().item()
            table.add_row(str(beta), init, f"{spread:.3f}", f"{gradient(target):.4f}")
    return table


def gradient(model: BlockModel) -> float:
    """The norm of the gradient of all that is tuned but the classifier."""
    head = set(model.head.parameters())
    parts = [p.grad for p in model.parameters() if p.grad is not None and p not in head]
    return float(torch.cat([part.flatten() for part in parts]).norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="the folder of a pretrain run")
    parser.add_argument("--dataset", default="shapes-target")
    options = parser.parse_args()
    table = Table("what", "official", "cartl", "")
    for line in lines():
        same = "same" if line.official == line.ours else "DIFFERENT"
        table.add_row(line.what, str(line.official), str(line.ours), same)
    console = Console(width=150)
    console.print(table)
    if options.source:
        console.print(beginnings(options.source, options.dataset))


if __name__ == "__main__":
    main()
