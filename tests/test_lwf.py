"""Learning without Forgetting: the loss, its two phases, and that a run of it goes on exactly."""

import copy
import json
import signal
from pathlib import Path
from typing import Any, get_args

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cartl_cli.core.choices import FreezeBatchNorm
from cartl_cli.core.config import TransferConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.split import DataSet
from cartl_cli.core.method.adversarial_training import NaturalTraining
from cartl_cli.core.method.keeping import l1_distance
from cartl_cli.core.method.objective import Objective
from cartl_cli.core.models.blocks import BlockModel, eval_mode
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runtime.ranks import EVERYTHING
from cartl_cli.core.training.loop import sgd
from cartl_cli.core.training.target_model import prepare
from tests import tiny
from tests.conftest import TINY_TRANSFER, Command
from tests.fitting import fitted
from tests.processes import Sabotage, run

CASES = get_args(FreezeBatchNorm)


def settings(**changes: Any) -> TransferConfig:
    return configure(
        TransferConfig, {"lwf_lambda": 0.1, "epochs": 2, "batch_size": 8, "lr": 0.05}, changes
    )


def entering(model: BlockModel, images: Tensor) -> Tensor:
    """What enters the classifier (B, d)."""
    return model.stages(model.features(images, 0), 0)[-1]


def prepared(
    source: BlockModel, config: TransferConfig, k: int, head_steps: int = 0
) -> tuple[BlockModel, Objective]:
    """A target model of three classes, and what its training minimises."""
    model = copy.deepcopy(source)
    return model, prepare(model, source.eval(), config, k, 3, head_steps).objective


def after(
    model: BlockModel, data: DataSet, config: TransferConfig, objective: Objective
) -> dict[str, Tensor]:
    """The state after training in float32, and the momentum of what was trained."""
    optimizer = sgd(model, config)
    fitted(model, data.train, config, objective, optimizer=optimizer)
    momentum = {
        f"momentum {name}": optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return {**model.state_dict(), **momentum}


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


def test_the_distance_is_the_mean_of_the_l1_norms_by_hand() -> None:
    tuned, source = torch.tensor([[1.0, -2.0], [0.0, 4.0]]), torch.tensor([[0.0, 1.0], [0.0, 4.5]])
    assert l1_distance(tuned, source).mean().item() == pytest.approx((1 + 3 + 0 + 0.5) / 2)
    draws = torch.Generator().manual_seed(0)
    tuned, source = (torch.randn(6, 10, generator=draws) for _ in range(2))
    norms = numpy.linalg.norm(tuned.double().numpy() - source.double().numpy(), ord=1, axis=1)
    assert l1_distance(tuned, source).mean().item() == pytest.approx(norms.mean())
    assert l1_distance(tuned.bfloat16(), source.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("arch", ["wrn-10-1", "resnet-18"])
def test_what_is_embedded_is_what_enters_the_classifier(arch: str, images: Tensor) -> None:
    torch.manual_seed(0)
    model = build_model(arch, 4).eval()
    entered: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, given: entered.append(given[0]))
    with torch.no_grad():
        model(images)
        assert torch.equal(entering(model, images), entered[0])
    assert entered[0].shape == (8, model.head.in_features)


def test_the_loss_is_that_of_the_paper_by_an_independent_formula(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    """CE in training mode, distance to the source's features in evaluation mode, in float64."""
    source = copy.deepcopy(model).eval()
    tuned, objective = prepared(source, settings(lwf_lambda=0.3), 5)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.1)
    twin = copy.deepcopy(tuned)
    found = objective(images, labels % 3, 0, EVERYTHING)

    entered: list[Tensor] = []
    for network in (twin, copy.deepcopy(source)):
        network.head.register_forward_pre_hook(
            lambda module, given: entered.append(given[0].detach())
        )
        logits = network(images).double()
        if network is twin:
            log_p = logits - logits.exp().sum(1, keepdim=True).log()
            expected = -log_p[torch.arange(8), labels % 3].mean().item()
    z, z0 = (features.double().numpy() for features in entered)
    expected += 0.3 * sum(abs(z[i] - z0[i]).sum() for i in range(8)) / 8
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)
    assert abs(z - z0).sum() > 1


