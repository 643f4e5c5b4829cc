"""The methods of adversarial training beside Madry's, each against its equation written plainly."""

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.batches import epoch_batches
from cartl_cli.core.data.split import DataSet, Split
from cartl_cli.core.method.adversarial_training import FreeTraining
from cartl_cli.core.method.losses import feature_distance, kl_divergence, trades_loss
from cartl_cli.core.method.norm_ball import normal
from cartl_cli.core.method.objective import StepLoss
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.method.training_attacks import Growing, TrainingAttack
from cartl_cli.core.method.weight_perturbation import weight_perturbation
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.registry.training_attacks import TRAINING_ATTACKS
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runtime.devices import autocast_for
from cartl_cli.core.runtime.randomness import generator, uniform_noise
from cartl_cli.core.sweeps.grid import source_method
from cartl_cli.core.training import catastrophic_overfitting, weight_average
from cartl_cli.core.training.loop import count_steps, learning_rate, replayed
from cartl_cli.core.training.source_model import adversarial_training, growing, outer_loss
from tests import tiny
from tests.conftest import TINY_TRANSFER, Command
from tests.fitting import fitted
from tests.victims import linear, untouched

CPU = torch.device("cpu")
FP32, BF16 = autocast_for(CPU, "fp32"), autocast_for(CPU, "bf16")
EPS = 8 / 255
BASE = {"arch": "wrn-10-1", "k": 3, "pgd_steps": 3, "eps_warmup": 0}


def config(**settings: object) -> PretrainConfig:
    return configure(PretrainConfig, BASE, settings)


def budget_of(ours: PretrainConfig) -> Budget:
    return Budget(ours.eps, ours.attack_step, ours.pgd_steps)


def attack_of(model: BlockModel, ours: PretrainConfig) -> TrainingAttack:
    code = TRAINING_ATTACKS[ours.method].code
    assert code is not None
    attack: TrainingAttack = resolve_name(code)(model)
    return attack


def free_training(
    model: BlockModel, ours: PretrainConfig, total: int, delta: Tensor
) -> FreeTraining:
    return FreeTraining(outer_loss(model, ours), growing(ours, total), delta)


def adversarial_step(
    model: BlockModel,
    ours: PretrainConfig,
    images: Tensor,
    labels: Tensor,
    collapsed: Tensor | None = None,
) -> StepLoss:
    """What the fifth of ten steps of adversarial training makes of a batch."""
    return adversarial_training(model, ours, growing(ours, 10), collapsed)(images, labels, 4)


def noise(images: Tensor) -> Tensor:
    return uniform_noise(images, draws())


def draws() -> torch.Generator:
    return generator(0, "training attack", 4)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def close(ours: list[Tensor], theirs: list[Tensor], within: float = 1e-6) -> bool:
    return all(torch.allclose(a, b, 1e-4, within) for a, b in zip(ours, theirs, strict=True))


def test_n_fgsm_by_hand(model: BlockModel, images: Tensor, labels: Tensor) -> None:
    images = torch.cat([images[:4].round(), images[4:]])  # pixels on both ends of the range
    model.eval()
    drawn = 2 * EPS * (2 * torch.rand(images.shape, generator=draws()) - 1)
    noisy = (images + drawn).clamp(0, 1).requires_grad_()
    F.cross_entropy(model(noisy), labels).backward()
    assert noisy.grad is not None
    expected = (noisy + EPS * noisy.grad.sign()).clamp(0, 1).detach()
    model.zero_grad(set_to_none=True)

    model.train()
    ours = config(method="fast")
    with untouched(model):
        found = attack_of(model, ours)(images, labels, noise(images), budget_of(ours))
    assert torch.allclose(found, expected, atol=1e-6)
    assert 2.5 * EPS < (found - images).abs().max() <= 3 * EPS + 1e-6  # no clipping to the ball
    small = attack_of(model, ours)(images, labels, noise(images), Budget(EPS / 10, EPS / 10, 1))
    assert (small - images).abs().max() <= 0.3 * EPS + 1e-6  # it grows with the warm-up


