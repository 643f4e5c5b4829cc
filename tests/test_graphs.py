"""Nothing needs what a CUDA graph gave after the next has begun, told without a GPU.

A stand-in for torch.compile behaves as such graphs do: all that the passes since the last backward
gave, gradients too, is lost when the next pass begins (here it becomes NaN), and a graph finds
parameters by their addresses.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from cartl_cli.core.attacks.judged_pgd import predict
from cartl_cli.core.config import AttackConfig, PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.split import Split, to_pixels
from cartl_cli.core.evaluation.targets import plan_of
from cartl_cli.core.evaluation.verdicts import robustness, unattacked
from cartl_cli.core.method import adversarial_training, training_attacks
from cartl_cli.core.method.objective import StepLoss
from cartl_cli.core.models import compiling
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.models.compiling import compilable, compiled_passes
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runtime import replays
from cartl_cli.core.runtime.devices import autocast_for
from cartl_cli.core.training import replayed_steps
from cartl_cli.core.training.loop import Progress, Take, Training, take_step
from cartl_cli.core.training.replayed_steps import ReplayedSteps
from cartl_cli.core.training.source_model import plan_of as training_plan
from cartl_cli.core.training.target_model import prepare
from cartl_cli.core.training.training_plan import TrainingPlan
from tests.fitting import fitted

BATCH, K, CLASSES = 8, 3, 3
CPU = torch.device("cpu")
FP32 = autocast_for(CPU, "fp32")


class Graphs:
    """What ``torch.compile`` stands for, and what it has seen."""

    def __init__(self) -> None:
        self.given: list[Tensor] = []
        self.pending = self.runs = 0
        self.places: set[tuple[int, ...]] = set()

    def compile(self, take: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        assert options == {"dynamic": False, "mode": "reduce-overhead"}

        def run(model: nn.Module, batch: Tensor, *more: Any, **named: Any) -> Tensor:
            if self.pending == 0:
                for lost in self.given:
                    lost.data.fill_(torch.nan)
                self.given.clear()
            self.runs += 1
            self.places.add(tuple(p.data_ptr() for p in [*model.parameters(), *model.buffers()]))
            weights = [p for p in model.parameters() if p.requires_grad]

            def inside(images: Tensor) -> Tensor:
                return take(model, images, *more, **named)

            found: Tensor = Graph.apply(self, inside, batch, *weights)
            return found

        return run

    def give(self, found: Tensor) -> Tensor:
        """What leaves a graph; a detached view is kept, so that ``.grad`` may become it itself."""
        self.given.append(found.detach())
        return found


class Graph(torch.autograd.Function):
    """One run of a pass, forward and, once, backward."""

    @staticmethod
    def forward(
        ctx: Any,
        graphs: Graphs,
        inside: Callable[[Tensor], Tensor],
        batch: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        with torch.enable_grad():
            images = batch.detach().requires_grad_(batch.requires_grad)
            out = inside(images)
        ctx.graphs, ctx.out, ctx.inputs = graphs, out, [images, *weights]
        graphs.pending += out.requires_grad
        found = graphs.give(out.detach())
        if not out.requires_grad:  # nothing that it comes from is trained
            ctx.mark_non_differentiable(found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.graphs.pending -= 1
        wanted = [each for each in ctx.inputs if each.requires_grad]
        found = iter(torch.autograd.grad(ctx.out, wanted, gradients[0], allow_unused=True))
        parts = [next(found) if each.requires_grad else None for each in ctx.inputs]
        return None, None, *(part if part is None else ctx.graphs.give(part) for part in parts)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Passes that are replayed as graphs, and are all gone backward through at the end."""
    found = Graphs()
    monkeypatch.setattr(torch, "compile", found.compile)
    monkeypatch.setattr(compiling, "graph_mode", lambda device: "reduce-overhead")
    for name in ("features", "classify"):
        monkeypatch.setitem(compiling.COMPILED, name, compilable(getattr(BlockModel, name)))
    yield found
    assert found.runs > 0
    assert found.pending == 0  # or torch could not tell where a step ends


@pytest.fixture
def split() -> Split:
    """24 random images of three classes."""
    draws = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (24, 3, 16, 16), generator=draws, dtype=torch.uint8)
    return Split(pixels, torch.arange(24) % CLASSES)


def trained(
    model: BlockModel,
    split: Split,
    config: PretrainConfig | TransferConfig,
    plan: TrainingPlan,
    batch_size: int,
    take: Take = take_step,
) -> list[Tensor]:
    """Weights, statistics and what else is kept after two epochs, with such passes as graphs."""

    def look(progress: Progress) -> None:
        plan.epoch_done(progress.epoch, progress.position.step)

    def wanted(step: int) -> bool:
        plan.step_done(step)
        return False

    with compiled_passes(batch_size):
        fitted(model, split, config, plan.objective, look, ("crop",), wanted, take=take)
    return [*model.state_dict().values(), *plan.state.values()]


