"""PGD of cartl and of its peers at one task, each in a process of its own."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import children
from benchmarks.peers import PEERS, peer
from cartl_cli.core.attacks.contract import AttackSetting, Batch, Targets
from cartl_cli.core.attacks.judged_pgd import correct, pgd_cross_entropy, predict
from cartl_cli.core.data.shapes import shapes_target
from cartl_cli.core.data.split import Split, stratified, to_pixels
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.models.compiling import compiled_passes
from cartl_cli.core.runs import reader, weights
from cartl_cli.core.runtime.devices import autocast_for, keep_freed_memory, native_bfloat16

CPU = torch.device("cpu")
EPS = 8 / 255
BATCH = 128
Run = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """PGD on the first images of a stratified order.

    ``to_the_end``: every image walks all steps. Otherwise images that are wrong when clean are not
    attacked, and what a library does with one that has fallen is its own affair.
    """

    images: int
    steps: int
    to_the_end: bool


@dataclass(frozen=True)
class Measured:
    """Wall-clock seconds, and the fraction of the images that are right afterwards."""

    seconds: float
    robust: float


def model_of(runs_dir: Path, name: str) -> BlockModel:
    """The model of a finished transfer, in evaluation mode."""
    return weights.read_model(reader.find_run(name, runs_dir, "RUN", ("transfer",))).eval()


def budget(steps: int) -> Budget:
    return Budget(EPS, EPS / 4, steps)


@dataclass(frozen=True)
class Way:
    """How gradients are taken: in what number format, and of a compiled model or not."""

    autocast: torch.autocast
    compiled: bool


def ways() -> dict[str, Way]:
    """bfloat16, where that is native, and float32; the first of them compiled as well."""
    bf16, fp32 = autocast_for(CPU, "bf16"), autocast_for(CPU, "fp32")
    if native_bfloat16(CPU):
        named = {"cartl bf16": Way(bf16, False), "cartl fp32": Way(fp32, False)}
        return {**named, "cartl bf16 compiled": Way(bf16, True)}
    return {"cartl fp32": Way(fp32, False), "cartl fp32 compiled": Way(fp32, True)}


def everybody() -> list[str]:
    return [*ways(), *PEERS]


def pixels(split: Split) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) as the peers get them, contiguous, and labels."""
    return to_pixels(split.images), split.labels


def cartl(model: BlockModel, limits: Budget, way: Way, to_the_end: bool) -> Run:
    """What ``cartl attack`` does with images; fallen ones leave unless ``to_the_end``."""

    def run(images: Tensor, labels: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)

        def batch(indices: Tensor) -> Batch:
            return Batch(images[indices], labels[indices], indices)

        targets = Targets(batch, torch.arange(len(images)), BATCH)
        found = torch.empty_like(images)
        with way.autocast, compiled_passes(BATCH if way.compiled else 0):
            setting = AttackSetting(0, 0, 1, 1, to_the_end)
            for indices, outcome in pgd_cross_entropy(model, targets, limits, setting):
                found[indices] = outcome.adversarial
        return found

    return run


def competitor(name: str, model: BlockModel, limits: Budget, to_the_end: bool) -> Run:
    """Ours or theirs by name, ``BATCH`` images at a time."""
    if name in ways():
        return cartl(model, limits, ways()[name], to_the_end)
    run = peer(name, model, limits)

    def by_batches(images: Tensor, labels: Tensor) -> Tensor:
        parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([run(some, theirs) for some, theirs in parts])

    return by_batches


def measured(model: BlockModel, images: Tensor, labels: Tensor, run: Run, task: Task) -> Measured:
    """One round: the clean predictions, where they are needed, the attack, the verdicts."""
    began = time.perf_counter()
    attacked = torch.ones_like(labels, dtype=torch.bool)
    if not task.to_the_end:
        attacked = correct(predict(model, images), labels)
    found = run(images[attacked], labels[attacked])
    seconds = time.perf_counter() - began
    robust = correct(predict(model, found), labels[attacked])
    return Measured(seconds, int(robust.sum()) / len(labels))


@contextlib.contextmanager
def process(name: str, runs_dir: Path, run: str, task: Task) -> Iterator[Callable[[], Measured]]:
    """A competitor that has warmed up; each call is a round."""
    with children.process(__spec__.name, name, str(runs_dir), run, json.dumps(asdict(task))) as go:
        yield lambda: Measured(**go())


def main() -> None:
    name, runs_dir, run, task = *sys.argv[1:4], Task(**json.loads(sys.argv[4]))
    if name in ways():
        keep_freed_memory()
    torch.manual_seed(0)
    whole = shapes_target().evaluation
    images, labels = pixels(whole.take(stratified(whole.labels, task.images, 0, "limit")))
    model = model_of(Path(runs_dir), run)
    warm = competitor(name, model, budget(2), task.to_the_end)
    warm(images[:BATCH], labels[:BATCH])
    ready = competitor(name, model, budget(task.steps), task.to_the_end)
    children.serve(lambda: asdict(measured(model, images, labels, ready, task)))


if __name__ == "__main__":
    main()