@pytest.mark.parametrize("arch", ["wrn-10-1", "resnet-18"])
def test_the_training_attack_is_pgd_on_the_model_itself(arch: str, labels: Tensor) -> None:
    """In float64 no sign is lost in rounding; after a step in training mode, as in training."""
    torch.manual_seed(0)
    model = build_model(arch, 4).double().train()
    pixels = torch.rand(8, 3, 16, 16).double()
    model(pixels)
    with untouched(model):
        found = attack_of(model, config())(
            pixels, labels, noise(pixels).double(), budget_of(config())
        )
    twin, start = copy.deepcopy(model).eval(), pixels + EPS * (2 * noise(pixels).double() - 1)
    adversarial = start.clamp(0, 1)
    for _ in range(config().pgd_steps):
        adversarial.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(twin(adversarial), labels), adversarial)
        adversarial = adversarial.detach() + EPS / 4 * gradient.sign()
        adversarial = torch.min(torch.max(adversarial, pixels - EPS), pixels + EPS).clamp(0, 1)
    assert torch.allclose(found, adversarial, atol=1e-6)


def test_trades_is_the_authors_loop(model: BlockModel, images: Tensor, labels: Tensor) -> None:
    """Attack and loss as in github.com/yaodongyu/TRADES, trades.py, for a drawn start."""
    beta, criterion = 5.0, nn.KLDivLoss(reduction="sum")
    twin = copy.deepcopy(model).eval()
    adversarial = images + 0.001 * normal(noise(images))
    for _ in range(3):
        adversarial.requires_grad_()
        loss_kl = criterion(F.log_softmax(twin(adversarial), dim=1), F.softmax(twin(images), dim=1))
        (gradient,) = torch.autograd.grad(loss_kl, [adversarial])
        adversarial = adversarial.detach() + EPS / 4 * gradient.sign()
        adversarial = torch.min(torch.max(adversarial, images - EPS), images + EPS).clamp(0, 1)
    model.train()
    ours = config(method="trades", trades_beta=beta)
    with untouched(model):
        found = attack_of(model, ours)(images, labels, noise(images), budget_of(ours))
    assert torch.allclose(found, adversarial, atol=1e-6)

    twin.train()
    robust = criterion(F.log_softmax(twin(adversarial), dim=1), F.softmax(twin(images), dim=1))
    expected = F.cross_entropy(twin(images), labels) + beta * robust / len(images)
    loss = adversarial_step(model, ours, images, labels).loss
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert close(gradients(model, loss), gradients(twin, expected), 1e-5)


def test_the_divergence_is_that_of_two_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.2, 0.3, 0.5]])
    by_hand = sum(a * math.log(a / b) for a, b in ((0.5, 0.2), (0.25, 0.3), (0.25, 0.5)))
    assert kl_divergence(q.log(), p.log()).item() == pytest.approx(by_hand, abs=1e-6)
    labels = torch.tensor([1])
    assert trades_loss(p.log(), q.log(), labels, 6.0).item() == pytest.approx(
        -math.log(0.25) + 6 * by_hand, abs=1e-5
    )


