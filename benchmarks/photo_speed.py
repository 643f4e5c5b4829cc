"""How fast images of 224 pixels go: a transfer and an attack beside their bare passes.

    python -m benchmarks.photo_speed --arch torchvision:resnet50

The passes are those that the work cannot do without, in plain loops over whole batches of pixels
that lie ready. Of a step of a transfer: once forward through the frozen extractor, once forward and
back through the last k blocks. Of an attack: the clean prediction, forward and back to the pixels
for each step, the last prediction. Both take turns in one process and are timed by its processor
time, so that other work on the machine counts little. Ratios are medians over the rounds. Writes
one line for each kind of work to standard output, as Markdown.
"""

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attack_speed import faster, in_turns, median_seconds
from benchmarks.competitors import Measured
from cartl_cli.core.config import TransferConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.evaluation.verdicts import Plan, robustness, unattacked
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.folding import folded
from cartl_cli.core.registry.architectures import build_model, parse_architecture
from cartl_cli.core.runs.manifest import Position
from cartl_cli.core.runtime.devices import autocast_for, keep_freed_memory, resolve_precision
from cartl_cli.core.training.loop import Training, fit, sgd
from cartl_cli.core.training.target_model import prepare

CPU = torch.device("cpu")
AUGMENT = ("flip", "zoom")  # what photographs get by default
EPS = 1e-4  # so small that no image falls: each makes every step, and is judged twice


def timed(run: Callable[[], object]) -> Callable[[], Measured]:
    """Its processor time."""

    def measure() -> Measured:
        began = time.process_time()
        run()
        return Measured(time.process_time() - began, 0.0)

    return measure


def photographs(count: int, side: int) -> Split:
    """Noise: the work does not depend on what is seen."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draws)
    return Split(pixels, torch.arange(count) % 2)


def transfers(
    source: BlockModel, split: Split, k: int, batch: int, autocast: torch.autocast
) -> tuple[Callable[[], object], Callable[[], object]]:
    """An epoch of a transfer, and its passes alone."""
    config = configure(TransferConfig, {"batch_size": batch, "epochs": 1, "k": k})
    model = copy.deepcopy(source)
    objective = prepare(model, source, config, k, 2).objective
    cut, ready = len(model.blocks) - k, pixels_of(split, batch)

    def whole() -> None:
        optimizer = sgd(model, config)
        training = Training(model, optimizer, split, config, objective, autocast, AUGMENT)
        for step in fit(training, Position()):
            step.look()

    def passes() -> None:
        for images, labels in ready:
            with autocast:
                with torch.no_grad():
                    features = model.features(images, cut)
                loss = F.cross_entropy(model.classify(features, cut), labels)
            loss.backward()
            model.zero_grad()

    return whole, passes


def attacks(
    model: BlockModel, split: Split, steps: int, batch: int, autocast: torch.autocast
) -> tuple[Callable[[], object], Callable[[], object]]:
    """PGD as ``cartl attack`` makes it, and its passes alone."""
    plan = Plan(("pgd",), (Budget(EPS, EPS, steps),), 1, 1, 1, 0, batch, probe=0)
    ready = pixels_of(split, batch)
    with torch.no_grad():
        answers = torch.cat([model(images).argmax(1) for images, _ in ready])
    right = Split(split.images, answers)
    light = folded(model)

    def whole() -> None:
        for _ in robustness(model, right, plan, autocast, unattacked(model, right, plan)):
            pass

    def passes() -> None:
        for images, labels in ready:
            with eval_mode(model):
                with torch.no_grad():
                    model(images)
                for _ in range(steps):
                    points = images.detach().requires_grad_()
                    with autocast:
                        loss = F.cross_entropy(light(points), labels, reduction="sum")
                    torch.autograd.grad(loss, points)
                with torch.no_grad():
                    model(images)

    return whole, passes


def pixels_of(split: Split, batch: int) -> list[tuple[Tensor, Tensor]]:
    """Batches that lie ready."""
    images = to_pixels(split.images).to(memory_format=torch.channels_last)
    return list(zip(images.split(batch), split.labels.split(batch), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="torchvision:resnet50")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    model: BlockModel = build_model(options.arch, 2).eval().to(memory_format=torch.channels_last)
    split = photographs(options.images, parse_architecture(options.arch).image_size)
    autocast = autocast_for(CPU, resolve_precision("auto", CPU))
    batch = options.batch_size
    kinds = {
        f"transfer, k {options.k}": transfers(model, split, options.k, batch, autocast),
        f"PGD, {options.steps} steps": attacks(model, split, options.steps, batch, autocast),
    }
    print(f"| {options.arch}, batches of {batch} | images/s | of the passes | ratio |")
    print("|---|--:|--:|--:|")
    for kind, (whole, passes) in kinds.items():
        whole()  # once to warm up
        found = in_turns({"cartl": timed(whole), "passes": timed(passes)}, options.rounds)
        ours, theirs = (options.images / median_seconds(found[who]) for who in ("cartl", "passes"))
        ratio = 1 / faster(found, "cartl", "passes")
        print(f"| {kind} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} × |")


if __name__ == "__main__":
    main()
