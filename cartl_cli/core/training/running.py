"""A training as a run: what it begins with, and ``fit`` from the newest checkpoint on."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn

from cartl_cli.core.allocation import keep_freed_memory
from cartl_cli.core.compiling import compiled_passes, resolve_compile
from cartl_cli.core.config import PretrainConfig, TrainingConfig, TransferConfig
from cartl_cli.core.data.batches import Part
from cartl_cli.core.data.registry import augmentation, load_data_set
from cartl_cli.core.data.split import DataSet, Split, fraction_of
from cartl_cli.core.devices import resolve_device
from cartl_cli.core.errors import CartlError, UsageError
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.precision import autocast_for, resolve_precision
from cartl_cli.core.ranks import Ranks
from cartl_cli.core.records import checkpoints, recording, storage
from cartl_cli.core.records.manifest import DataRecord, Position, Run, data_record, versions
from cartl_cli.core.records.recording import Session
from cartl_cli.core.training.averaging import averaged
from cartl_cli.core.training.loop import count_steps, fit, learning_rate, part_of_step, sgd
from cartl_cli.core.training.progress import Progress
from cartl_cli.core.training.recipe import Recipe
from cartl_cli.core.training.state import METRICS, State


@dataclass(frozen=True)
class Setup:
    """What a training begins with besides its model; ``split`` holds the images to train on.

    ``part`` says what this process takes of the batch of a step.
    """

    data: DataSet
    split: Split
    augment: tuple[str, ...]
    device: torch.device
    precision: Literal["fp32", "bf16"]
    compile: bool
    total_steps: int
    ranks: Ranks
    part: Callable[[int], Part]

    @property
    def autocast(self) -> torch.autocast:
        """The number format of the forward passes."""
        return autocast_for(self.device, self.precision)

    @property
    def record(self) -> DataRecord:
        """What the manifest keeps of the data, with the number of images trained on."""
        kept = data_record(self.data, self.augment)
        return kept.model_copy(update={"train_images": len(self.split)})

    @property
    def versions(self) -> dict[str, str]:
        """Software and hardware of the training."""
        return versions(self.device, self.precision, self.ranks.size, self.compile)


def set_up(
    config: TrainingConfig, image_size: int, session: Session, fraction: float = 1.0
) -> Setup:
    """Device, place and data of a training, checked before any work; tells the data's notes.

    Raises UsageError or DataError.
    """
    ranks = session.ranks
    device = resolve_device(config.device, ranks)
    keep_freed_memory()
    check_division(config, ranks, device)
    recording.check_place(session)
    with ranks.in_turn():
        data = load_data_set(
            config.dataset,
            config.classes,
            image_size,
            config.val_fraction,
            config.seed,
            session.cache_dir,
            session.store,
        )
    split = fraction_of(data, fraction, config.seed)
    total_steps = count_steps(config, len(split))
    setup = Setup(
        data=data,
        split=split,
        augment=augmentation(config.dataset, config.augment),
        device=device,
        precision=resolve_precision(config.precision, device),
        compile=resolve_compile(config.compile, device, total_steps, ranks.size),
        total_steps=total_steps,
        ranks=ranks,
        part=partial(part_of_step, config, len(split), ranks),
    )
    for note in data.notes:
        session.say(note)
    return setup


def check_division(config: TrainingConfig, ranks: Ranks, device: torch.device) -> None:
    """Refuse what many processes, or these devices, cannot do. Raises UsageError."""
    if config.batch_size < 2 * ranks.size:
        raise UsageError(
            f"--batch-size: {config.batch_size} images cannot be divided over {ranks.size} "
            f"processes; use {2 * ranks.size} or more"
        )
    if not ranks.alone and isinstance(config, PretrainConfig):
        if config.method in ("fast", "free"):
            raise UsageError(
                f"--method {config.method}: one process alone; use at, trades or natural"
            )
        if config.awp_gamma > 0:
            raise UsageError("--awp-gamma: one process alone; drop it")
    if not ranks.alone and config.compile:
        raise UsageError("--compile: one process alone; drop it")
    if config.sync_bn and device.type != "cuda":
        raise UsageError(f"--sync-bn: works on CUDA devices alone, not on {device.type}; drop it")


def train(
    run: Run,
    model: BlockModel,
    config: TrainingConfig,
    setup: Setup,
    recipe: Recipe,
    session: Session,
    asked: Callable[[], int | None],
    report: Callable[[Progress], None],
) -> Position:
    """Train to the last step, from the newest checkpoint if there is one.

    The end is byte for byte that of a training that was never interrupted, on the same machine
    with the same versions. Raises StoppedError once a signal is ``asked`` for and the state is
    saved, DivergedError, StorageError, or CartlError where memory or the device fails.
    """
    ranks = setup.ranks
    if config.sync_bn and not ranks.alone:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = sgd(model, config)
    state = State(model, optimizer, recipe)
    begun, metrics = _begun(run, state, config, setup, session)
    head_epochs = config.head_phase if isinstance(config, TransferConfig) else 0
    head_steps = setup.total_steps // config.epochs * head_epochs
    loss_of_batch = averaged(model, recipe.loss_of_batch, ranks, setup.device, head_steps)
    last = begun

    def contents() -> checkpoints.Contents:
        return state.files(metrics) if ranks.first else {}

    keeper = checkpoints.Keeper(run, contents, begun, asked, ranks)

    def step_done(step: int) -> bool:
        recipe.step_done(step)
        return keeper.step_done(step)

    def look(progress: Progress) -> None:
        nonlocal last, metrics
        last = progress.position
        if progress.epoch_ended:
            measured = recipe.epoch_done(progress.epoch, last.step)
            if ranks.first:
                metrics += json.dumps(progress.metrics | measured).encode() + b"\n"
                storage.write_whole(run.folder / METRICS, metrics)
        report(progress)
        keeper.look(last, progress.total_steps)

    failed = session.say if config.compile is None else None  # else it is an error
    with (
        failures_told(run, config.batch_size, lambda: last.step),
        compiled_passes(config.batch_size if setup.compile else 0, failed),
    ):
        return fit(
            model,
            optimizer,
            setup.split.to(setup.device),
            config,
            setup.augment,
            loss_of_batch,
            setup.autocast,
            begun,
            look,
            step_done,
            ranks,
        )


def _begun(
    run: Run, state: State, config: TrainingConfig, setup: Setup, session: Session
) -> tuple[Position, bytes]:
    """Where to begin, and the metrics so far: at the newest checkpoint, which ``state`` takes over.

    Of many processes the first one reads it, and the others get what it has read.
    """
    begun, metrics, total = Position(), b"", setup.total_steps
    if setup.ranks.first and (found := checkpoints.newest(run, session.say)):
        begun, files = found
        metrics = state.restore(run, begun, files)
        if begun.step < total:
            rate = learning_rate(config, begun.step, total // config.epochs)
            session.say(f"going on after step {begun.step} of {total}, learning rate {rate:.3g}")
    setup.ranks.share(state.tensors)
    return checkpoints.shared(begun, setup.ranks), metrics


@contextmanager
def failures_told(run: Run, batch_size: int, reached: Callable[[], int]) -> Iterator[None]:
    """Where memory or the device fails after the step ``reached``, say what to do: CartlError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise CartlError(
            f"out of memory at batch size {batch_size}; start a new run with "
            f"--batch-size {max(2, batch_size // 2)}"
        ) from None
    except torch.AcceleratorError as error:
        raise CartlError(
            f"device failed after step {reached()} ({error}); go on with: "
            f"{checkpoints.resuming(run)}"
        ) from None