@pytest.mark.parametrize("warmup", [0, 0.5])
def test_free_training_is_algorithm_1(model: BlockModel, data: DataSet, warmup: float) -> None:
    """Weights and perturbation after two epochs of uneven batches, in a loop of its own."""
    ours = config(
        method="free", replays=3, epochs=2, batch_size=16, momentum=0, weight_decay=0, lr=0.05
    ).model_copy(update={"eps_warmup": warmup})
    total = count_steps(ours, len(data.train), ours.steps_per_batch)
    assert total == 2 * 2 * 3
    twin, delta, step = copy.deepcopy(model).train(), torch.zeros(16, 3, 32, 32), 0
    for epoch in range(2):
        for images, labels in epoch_batches(data.train, 16, (), 0, epoch):
            for _ in range(3):
                eps = EPS * (min(1, (step + 1) / (warmup * total)) if warmup else 1)
                # rounded as in ``fit``: a sign that turns where ∇ is nearly 0 changes the rest
                images = images.to(memory_format=torch.channels_last)
                noise = delta[: len(images)].clone().requires_grad_()
                loss = F.cross_entropy(twin((images + noise).clamp(0, 1)), labels)
                *by_weight, by_noise = torch.autograd.grad(loss, [*twin.parameters(), noise])
                with torch.no_grad():
                    for weight, gradient in zip(twin.parameters(), by_weight, strict=True):
                        weight.add_(gradient, alpha=-learning_rate(ours, step, total // 2))
                    moved = delta[: len(images)] + eps * by_noise.sign()
                    delta[: len(images)] = moved.clamp(-eps, eps)
                step += 1

    carried = torch.zeros(16, 3, 32, 32)
    end = fitted(model, data.train, ours, free_training(model.train(), ours, total, carried))
    assert end.step == total
    assert torch.allclose(carried, delta, atol=1e-6)
    assert carried.abs().max().item() == pytest.approx(EPS)
    assert close(list(model.parameters()), list(twin.parameters()))


def test_batches_are_replayed_from_the_middle_of_one() -> None:
    batches = [(torch.tensor(number), torch.tensor(number)) for number in range(3)]
    seen = [int(images) for images, _ in replayed(batches, 2, 1)]
    assert seen == [0, 1, 1, 2, 2]
    assert config(method="free").steps_per_batch == 4
    assert config(method="at").steps_per_batch == 1


def test_weight_perturbation_is_the_authors(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    """calc_awp of github.com/csdongxian/AWP: a step of a proxy, scaled to γ times each norm."""
    gamma, proxy = 0.01, copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-F.cross_entropy(proxy(images), labels)).backward()
    optimizer.step()
    expected = {}
    for name, old in model.named_parameters():
        if old.ndim > 1:
            difference = (proxy.get_parameter(name) - old).detach()
            expected[name] = gamma * old.detach().norm() / difference.norm() * difference
    model.train()
    with untouched(model):
        found = weight_perturbation(model, lambda: F.cross_entropy(model(images), labels), gamma)
    assert found.keys() == expected.keys()
    assert len(found) > 5
    for name, added in found.items():
        assert added.norm() == pytest.approx(gamma * model.get_parameter(name).norm().item())
        assert torch.allclose(added, expected[name], atol=1e-5)


@pytest.mark.parametrize("method", ["at", "fast", "trades"])
def test_awp_takes_the_gradient_at_perturbed_weights(
    model: BlockModel, images: Tensor, labels: Tensor, method: str
) -> None:
    ours = config(method=method, awp_gamma=0.05, fdm_lambda=0.01)
    plain = ours.model_copy(update={"awp_gamma": 0.0})
    model.train()
    before = copy.deepcopy(model.state_dict())
    adversarial = attack_of(model, ours)(images, labels, noise(images), budget_of(ours))
    twin = copy.deepcopy(model)
    added = weight_perturbation(
        twin, lambda: outer_loss(twin, plain)(images, adversarial, labels).loss, 0.05
    )
    with torch.no_grad():
        for name, change in added.items():
            twin.get_parameter(name).add_(change)
    expected = outer_loss(twin, plain)(images, adversarial, labels).loss

    result = adversarial_step(model, ours, images, labels)
    assert result.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    found = gradients(model, result.loss)
    assert close(found, gradients(twin, expected))
    assert not torch.equal(model.state_dict()["stem.weight"], before["stem.weight"])
    assert result.backward_done is not None
    result.backward_done()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])
    # the statistics have moved with the passes of one loss, not of two
    counted = {name: t for name, t in model.state_dict().items() if name.endswith("tracked")}
    assert all(t == twin.state_dict()[name] for name, t in counted.items())