@pytest.mark.parametrize(
    ("given", "models"),
    [
        ({}, 2),  # the model and its folded copy
        ({"fdm_lambda": 0.0}, 2),
        ({"method": "fast"}, 1),
        ({"method": "free"}, 1),
        ({"method": "trades"}, 1),
        ({"method": "natural", "fdm_lambda": 0.0}, 1),
        ({"awp_gamma": 0.01}, 2),
        ({"ema": 0.9}, 2),
    ],
    ids=str,
)
def test_pretraining_on_graphs_learns_the_same(
    given: dict[str, object], models: int, graphs: Graphs, split: Split
) -> None:
    config = configure(
        PretrainConfig,
        {"arch": "wrn-10-1", "k": K, "image_size": 16, "batch_size": BATCH, "epochs": 2},
        {"fdm_lambda": 0.005, "pgd_steps": 2, "lr": 0.01},
        given,
    )
    torch.manual_seed(0)
    plain = build_model("wrn-10-1", CLASSES).train()
    ends = []
    for model, batch_size in ((copy.deepcopy(plain), 0), (plain, BATCH)):
        setup = mock.Mock(device=CPU, split=split, autocast=FP32, config=config)
        setup.total_steps = 6 * config.steps_per_batch
        plan = training_plan(model, config, setup, pytest.fail)
        ends.append(trained(model, split, config, plan, batch_size))
    assert all(tensor.isfinite().all() for tensor in ends[1])
    torch.testing.assert_close(ends[1], ends[0])
    assert len(graphs.places) == models


@pytest.mark.parametrize(
    "given",
    [{}, {"freeze_bn": "none"}, {"neft_beta": 0.4, "freeze_bn": "affine"}, {"lwf_lambda": 0.1}],
    ids=str,
)
def test_transfer_on_graphs_learns_the_same(
    given: dict[str, object], graphs: Graphs, split: Split
) -> None:
    config = configure(TransferConfig, {"batch_size": BATCH, "epochs": 2}, given)
    torch.manual_seed(0)
    original = build_model("wrn-10-1", CLASSES).train()
    ends = []
    for batch_size in (0, BATCH):
        model, source = copy.deepcopy(original), copy.deepcopy(original).eval()
        plan = TrainingPlan(prepare(model, source, config, K, CLASSES, head_steps=3).objective)
        ends.append(trained(model, split, config, plan, batch_size))
    assert all(tensor.isfinite().all() for tensor in ends[1])
    torch.testing.assert_close(ends[1], ends[0])
    assert len(graphs.places) == 1


@pytest.mark.parametrize("attack", ["pgd", "pgd-margin", "apgd-ce", "apgd-t", "feature"])
def test_attacks_on_graphs_give_the_same_verdicts(
    attack: str, graphs: Graphs, split: Split, model: BlockModel
) -> None:
    plan = plan_of(AttackConfig(attack=(attack,), pgd_steps=6, eps=(0.01,), batch_size=BATCH), K)
    split = replace(split, labels=predict(model.eval(), to_pixels(split.images)).argmax(1))
    found = []
    for batch_size in (0, BATCH):
        verdicts = unattacked(model, split, plan)
        with compiled_passes(batch_size):
            for _ in robustness(model, split, plan, FP32, verdicts):
                pass
        found.append(verdicts)
    plain, replayed = found
    assert plain.clean.all()
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(replayed.tensors()[name], tensor, msg=name)


class Recorder:
    """What ``recorded`` stands for: a step taken again by what Python knew when it was captured.

    What belongs to a step comes from its places alone, as in a graph.
    """

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        self.state = state
        self.replays = 0

    def recorded(self, work: Callable[[], StepLoss]) -> tuple[StepLoss, Callable[[], None]]:
        before = [tensor.clone() for tensor in self.state()]
        found, places = work(), replays._captured.get()
        assert places is not None
        for tensor, kept in zip(self.state(), before, strict=True):
            tensor.data.copy_(kept)

        def replay() -> None:
            self.replays += 1
            given = iter(places.tensors)
            with (
                mock.patch.object(adversarial_training, "noise_of", side_effect=given),
                mock.patch.object(training_attacks, "number_of", side_effect=given),
            ):
                new = work()
            found.loss.data.copy_(new.loss)
            for name, count in new.correct.items():
                found.correct[name].copy_(count)

        return found, replay


