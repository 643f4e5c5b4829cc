"""Rounds of training of cartl and of its peers, each competitor in a process of its own.

A round tells ``images a second``, of a transfer also those of its ``first epoch``.
"""

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional as F

from benchmarks import children, training_peers
from benchmarks.commands import cartl, progress
from benchmarks.training_tasks import (
    ART,
    COMPILED,
    FIRST,
    HELD_OUT,
    NO_ITERATION,
    OFFICIAL,
    PASSES,
    SPEED,
    Go,
    Round,
    Task,
    autocast_of,
    precisions,
)
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.data_sets import DataChoice, load_data_set
from cartl_cli.core.data.downloads import NOWHERE
from cartl_cli.core.data.split import Split, fraction_of
from cartl_cli.core.method.neft import NonExpansive
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.models.compiling import compiled_passes
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs import reader, weights
from cartl_cli.core.runs.manifest import Position
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime.devices import keep_freed_memory
from cartl_cli.core.training.loop import Progress, Take, Training, count_steps, fit, sgd, take_step
from cartl_cli.core.training.replayed_steps import PLAIN, ReplayedSteps, recorded, side_stream
from cartl_cli.core.training.source_model import adversarial_training, growing, outer_loss
from cartl_cli.core.training.target_model import transfer

CLASSES, SIDE = 10, 32


def random_images(task: Task) -> Split:
    """As many images as a round takes: uint8 (N, 3, 32, 32)."""
    count, draws = task.images * task.steps, torch.Generator().manual_seed(0)
    return Split(
        torch.randint(256, (count, 3, SIDE, SIDE), generator=draws, dtype=torch.uint8),
        torch.randint(CLASSES, (count,), generator=draws),
    )


def cartl_pretraining(task: Task, precision: str, compiled: bool) -> Callable[[], object]:
    """One epoch of ``cartl pretrain``, through the one training loop."""
    config, split = task.pretrain, random_images(task).to(task.where)
    model = build_model(task.arch, CLASSES).to(task.where).to(memory_format=torch.channels_last)
    budget = growing(config, count_steps(config, len(split)))
    training = Training(
        model,
        sgd(model.train(), config),
        split,
        config,
        adversarial_training(model, config, budget),
        autocast_of(task, precision),
        ("crop", "flip", "rotate"),
    )
    take: Take = take_step
    if compiled and task.where.type == "cuda":
        take = ReplayedSteps(budget.steps, 0, task.images, progress.print)

    def epoch() -> None:
        with on_stream(task), compiled_passes(task.images if compiled else 0, graphs=False):
            for step in fit(training, Position(), take):
                if step.epoch_ended:
                    step.look()

    return epoch


def on_stream(task: Task) -> AbstractContextManager[None]:
    """The stream that graphs are captured from, on a GPU."""
    on_gpu = task.where.type == "cuda"
    return side_stream(task.where) if on_gpu else contextlib.nullcontext()


def compiled_bare_passes(task: Task, precision: str) -> Callable[[], None]:
    """``passes``, compiled, on a GPU replayed as one graph."""
    step, replay = passes(task, precision), None

    def go() -> None:
        nonlocal replay
        with on_stream(task), compiled_passes(task.images, graphs=False):
            if replay is not None:
                replay()
            elif task.where.type != "cuda":
                step()
            else:
                for _ in range(PLAIN):
                    step()
                _, replay = recorded(step)

    return go


def passes(task: Task, precision: str) -> Callable[[], None]:
    """The passes that a step cannot do without, see ``training_tasks.counted``."""
    config, split = task.pretrain, random_images(replace(task, steps=1)).to(task.where)
    model = build_model(task.arch, CLASSES).to(task.where).to(memory_format=torch.channels_last)
    images = (split.images / 255).to(memory_format=torch.channels_last)
    autocast = autocast_of(task, precision)
    model.train()

    def step() -> None:
        with autocast:
            with eval_mode(model):
                for _ in range(task.pgd_steps):
                    pixels = images.detach().requires_grad_()
                    F.cross_entropy(model(pixels), split.labels).backward(inputs=[pixels])
            if task.fdm_lambda == 0:
                with torch.no_grad(), eval_mode(model):
                    model(images)
            loss = outer_loss(model, config)(images, images, split.labels).loss
        model.zero_grad()
        loss.backward()

    return step