def test_the_source_gets_no_gradient_and_stays_as_it_is(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    source = copy.deepcopy(model).eval()
    before = copy.deepcopy(source.state_dict())
    tuned, objective = prepared(source, settings(), 5)
    objective(images, labels % 3, 0, EVERYTHING).loss.backward()
    assert all(parameter.grad is None for parameter in source.parameters())
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    assert not any(module.training for module in source.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("freeze_bn", CASES)
def test_the_first_phase_changes_the_classifier_and_not_a_bit_else(
    model: BlockModel, data: DataSet, freeze_bn: FreezeBatchNorm
) -> None:
    config = settings(freeze_bn=freeze_bn)
    tuned, objective = prepared(model, config, 5, head_steps=1000)
    before = copy.deepcopy(tuned.state_dict())
    found = after(tuned, data, config, objective)
    changed = {name for name in before if not same_bytes(before[name], found[name])}
    assert changed == {"blocks.4.linear.weight", "blocks.4.linear.bias"}
    still = {name for name, t in found.items() if name.startswith("momentum") and not t.any()}
    assert still == {n for n in found if n.startswith("momentum") and "linear" not in n}


def test_the_second_phase_tunes_the_last_k_blocks(model: BlockModel, data: DataSet) -> None:
    """Of two epochs, four batches each, the first is the classifier's alone."""
    config = settings()
    states = []
    for head_steps in (4, 8):
        tuned, objective = prepared(model, config, 3, head_steps)
        states.append(after(tuned, data, config, objective))
    changed = {
        name.split(".")[1]
        for name in states[0]
        if name.endswith("weight") and not torch.equal(states[0][name], states[1][name])
    }
    assert changed == {"2", "3", "4"}


@pytest.mark.parametrize("freeze_bn", CASES)
def test_without_distance_and_first_phase_it_is_plain_fine_tuning_byte_for_byte(
    model: BlockModel, data: DataSet, freeze_bn: FreezeBatchNorm
) -> None:
    config = settings(lwf_lambda=0, freeze_bn=freeze_bn)
    tuned, objective = prepared(model, config, 3)
    ours = after(tuned, data, config, objective)
    plain, _ = prepared(model, config, 3)
    theirs = after(plain, data, config, NaturalTraining(plain))
    assert ours.keys() == theirs.keys()
    assert all(same_bytes(ours[name], theirs[name]) for name in ours)


def test_a_larger_weight_keeps_the_features_nearer_to_the_sources(
    model: BlockModel, data: DataSet
) -> None:
    images = data.evaluation.images.float() / 255
    found = []
    for weight in (0.0, 0.1, 10.0):
        config = settings(lwf_lambda=weight, epochs=8, lr=0.01)
        tuned, objective = prepared(model, config, 5)
        after(tuned, data, config, objective)
        with torch.no_grad(), eval_mode(tuned):
            far = l1_distance(entering(tuned, images), entering(model, images))
            found.append(far.mean().item())
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.6 * found[0]


def method_of(config: TransferConfig) -> str:
    return config.look(None).label.lower()


def test_defaults_are_those_of_the_method() -> None:
    config = configure(TransferConfig, {"lwf_lambda": "0.01"})
    assert (method_of(config), config.frozen_bn, config.head_phase) == ("lwf", "none", 30)
    assert settings(epochs=7).head_phase == 3
    assert settings(head_first=0).head_phase == 0
    assert TransferConfig().head_phase == TransferConfig(neft_beta=0.4).head_phase == 0
    assert method_of(TransferConfig()) == "vanilla"
    assert method_of(TransferConfig(neft_beta=0.4)) == "neft"


def test_the_command_says_the_method_and_its_number(cartl: Command, runs_dir: Path) -> None:
    where = ("--runs-dir", "runs")
    transfer = ("transfer", "--source", runs_dir / "source", *TINY_TRANSFER.split(), *where)
    for arguments, title in (
        (
            ["--lwf-lambda", "0.02"],
            "LwF, λ = 0.02, first 1 of 2 epochs the classifier alone frozen: stem; tuned",
        ),
        (["--lwf-lambda", "0.02", "--head-first", "0"], "LwF, λ = 0.02 frozen: stem; tuned: "),
        (["--neft-beta", "0.4"], "NEFT, β = 0.4 frozen: stem, blocks 1–2; tuned: blocks 3–5"),
        ([], "vanilla frozen: stem, blocks 1–2; tuned: blocks 3–5"),
    ):
        done = cartl(*transfer, *arguments)
        assert done.code == 0, done.err
        assert title in " ".join(done.out.split())
        assert all(len(line) <= 100 for line in done.out.splitlines())
    manifest = read_run(Path("runs/001-transfer")).manifest
    assert (manifest.k, manifest.model.convex_blocks) == (5, 0)


def test_the_command_without_distance_makes_the_vanilla_model(
    cartl: Command, runs_dir: Path
) -> None:
    transfer = ("transfer", "--source", runs_dir / "source", *TINY_TRANSFER.split(), "--json")
    lwf = ("--lwf-lambda", 0, "--head-first", 0, "--k", 3, "--freeze-bn", "all")
    heavy = ("--lwf-lambda", 0.5, *lwf[2:])
    found = [json.loads(cartl(*transfer, *given).out) for given in (lwf, (), heavy)]
    assert [f["method"] for f in found] == ["lwf", "vanilla", "lwf"]
    assert [f["lwf_lambda"] for f in found] == [0, None, 0.5]
    digests = [read_run(Path(f["folder"])).manifest.weights for f in found]
    assert digests[0] is not None
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


LWF = f"transfer {tiny.TRAINED} --source source --lwf-lambda 0.1 --name lwf".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images, and ``straight/runs`` with a source run and an LwF run."""
    root = tmp_path_factory.mktemp("lwf")
    tiny.make_images(root / "images")
    (root / "base").mkdir()
    done = run([*tiny.command("pretrain")[:-1], "source"], root / "base")
    assert done.code == 0, done.err
    done = run(LWF, tiny.scene(root / "base" / "runs", root / "straight"))
    assert done.code == 0, done.err
    return root


@pytest.fixture
def folder(place: Path, tmp_path: Path) -> Path:
    return tiny.scene(place / "base" / "runs", place / tmp_path.name)


@pytest.mark.parametrize(
    ("step", "sent"),
    [(2, signal.SIGKILL), (2, signal.SIGTERM), (3, signal.SIGKILL), (4, signal.SIGTERM)],
    ids=["first phase", "first phase, told", "between", "second phase, told"],
)
def test_a_run_goes_on_exactly_from_either_phase(
    place: Path, folder: Path, step: int, sent: int
) -> None:
    stopped = run(LWF, folder, Sabotage(step, sent))
    assert stopped.code == (-9 if sent == signal.SIGKILL else 143), stopped.err
    went_on = run(["transfer", "--resume", "lwf"], folder)
    assert went_on.code == 0, went_on.err
    assert f"going on after step {step} of 6" in went_on.err
    assert tiny.left(folder / "runs" / "lwf") == tiny.left(place / "straight" / "runs" / "lwf")


def test_only_a_fixed_first_phase_can_be_extended(folder: Path) -> None:
    assert run(LWF, folder).code == 0
    longer = ["transfer", "--resume", "lwf", "--epochs", "4", "--extend"]
    refused = run(longer, folder)
    assert refused.code == 2
    assert "--extend: the classifier alone is trained for half of --epochs" in refused.err
    assert "would move from 1 to 2; start a new run" in refused.err

    fixed = [*LWF[:-1], "fixed", "--head-first", "1"]
    assert run(fixed, folder).code == 0
    longer[2] = "fixed"
    done = run(longer, folder)
    assert done.code == 0, done.err
    assert "going on after step 6 of 12" in done.err


def test_cross_entropy_is_on_the_new_classes(model: BlockModel, images: Tensor) -> None:
    tuned, objective = prepared(model, settings(lwf_lambda=0), 5, head_steps=1)
    labels = torch.arange(8) % 3
    found = objective(images, labels, 0, EVERYTHING)
    with torch.no_grad():
        logits = F.linear(entering(model, images), tuned.head.weight, tuned.head.bias)
        assert found.loss.item() == pytest.approx(F.cross_entropy(logits, labels).item())
        assert int(found.correct["clean"]) == int((logits.argmax(1) == labels).sum())