def test_awp_is_not_lost_in_bfloat16(model: BlockModel, images: Tensor, labels: Tensor) -> None:
    """Autocast keeps bfloat16 copies of the weights; the perturbed ones must be used."""
    losses = {}
    for gamma in (0.0, 0.5):
        twin = copy.deepcopy(model).train()
        with BF16:
            ours = config(awp_gamma=gamma)
            losses[gamma] = adversarial_step(twin, ours, images, labels).loss.item()
    assert losses[0.5] > losses[0] + 0.1


METHODS = ({"method": "at"}, {"method": "fast"}, {"method": "trades"}, {"method": "free"})


def loss_of(model: BlockModel, ours: PretrainConfig) -> Callable[[Tensor, Tensor], Tensor]:
    if ours.method == "free":
        objective = free_training(model, ours, 10, torch.zeros(8, 3, 32, 32))
        return lambda images, labels: objective(images, labels, 4).loss
    return lambda images, labels: adversarial_step(model, ours, images, labels).loss


@pytest.mark.parametrize("method", METHODS)
def test_feature_distance_is_added_to_every_method(
    model: BlockModel, images: Tensor, labels: Tensor, method: dict[str, object]
) -> None:
    ours, plain = config(**method, fdm_lambda=0.5), config(**method)
    model.train()
    if method["method"] == "free":
        adversarial = (images + 0.01).clamp(0, 1)
    else:
        adversarial = attack_of(model, ours)(images, labels, noise(images), budget_of(ours))
    with_fdm = outer_loss(model, ours)(images, adversarial, labels).loss
    without = outer_loss(model, plain)(images, adversarial, labels).loss
    distance = feature_distance(model.features(images, 2), model.features(adversarial, 2))
    assert (with_fdm - without).item() == pytest.approx(0.5 * distance.item(), rel=1e-4)