def cartl_transfer(task: Task, precision: str) -> Go:
    """``cartl transfer`` from beginning to end; its epochs are timed by its own clock."""
    source = reader.read_run(Path(task.source))
    config = task.transfer.model_copy(update={"precision": precision})

    def go() -> Round:
        ends: list[Position] = []

        def report(done: Progress) -> None:
            if done.epoch_ended:
                ends.append(done.position)

        with tempfile.TemporaryDirectory() as place:
            session = Session(Path(place) / "runs", None, NOWHERE, lambda text: None)
            transfer(config, source, session, report)
        first, last = ends[0], ends[-1]
        later = (len(ends) - 1) * last.seen / (last.seconds - first.seconds)
        return {SPEED: later, FIRST: first.seen / first.seconds}

    return go


def official(task: Task) -> Callable[[], object]:
    """One step of the official code's kind."""
    if task.kind == "pretrain":
        model = build_model(task.arch, CLASSES).to(task.where)
        return training_peers.pretraining(model, random_images(task), task.pretrain, task.where)
    config = task.transfer
    data = load_data_set(
        DataChoice(config.dataset, val_fraction=HELD_OUT), Preprocessing(image_size=SIDE)
    )
    split = fraction_of(data, config.fraction, config.seed)
    source = plain(weights.read_model(reader.read_run(Path(task.source))).to(task.where))
    return training_peers.transferring(source, split, config, len(data.classes), task.where)


def source_run(arch: str, k: int, place: Path, device: str) -> str:
    """The folder of a source model, quickly made: what it has learnt is not measured."""
    settings = ["--method", "natural", "--epochs", 1, "--classes", "disk,square"]
    where = ["--val-fraction", 0.02, "--device", device, "--runs-dir", place, "--name", arch]
    cartl("pretrain", "--arch", arch, "--k", k, *settings, *where)
    return str(place / arch)


def plain(model: BlockModel) -> BlockModel:
    """The same weights, contiguous."""
    return model.to(memory_format=torch.contiguous_format)


def competitor(name: str, task: Task) -> Go:
    """Ours or theirs by name."""
    best = precisions(task.where)[0]
    precision = name.removeprefix("cartl ").partition(" ")[0]
    if task.kind == "transfer" and name != OFFICIAL:
        return cartl_transfer(task, precision)
    if name == PASSES:
        return timed(passes(task, best), task, task.steps)
    if name == PASSES + COMPILED:
        return timed(compiled_bare_passes(task, best), task, task.steps)
    if name == OFFICIAL:
        return timed(official(task), task, task.steps)
    if name == ART:
        model = build_model(task.arch, CLASSES).to(task.where)
        epoch = training_peers.art(model, random_images(task), task.pretrain, task.where)
        return timed(epoch, task, 1)
    return timed(cartl_pretraining(task, precision, name.endswith(COMPILED)), task, 1)


def timed(work: Callable[[], object], task: Task, times: int) -> Go:
    """A round: ``work`` so many times, ``task.steps`` batches in all."""

    def go() -> Round:
        settle(task.where)
        began = time.perf_counter()
        for _ in range(times):
            work()
        settle(task.where)
        return {SPEED: task.images * task.steps / (time.perf_counter() - began)}

    return go


def settle(device: torch.device) -> None:
    """Wait for what the device has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def process(name: str, task: Task) -> AbstractContextManager[Go]:
    """A competitor that has warmed up; each call is a round."""
    return children.process(__spec__.name, name, json.dumps(asdict(task)))


def main() -> None:
    name, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
    if name.startswith(("cartl", PASSES)):
        keep_freed_memory()
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        if name.endswith(NO_ITERATION):
            stack.enter_context(mock.patch.object(NonExpansive, "iterate"))
        competitor(name, replace(task, images=8, steps=1))()
        go = competitor(name, task)
        if name.endswith(COMPILED):
            go()

        def rest() -> None:
            if name == OFFICIAL:
                time.sleep(1)  # its workers fill up, and not in the next one's turn
            if task.where.type == "cuda":
                torch.cuda.empty_cache()  # the next in turn needs it

        def rested() -> Round:
            found = go()
            rest()
            return found

        rest()
        children.serve(rested)


if __name__ == "__main__":
    main()
