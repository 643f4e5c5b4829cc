"""Compiled passes: which are compiled, that they change nothing but rounding, how they fail."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn import functional as F

from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.errors import CartlError, UsageError
from cartl_cli.core.method.losses import cross_entropy
from cartl_cli.core.method.pgd import ascent
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.models.compiling import COMPILED, compilable, compiled_passes, graph_mode
from cartl_cli.core.models.folding import folded
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runtime import devices
from cartl_cli.core.runtime.devices import WORTHWHILE, resolve_compile, resolve_device
from cartl_cli.core.runtime.ranks import Ranks
from cartl_cli.core.training.training_run import check_division
from tests.conftest import TINY_PRETRAIN, Command

FULL, CUT = 8, 2

# torch looks at the gradient of every tensor that enters a compiled pass
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture
def compiled_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that reach a compiled pass, which is the pass itself here."""
    sizes: list[int] = []

    def fake(take: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        def run(model: nn.Module, batch: Tensor, *more: object, **named: object) -> Tensor:
            sizes.append(len(batch))
            return take(model, batch, *more, **named)

        return run

    monkeypatch.setattr(torch, "compile", fake)
    return sizes


@pytest.fixture
def linear() -> nn.Linear:
    return nn.Linear(3, 2)


def passing() -> Callable[[nn.Module, Tensor], Tensor]:
    @compilable
    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        found: Tensor = model(batch)
        return found

    return forward


def fresh() -> dict[str, Any]:
    """The passes of a network, as if none had been compiled yet."""
    return {name: compilable(getattr(BlockModel, name)) for name in ("features", "classify")}


def test_full_batches_with_gradients_are_compiled_and_no_others(
    compiled_sizes: list[int], linear: nn.Linear
) -> None:
    forward, batch = passing(), torch.rand(FULL, 3)
    forward(linear, batch)
    forward(linear, batch[:0])
    assert compiled_sizes == []  # nobody asked
    with compiled_passes(FULL):
        forward(linear, batch)
        assert compiled_sizes == [FULL]
        forward(linear, batch[:-1])  # in training mode images see each other through batch norm
        forward(linear, torch.rand(FULL + 1, 3))
        with torch.no_grad():
            forward(linear, batch)  # as verdicts are taken
    forward(linear, batch)
    assert compiled_sizes == [FULL]


def test_in_evaluation_mode_a_nearly_full_batch_is_filled_up(
    compiled_sizes: list[int], linear: nn.Linear
) -> None:
    forward = passing()
    linear.eval()
    with compiled_passes(FULL):
        for count in range(1, FULL + 1):
            batch = torch.rand(count, 3, requires_grad=True)
            found = forward(linear, batch)
            torch.testing.assert_close(found, linear(batch))
            (gradient,) = torch.autograd.grad(found.sum(), batch)
            torch.testing.assert_close(gradient, linear.weight.sum(0).expand(count, 3))
    assert compiled_sizes == [FULL] * 3  # of 6, 7 and 8


def test_what_cannot_be_compiled_is_one_line(
    monkeypatch: pytest.MonkeyPatch, linear: nn.Linear
) -> None:
    def broken(take: object, **options: object) -> Callable[..., Tensor]:
        def run(*arguments: object) -> Tensor:
            raise TorchDynamoException("no compiler here\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with compiled_passes(FULL), pytest.raises(CartlError) as error:
        passing()(linear, torch.rand(FULL, 3))
    assert str(error.value) == "--compile: torch.compile failed (no compiler here); drop it"

    told: list[str] = []
    batch = torch.rand(FULL, 3)
    with compiled_passes(FULL, told.append):  # where nobody asked for it
        for _ in range(2):
            assert torch.equal(passing()(linear, batch), linear(batch))
    assert told == ["note: torch.compile failed (no compiler here); going on without it"]


def test_by_default_long_trainings_on_cuda_are_compiled() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_compile(None, cuda, WORTHWHILE, 1)
    assert not resolve_compile(None, cuda, WORTHWHILE - 1, 1)
    assert not resolve_compile(None, cuda, WORTHWHILE, 2)
    assert not resolve_compile(None, cpu, WORTHWHILE, 1)
    for device in (cpu, cuda):
        assert resolve_compile(True, device, 1, 1)
        assert not resolve_compile(False, device, WORTHWHILE, 1)


def test_passes_are_replayed_as_graphs_on_cuda_alone() -> None:
    assert graph_mode(torch.device("cuda", 1)) == "reduce-overhead"
    assert graph_mode(torch.device("cpu")) is None


@pytest.fixture(scope="module")
def _compiler() -> Iterator[None]:
    """torch's own compiler, left as it was found."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_compiler")
def test_a_compiled_step_differs_from_the_plain_one_by_rounding() -> None:
    """Logits, the gradients of pixels and of weights, and the statistics of batch norm."""
    torch.manual_seed(0)
    plain = build_model("wrn-10-1", 5).train()
    images, labels = torch.rand(FULL, 3, 8, 8), torch.randint(5, (FULL,))
    fast = copy.deepcopy(plain)

    def step(model: Any) -> tuple[Tensor, Tensor]:
        logits = model.classify(model.features(images, CUT), CUT)
        F.cross_entropy(logits, labels).backward()
        return ascent(folded(model), images, labels, cross_entropy)

    wanted = step(plain)
    with compiled_passes(FULL):
        found = step(fast)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for (name, one), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    statistics = list(plain.buffers())
    torch.testing.assert_close(list(fast.buffers()), statistics, rtol=1e-4, atol=1e-5)


def test_the_commands_compile_where_they_are_asked_to(
    cartl: Command, compiled_sizes: list[int]
) -> None:
    small = "--attack pgd --pgd-steps 2 --checks off --limit 200 --batch-size 8 --json"
    with mock.patch.dict(COMPILED, fresh()):
        for command in (f"pretrain {TINY_PRETRAIN}", "transfer --epochs 1", f"attack {small}"):
            assert cartl(*command.split()).code == 0
            assert compiled_sizes == []
        for command in (f"pretrain {TINY_PRETRAIN}", "transfer --epochs 1", f"attack {small}"):
            assert cartl(*command.split(), "--compile").code == 0
            assert set(compiled_sizes) == {8 if "attack" in command else 64}
            compiled_sizes.clear()
    for name, compiled in (("003-attack", None), ("004-pretrain", "yes"), ("006-attack", "yes")):
        assert read_run(Path("runs") / name).manifest.versions.get("compile") == compiled


def test_a_training_that_nobody_asked_to_compile_goes_on_without(
    cartl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> Callable[..., Tensor]:
        raise TorchDynamoException("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(devices, "resolve_compile", lambda asked, *more: asked is not False)
    with mock.patch.dict(COMPILED, fresh()):
        done = cartl("pretrain", *TINY_PRETRAIN.split())
        assert done.code == 0
        assert done.err.count("torch.compile failed") == 1
        done = cartl("pretrain", *TINY_PRETRAIN.split(), "--no-compile")
        assert done.code == 0
        assert "torch.compile" not in done.err


def test_many_processes_do_not_compile() -> None:
    ranks = Ranks(rank=0, size=2, local=0)
    with pytest.raises(UsageError, match="--compile: one process alone"):
        check_division(PretrainConfig(compile=True), ranks, resolve_device("cpu"))
