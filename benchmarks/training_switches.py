"""What each measure gives a step of pre-training: its time without the measure over that with it.

    python -m benchmarks.training_switches [--archs wrn-16-2 wrn-16-1] [--images 128] [--rounds 7]

PGD-7 with FDM on random images, through the losses of `cartl pretrain`. All variants are of one
process and take turns; a figure is the median of the ratios of the rounds.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from benchmarks.commands import machine, progress
from benchmarks.training_rounds import CLASSES, SIDE, settle
from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.method import pgd
from cartl_cli.core.method.losses import PerImageLoss
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.models.compiling import compiled_passes
from cartl_cli.core.models.folding import FoldedCopy
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runtime.devices import (
    autocast_for,
    keep_freed_memory,
    native_bfloat16,
    resolve_device,
)
from cartl_cli.core.training.loop import sgd
from cartl_cli.core.training.source_model import adversarial_training, growing

USUAL, COMPILED = "as it is", "compiled"
WEIGHTS, FOLDED = "no gradients of weights while attacking", "batch norm folded away"
LAYOUT, FORMAT = "channels_last", "bfloat16"
Step = Callable[[], object]


def wasteful(
    model: BlockModel, adversarial: Tensor, labels: Tensor, loss: PerImageLoss
) -> tuple[Tensor, Tensor]:
    """``pgd.ascent`` that makes gradients of the weights as well."""
    adversarial = adversarial.detach().requires_grad_()
    weights = list(model.requires_grad_().parameters())
    with torch.enable_grad():
        logits = model(adversarial)
        gradient, *_ = torch.autograd.grad(
            loss(logits, labels).sum(), [adversarial, *weights], allow_unused=True
        )
    return logits.detach(), gradient


def step_of(arch: str, images: int, device: torch.device, without: str) -> Step:
    """One step of training, without a measure; a compiled one has one more."""
    layout = torch.contiguous_format if without == LAYOUT else torch.channels_last
    native = native_bfloat16(device) and without != FORMAT
    config = PretrainConfig(
        arch=arch, fdm_lambda=0.005, pgd_steps=7, eps_warmup=0, batch_size=images, lr=0.01
    )
    torch.manual_seed(0)
    model = build_model(arch, CLASSES).to(device).to(memory_format=layout).train()
    pixels = torch.rand(images, 3, SIDE, SIDE).to(device).to(memory_format=layout)
    labels = torch.randint(CLASSES, (images,)).to(device)
    objective = adversarial_training(model, config, growing(config, 1))
    optimizer = sgd(model, config)

    def step() -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(autocast_for(device, "bf16" if native else "fp32"))
            stack.enter_context(compiled_passes(images if without == COMPILED else 0))
            if without == FOLDED:
                stack.enter_context(
                    mock.patch.object(FoldedCopy, "refreshed", lambda copy: copy.model)
                )
            if without == WEIGHTS:
                stack.enter_context(mock.patch.object(pgd, "ascent", wasteful))
            found = objective(pixels, labels, 0).loss
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        settle(device)

    return step


def ratios(arch: str, images: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Time of each variant over that of the usual step."""
    names = [USUAL, COMPILED, WEIGHTS, FOLDED, LAYOUT]
    names += [FORMAT] if native_bfloat16(device) else []
    steps = {name: step_of(arch, images, device, name) for name in names}
    for step in steps.values():
        step()  # warm
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            found[name].append(time.perf_counter() - began)
            progress.print(f"round {number + 1}: {arch} {name} {found[name][-1]:.2f} s")
    return {
        name: statistics.median(
            one / usual for one, usual in zip(found[name], found[USUAL], strict=True)
        )
        for name in names[1:]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", nargs="+", default=["wrn-16-1", "wrn-16-2"])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = resolve_device(options.device)
    keep_freed_memory()
    found = {a: ratios(a, options.images, device, options.rounds) for a in options.archs}
    print(f"| | {' | '.join(arch.upper() for arch in options.archs)} |")
    print(f"|---|{'--:|' * len(options.archs)}")
    for name in next(iter(found.values())):
        cells = [1 / of[name] if name == COMPILED else of[name] for of in found.values()]
        shown = "`--compile`" if name == COMPILED else name
        print(f"| {shown} | {' | '.join(f'{cell:.2f} ×' for cell in cells)} |")
    print(f"\n{machine()}, {device}, batches of {options.images}")


if __name__ == "__main__":
    main()