@pytest.mark.parametrize("fdm_lambda", [0, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_is_trained_in_bfloat16_too(
    model: BlockModel, images: Tensor, labels: Tensor, method: dict[str, object], fdm_lambda: float
) -> None:
    """Passes without a gradient come first in some methods, and autocast remembers weights."""
    with BF16:
        loss = loss_of(model.train(), config(**method, fdm_lambda=fdm_lambda))(images, labels)
    found = gradients(model, loss)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found)


PASSES = [
    ({"method": "at"}, (5, 4)),
    ({"method": "at", "fdm_lambda": 0.1}, (5, 5)),
    ({"method": "fast"}, (2, 2)),
    ({"method": "free"}, (1, 1)),
    ({"method": "trades"}, (6, 5)),
    ({"method": "at", "awp_gamma": 0.1}, (6, 5)),
    ({"method": "trades", "awp_gamma": 0.1}, (8, 7)),
]


@pytest.mark.parametrize(("settings", "expected"), PASSES)
def test_passes_of_a_step(
    model: BlockModel,
    images: Tensor,
    labels: Tensor,
    settings: dict[str, object],
    expected: tuple[int, int],
) -> None:
    """Forward and backward passes for K = 3, those of docs/pretrain.md."""
    forward, backward = [], []

    def seen(_: nn.Module, __: object, output: Tensor) -> None:
        forward.append(1)
        if output.requires_grad:
            output.register_hook(lambda gradient: backward.append(1))

    model.train().stem.register_forward_hook(seen)
    loss_of(model, config(**settings))(images, labels).backward()
    assert (len(forward), len(backward)) == expected


def test_after_a_collapse_the_attack_is_pgd(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    def loss(method: str, collapsed: int | None) -> float:
        twin, flag = copy.deepcopy(model).train(), None
        if collapsed is not None:
            flag = torch.tensor(collapsed)
        ours = config(method=method)
        return adversarial_step(twin, ours, images, labels, flag).loss.item()

    assert loss("fast", 3) == loss("at", None)
    assert loss("fast", 0) != loss("at", None)


class Overfitted(nn.Module):
    """Right at the images and a whole ε away from them, wrong half way: FGSM steps over it."""

    def forward(self, images: Tensor) -> Tensor:
        away = (images.flatten(1).mean(1) - 0.5) / EPS
        bump = 2 - ((away - 0.5) / 0.35) ** 2
        return torch.stack([torch.ones_like(bump), bump], dim=1)


def test_the_guard_sees_catastrophic_overfitting() -> None:
    grey = Split(torch.full((40, 3, 16, 16), 128, dtype=torch.uint8), torch.zeros(40).long())
    sign = catastrophic_overfitting.look(Overfitted(), grey, EPS, 0, 16, FP32)
    assert (sign.fgsm, sign.pgd, sign.n) == (40, 0, 40)
    assert sign.collapsed


def test_the_guard_leaves_an_honest_model_alone() -> None:
    model, images, labels = linear(classes=3, side=16)
    split = Split((images * 255).round().to(torch.uint8), labels)
    with untouched(model):
        sign = catastrophic_overfitting.look(model, split, 0.004, 0, 64, FP32)
    assert 0.2 < sign.pgd / sign.n < 0.9
    assert abs(sign.fgsm - sign.pgd) <= 4  # one step reaches the worst case of a linear model
    assert not sign.collapsed


@pytest.mark.parametrize(
    ("fgsm", "pgd", "collapsed"),
    [(80, 4, True), (40, 19, True), (40, 20, False), (10, 0, False), (11, 0, True), (9, 4, False)],
)
def test_when_a_model_has_collapsed(fgsm: int, pgd: int, collapsed: bool) -> None:
    assert catastrophic_overfitting.Sign(fgsm, pgd, 100).collapsed == collapsed


def test_the_guard_always_looks_at_the_same_images(data: DataSet) -> None:
    some = catastrophic_overfitting.watched(data.train, 0)
    assert torch.equal(some.images, catastrophic_overfitting.watched(data.train, 0).images)
    assert len(some) == len(data.train)
    many = Split(torch.zeros(600, 3, 2, 2, dtype=torch.uint8), torch.arange(600) % 4)
    assert catastrophic_overfitting.watched(many, 0).labels.bincount().tolist() == [32] * 4


@pytest.mark.parametrize(
    ("images", "epochs", "looked"), [(500, 20, [8, 16, 20]), (60, 5, [5]), (3000, 3, [1, 2, 3])]
)
def test_the_guard_costs_little_where_images_are_few(
    images: int, epochs: int, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = catastrophic_overfitting.Sign(8, 7, 10)
    monkeypatch.setattr(catastrophic_overfitting, "look", lambda *_: sign)
    split = Split(torch.zeros(images, 3, 2, 2, dtype=torch.uint8), torch.arange(images) % 4)
    config = TransferConfig(method="fast", epochs=epochs)
    setup = mock.Mock(config=config, split=split, device=torch.device("cpu"))
    epoch_done = catastrophic_overfitting.guard(
        mock.Mock(), setup, Growing(Budget(EPS, EPS, 3), 10), torch.tensor(0), print
    )
    found = {epoch: epoch_done(epoch, epoch) for epoch in range(1, epochs + 1)}
    assert [epoch for epoch, measured in found.items() if measured] == looked
    assert found[epochs] == {"fgsm_accuracy": 0.8, "pgd_accuracy": 0.7}


def test_the_last_look_of_the_guard_is_in_the_time_of_the_run(
    cartl: Command, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object) -> catastrophic_overfitting.Sign:
        time.sleep(1.5)
        return catastrophic_overfitting.Sign(8, 7, 10)

    monkeypatch.setattr(catastrophic_overfitting, "look", look)
    source = ("--source", runs_dir / "source")
    done = cartl("transfer", *source, *TINY_TRANSFER.split(), "--method", "fast", "--name", "slow")
    assert done.code == 0, done.err
    assert read_run(Path("runs/slow")).results.seconds > 1.5


def test_the_average_of_weights_in_closed_form(model: BlockModel) -> None:
    decay, states = 0.8, []
    average = weight_average.begin(model)
    steps = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(torch.rand(tensor.shape, generator=steps))
                else:
                    tensor.fill_(step)
        states.append({n: t.double().clone() for n, t in model.state_dict().items()})
        weight_average.follow(average, model, decay, step)
    weight_average.take(average, model)
    factors = [decay ** (5 - step) for step in range(1, 6)]
    for name, found in model.state_dict().items():
        each = [factor * state[name] for factor, state in zip(factors, states, strict=True)]
        expected = torch.stack(each).sum(0) / sum(factors)
        if not found.is_floating_point():
            expected = torch.full_like(expected, 5)
        assert torch.allclose(found.double(), expected, atol=1e-6), name


def test_a_run_says_both_accuracies_and_which_weights_are_its_model(
    cartl: Command, tmp_path: Path
) -> None:
    tiny.make_images(tmp_path / "images")
    done = cartl(*" ".join(tiny.command("fast")).replace("../images", "images").split())
    assert done.code == 0, done.err
    for said in (
        "robust, last weights",
        "clean, last weights",
        "average of the weights, decay 0.5",
    ):
        assert said in " ".join(done.out.split())
    folder = tmp_path / "runs" / "fast"
    newest = max(folder.glob("ckpt-*"))
    state, last = (load_file(newest / f"{name}.safetensors") for name in ("train", "model"))
    model = load_file(folder / "model.safetensors")
    assert all(torch.equal(state[f"average.{name}"], tensor) for name, tensor in model.items())
    assert not torch.equal(last["stem.weight"], model["stem.weight"])
    last_line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(0 <= last_line[f"{name}_accuracy"] <= 1 for name in ("fgsm", "pgd"))
    results = json.loads((folder / "manifest.json").read_text())["results"]
    assert results["last_weights"].keys() == {"clean_accuracy", "robust_accuracy"}
    # what the run says of its model is true of the weights in its folder
    attack = "attack fast --attack pgd --pgd-steps 1 --checks off --json"
    again = cartl(*attack.split(" "))
    assert json.loads(again.out)["clean_accuracy"] == results["clean_accuracy"]
    shown = json.loads(cartl("pretrain", "--resume", "fast", "--json").out)
    assert shown["last_weights"] == results["last_weights"]
    assert shown["collapsed_after"] is None


def test_the_method_of_a_source_run_in_words() -> None:
    assert source_method(config(fdm_lambda=0.1)) == "at+fdm"
    assert source_method(config(method="trades", awp_gamma=0.01, ema=0.9)) == "trades+awp+ema"


@pytest.mark.parametrize(("fdm_at", "ks"), [("1,3", (3, 1)), ("all", (4, 3, 2, 1)), (None, (3,))])
def test_the_feature_distance_at_several_blocks_is_their_mean(
    model: BlockModel, images: Tensor, labels: Tensor, fdm_at: str | None, ks: tuple[int, ...]
) -> None:
    ours = config(fdm_lambda=0.3, fdm_at=fdm_at)
    assert ours.fdm_ks == ks
    adversarial = (images + 0.1 * torch.rand_like(images)).clamp(0, 1)
    model.eval()
    found = outer_loss(model, ours)(images, adversarial, labels).loss
    cuts = [len(model.blocks) - k for k in ks]
    far = [
        feature_distance(model.features(images, cut), model.features(adversarial, cut))
        for cut in cuts
    ]
    expected = F.cross_entropy(model(adversarial), labels) + 0.3 * sum(far) / len(far)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--fdm-at 2,4", "--fdm-at: goes with --fdm-lambda; give that too, or drop it"),
        ("--fdm-at 2,99 --fdm-lambda 1", "--fdm-at: wrn-16-1 has 8 blocks, got 2,99"),
        ("--fdm-at some --fdm-lambda 1", "--fdm-at: must be all, or numbers such as 2,4,6"),
    ],
)
def test_wrong_values_of_k_are_refused(cartl: Command, line: str, said: str) -> None:
    done = cartl("pretrain", *line.split())
    assert done.code == 2
    assert said in done.err