def by_replays(
    monkeypatch: pytest.MonkeyPatch, model: BlockModel, plan: TrainingPlan
) -> tuple[Recorder, Take]:
    """A way to take the steps of a plan, and what it takes them by."""
    optimizers: list[torch.optim.SGD] = []

    def state() -> list[Tensor]:
        momenta = [each["momentum_buffer"] for each in optimizers[0].state.values()]
        return [*model.state_dict().values(), *plan.state.values(), *momenta]

    recorder = Recorder(state)
    monkeypatch.setattr(replayed_steps, "recorded", recorder.recorded)
    steps = ReplayedSteps(plan.phase, plan.head_steps, BATCH, pytest.fail)

    def take(training: Training, *more: Any) -> StepLoss:
        optimizers[:] = [training.optimizer]
        return steps(training, *more)

    return recorder, take


@pytest.mark.parametrize(
    ("given", "replayed"),
    [
        ({}, 9),
        ({"eps_warmup": 1.0}, 6),  # two phases: of one and of two steps of PGD
        ({"method": "fast", "eps_warmup": 1.0}, 6),
        ({"method": "free", "eps_warmup": 1.0, "epochs": 1}, 6),
        ({"method": "trades"}, 9),
        ({"method": "natural", "fdm_lambda": 0.0}, 9),
        ({"awp_gamma": 0.01}, 9),
        ({"ema": 0.9}, 9),
    ],
    ids=str,
)
def test_pretraining_by_replays_learns_the_same(
    given: dict[str, object], replayed: int, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(
        PretrainConfig,
        {"arch": "wrn-10-1", "k": K, "image_size": 16, "batch_size": BATCH, "epochs": 4},
        {"fdm_lambda": 0.005, "pgd_steps": 2, "lr": 0.01, "eps_warmup": 0.0},
        given,
    )
    torch.manual_seed(0)
    plain = build_model("wrn-10-1", CLASSES).train()
    ends = []
    for model in (copy.deepcopy(plain), plain):
        setup = mock.Mock(device=CPU, split=split, autocast=FP32, config=config)
        setup.total_steps = 3 * config.epochs * config.steps_per_batch
        plan = training_plan(model, config, setup, pytest.fail)
        recorder, take = by_replays(monkeypatch, model, plan)
        take = take_step if model is not plain else take
        ends.append(trained(model, split, config, plan, 0, take))
    torch.testing.assert_close(ends[1], ends[0])
    assert recorder.replays == replayed


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"neft_beta": 0.4, "freeze_bn": "affine"},
        {"lwf_lambda": 0.1},
        {"method": "latent", "eps_warmup": 0.5},
        {"method": "at", "pgd_steps": 2},
        {"head_first": 2},
    ],
    ids=str,
)
def test_transfer_by_replays_learns_the_same(
    given: dict[str, object], split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(TransferConfig, {"batch_size": BATCH, "epochs": 4, "k": K}, given)
    torch.manual_seed(0)
    original = build_model("wrn-10-1", CLASSES).train()
    ends = []
    for replaying in (False, True):
        model, source = copy.deepcopy(original), copy.deepcopy(original).eval()
        head_steps = 3 * config.head_phase
        tuned = prepare(model, source, config, K, CLASSES, head_steps, total_steps=12, radius=0.1)
        plan = TrainingPlan(tuned.objective, head_steps=head_steps, phase=tuned.phase)
        recorder, take = by_replays(monkeypatch, model, plan)
        ends.append(trained(model, split, config, plan, 0, take if replaying else take_step))
    torch.testing.assert_close(ends[1], ends[0])
    assert recorder.replays == (6 if head_steps else 9)


def test_a_step_that_cannot_be_captured_is_taken_as_it_is(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(work: Callable[[], StepLoss]) -> None:
        for parameter in models[1].parameters():
            parameter.grad = torch.ones_like(parameter)  # as half a step leaves them
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    monkeypatch.setattr(replayed_steps, "recorded", recorded)
    config = configure(PretrainConfig, {"arch": "wrn-10-1", "k": K, "method": "natural"})
    config = config.model_copy(update={"batch_size": BATCH, "epochs": 2, "image_size": 16})
    torch.manual_seed(0)
    model = build_model("wrn-10-1", CLASSES).train()
    models, ends = [model, copy.deepcopy(model)], []
    said: list[str] = []
    for each, replaying in zip(models, (False, True), strict=True):
        setup = mock.Mock(device=CPU, split=split, autocast=FP32, config=config, total_steps=6)
        plan = training_plan(each, config, setup, pytest.fail)
        take = ReplayedSteps(plan.phase, 0, BATCH, said.append) if replaying else take_step
        ends.append(trained(each, split, config, plan, 0, take))
    torch.testing.assert_close(ends[1], ends[0])
    reason = "operation not permitted when stream is capturing"
    assert said == [f"note: steps cannot be replayed as a graph ({reason}); going on without"]
