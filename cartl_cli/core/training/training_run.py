"""A training as a run: what it begins with, and ``fit`` from the newest checkpoint to the end."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from cartl_cli.core.config import PretrainConfig, TrainingConfig, TransferConfig
from cartl_cli.core.config.configure import fitting
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.data_sets import augmentation, choice_of, described, load_data_set, uneven
from cartl_cli.core.data.split import DataSet, Split, fraction_of
from cartl_cli.core.errors import CartlError, RunError, UsageError
from cartl_cli.core.method.losses import class_weights
from cartl_cli.core.method.objective import Objective
from cartl_cli.core.method.training_attacks import ramp
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS, TrainingAttack
from cartl_cli.core.registry.transfer_methods import TRANSFER_METHODS, TransferMethod
from cartl_cli.core.runs import checkpoints, writer
from cartl_cli.core.runs.command_line import resuming
from cartl_cli.core.runs.manifest import (
    Manifest,
    ModelSpec,
    Position,
    Run,
    data_record,
    source_record,
)
from cartl_cli.core.runs.metrics import METRICS
from cartl_cli.core.runs.results import TrainingResults
from cartl_cli.core.runs.weights import from_bytes
from cartl_cli.core.runs.writer import Session
from cartl_cli.core.runtime import devices
from cartl_cli.core.runtime.ranks import Ranks
from cartl_cli.core.runtime.stopping import Asked, stop_signals
from cartl_cli.core.training.gradient_averaging import averaged
from cartl_cli.core.training.loop import Progress, Training, count_steps, fit, learning_rate, sgd
from cartl_cli.core.training.replayed_steps import compiled_steps
from cartl_cli.core.training.training_plan import TrainingPlan, TrainingSetup

Settings = TypeVar("Settings", PretrainConfig, TransferConfig)

MODEL = "model.safetensors"
TRAIN = "train.safetensors"  # the optimizer's momentum, the tensors of the training's own


def set_up(
    config: Settings,
    preprocessing: Preprocessing,
    session: Session,
    fraction: float = 1.0,
    replays: int = 1,
) -> TrainingSetup:
    """Device, place and data of a training, checked before any work; tells the data's notes.

    It uses a ``fraction`` of the training images, each batch for ``replays`` steps in a row. The
    settings of the setup are those given, with batches no larger than these images. Raises
    UsageError or DataError.
    """
    ranks = session.ranks
    device = devices.resolve_device(config.device, ranks)
    devices.keep_freed_memory()
    check_division(config, ranks, device)
    writer.check_place(session)
    with ranks.in_turn():
        data: DataSet = load_data_set(choice_of(config), preprocessing, session.place)
    split = fraction_of(data, fraction, config.seed)
    if config.batch_size > len(split):
        session.say(
            f"note: --batch-size {config.batch_size} is more than the {len(split)} training "
            f"images; batches have {len(split)}"
        )
    config = fitting(config, len(split))
    check_division(config, ranks, device)  # of the smaller batches, too
    precision = devices.resolve_precision(config.precision, device)
    total_steps = count_steps(config, len(split), replays)
    counted: list[str] = balanced(data, split) if config.balance else uneven(data, split)
    for note in (*described(data), *counted, *data.notes):
        session.say(note)
    return TrainingSetup(
        config=config,
        data=data,
        split=split,
        augment=augmentation(config.dataset, config.augment, preprocessing.image_size),
        device=device,
        precision=precision,
        autocast=devices.autocast_for(device, precision),
        compile=devices.resolve_compile(config.compile, device, total_steps, ranks.size),
        total_steps=total_steps,
        replays=replays,
        ranks=ranks,
    )


def balanced(data: DataSet, split: Split) -> list[str]:
    """How much an image of the rarest and of the commonest class counts under ``--balance``."""
    counts = split.counts(len(data.classes))
    weights = class_weights(split.labels, len(data.classes))
    ends = (counts.index(end) for end in (min(counts), max(counts)))
    told = [f"{data.classes[one]!r} counts {weights[one]:.3g} ({counts[one]:,})" for one in ends]
    return [f"each class counts alike in the loss: an image of {', one of '.join(told)}"]


def weights_of_classes(setup: TrainingSetup) -> Tensor | None:
    """The weight of each class (classes,) that the settings ask for, if they ask for any."""
    if not setup.config.balance:
        return None
    return class_weights(setup.split.labels, len(setup.data.classes)).to(setup.device)


def check_division(config: TrainingConfig, ranks: Ranks, device: torch.device) -> None:
    """Refuse what many processes, or these devices, cannot do. Raises UsageError."""
    if config.batch_size < 2 * ranks.size:
        raise UsageError(
            f"--batch-size: {config.batch_size} images cannot be divided over {ranks.size} "
            f"processes; use {2 * ranks.size} or more"
        )
    methods: Mapping[str, TrainingAttack | TransferMethod] = TRAINING_ATTACKS
    if isinstance(config, TransferConfig):
        methods = TRANSFER_METHODS
    if ranks.size > 1:
        if methods[config.method].one_process:
            *some, last = (one.name for one in methods.values() if not one.one_process)
            raise UsageError(
                f"--method {config.method}: one process alone; use {', '.join(some)} or {last}"
            )
        if config.awp_gamma > 0:
            raise UsageError("--awp-gamma: one process alone; drop it")
    if ranks.size > 1 and config.compile:
        raise UsageError("--compile: one process alone; drop it")
    if config.sync_bn and device.type != "cuda":
        raise UsageError(f"--sync-bn: works on CUDA devices alone, not on {device.type}; drop it")


@contextmanager
def begun(
    session: Session,
    setup: TrainingSetup,
    model: BlockModel,
    plan: TrainingPlan,
    spec: ModelSpec,
    k: int,
    source: Run | None = None,
    radius: float | None = None,
) -> Iterator["TrainingRun"]:
    """A run, new or to go on with, that a signal can stop; see ``writer.written``.

    ``spec`` describes the model, whose sub-model has k blocks; ``source`` is the run it came from;
    ``radius`` that of ``--method latent``.
    """
    config = setup.config
    data = data_record(setup.data, setup.augment)
    draft = Manifest(
        kind="pretrain" if isinstance(config, PretrainConfig) else "transfer",
        config=config,
        k=k,
        model=spec,
        data=data.model_copy(update={"train_images": len(setup.split)}),
        source=source and source_record(source),
        radius=radius,
        versions=devices.versions(setup.device, setup.precision, setup.ranks.size, setup.compile),
    )
    with (
        writer.written(session, draft, state_size(model, plan)) as run,
        stop_signals(quiet=setup.ranks.size > 1) as asked,
    ):
        origin = f"{spec.arch} on {setup.data.name}" if source is None else f"from {source.name}"
        session.say(f"run {run.name}: {origin}, {len(setup.split):,} training images")
        yield TrainingRun(run, session, asked)


@dataclass(frozen=True)
class TrainingRun:
    """A run that this process trains; ``asked`` notes a signal that asks to stop."""

    run: Run
    session: Session
    asked: Asked

    def train(
        self,
        model: BlockModel,
        plan: TrainingPlan,
        setup: TrainingSetup,
        report: Callable[[Progress], None],
    ) -> Position | None:
        """Train to the last step, from the newest checkpoint if there is one.

        Of many processes the first alone gets the position. The end is byte for byte that of a
        training that was never interrupted, on the same machine with the same versions. Raises
        StoppedError once a signal is asked for and the state is saved, DivergedError, StorageError,
        or CartlError where memory or the device fails.
        """
        config, ranks, run = setup.config, setup.ranks, self.run
        if config.sync_bn and ranks.size > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        state = TrainingState(model, sgd(model, config), plan)
        last, metrics = self._begin(state, setup)
        objective = plan.objective
        if ranks.size > 1:
            objective = averaged(model, objective, ranks, setup.device, plan.head_steps)
        training = training_of(model, state.optimizer, objective, setup)
        keeper = checkpoints.Keeper(run, last, self.asked, ranks)
        failed = self.session.say if config.compile is None else None  # else it is an error
        with (
            failures_told(run, config.batch_size, lambda: last.step),
            compiled_steps(plan, setup, failed, self.session.say) as take,
        ):
            for step in fit(training, last, take):
                plan.step_done(step.done)
                if not (keeper.step_done(step.done) or step.epoch_ended):
                    continue
                progress = step.look()
                last = progress.position
                report(progress)
                if step.epoch_ended:
                    began = time.monotonic()
                    measured = plan.epoch_done(progress.epoch, last.step)
                    metrics += json.dumps(progress.metrics | measured).encode() + b"\n"
                    if ranks.rank == 0:
                        writer.write_metrics(run, metrics)
                    spent = last.seconds + time.monotonic() - began
                    last = last.model_copy(update={"seconds": spent})
                if keeper.is_due(last, setup.total_steps):
                    keeper.keep(last, state.files(metrics))
                keeper.stop_if_asked(f"at step {last.step} of {setup.total_steps}")
        return last if ranks.rank == 0 else None

    def stop_if_asked(self, where: str) -> None:
        """Raise StoppedError if a signal has come; the state must be saved."""
        checkpoints.stop_if_asked(self.run, self.asked.signal, where)

    def finish(self, model: BlockModel, results: TrainingResults, last: Position) -> Run:
        """Keep the weights and the results; the run is complete."""
        checkpoints.prune(self.run, last.step)  # first: nothing may fail once the run is completed
        return writer.finish_model(self.run, model, results)

    def _begin(self, state: "TrainingState", setup: TrainingSetup) -> tuple[Position, bytes]:
        """Where to begin, and the metrics so far: at the newest checkpoint, taken into ``state``.

        Of many processes the first one reads it, and the others get what it has read.
        """
        position, metrics, total = Position(), b"", setup.total_steps
        say, config = self.session.say, setup.config
        if setup.ranks.rank == 0 and (found := checkpoints.newest(self.run, say)):
            position, files = found
            metrics = state.restore(self.run, position, files)
            if position.step < total:
                rate = learning_rate(config, position.step, total // config.epochs)
                part = attack_grown(config, position.step, total)
                attack = "" if part == 1 else f", the attack at {100 * part:.0f} % of its full size"
                step = f"{position.step} of {total}"
                say(f"going on after step {step}, learning rate {rate:.3g}{attack}")
        setup.ranks.share(state.tensors)
        return checkpoints.shared(position, setup.ranks), metrics


def attack_grown(config: TrainingConfig, step: int, total: int) -> float:
    """The part (0..1] of its full size that eps, or the radius, has at a step of the training."""
    if isinstance(config, TransferConfig):
        attacked = "eps_warmup" in config.tuning.takes
    else:
        attacked = config.method != "natural"
    return ramp(step, total, config.eps_warmup) if attacked else 1.0


def training_of(
    model: BlockModel, optimizer: torch.optim.SGD, objective: Objective, setup: TrainingSetup
) -> Training:
    """What ``fit`` is to do, from a setup."""
    return Training(
        model,
        optimizer,
        setup.split.to(setup.device),
        setup.config,
        objective,
        setup.autocast,
        setup.augment,
        setup.ranks,
        setup.replays,
    )


@dataclass(frozen=True)
class TrainingState:
    """What a step changes: the model, the optimizer's momentum, the plan's own tensors."""

    model: BlockModel
    optimizer: torch.optim.SGD
    plan: TrainingPlan

    @property
    def momentum(self) -> dict[str, Tensor]:
        """The momentum of each parameter that is trained, by its name; none if there is none."""
        if self.optimizer.defaults["momentum"] == 0:
            return {}
        return {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in trained(self.model).items()
        }

    @property
    def tensors(self) -> list[Tensor]:
        """All of it."""
        model = self.model.state_dict()
        return [*model.values(), *self.momentum.values(), *self.plan.state.values()]

    def files(self, metrics: bytes) -> checkpoints.Contents:
        """All of it as files, beside the ``metrics`` so far."""
        return {
            MODEL: self.model.state_dict(),
            TRAIN: self.momentum | self.plan.state,
            METRICS: metrics,
        }

    def restore(self, run: Run, position: Position, files: Mapping[str, bytes]) -> bytes:
        """Take over a checkpoint of a run; give back its metrics. Raises RunError."""
        where = run.folder / f"ckpt-{position.step:06d}"
        if files.keys() != {MODEL, TRAIN, METRICS}:
            raise RunError(f"checkpoint is not that of a training: {where}")
        model, updated = self.model.state_dict(), self.momentum | self.plan.state
        stored = from_bytes(files[TRAIN], updated, where)
        self.model.load_state_dict(from_bytes(files[MODEL], model, where))
        for name, tensor in updated.items():
            tensor.copy_(stored[name])
        return files[METRICS]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that take a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def state_size(model: BlockModel, plan: TrainingPlan) -> int:
    """Bytes of one checkpoint: the model's state, the momentum of what is trained, the plan's."""
    tensors = [*model.state_dict().values(), *trained(model).values(), *plan.state.values()]
    return sum(t.numel() * t.element_size() for t in tensors)


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
            f"device failed after step {reached()} ({error}); go on with: {resuming(run)}"
        ) from None
