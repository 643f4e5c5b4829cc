import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from cartl_cli.core.attacks.judged_pgd import attack
from cartl_cli.core.choices import FreezeBatchNorm
from cartl_cli.core.config import TransferConfig
from cartl_cli.core.data.split import DataSet
from cartl_cli.core.errors import RunError
from cartl_cli.core.evaluation.verdicts import clean_correct
from cartl_cli.core.method.adversarial_training import NaturalTraining
from cartl_cli.core.method.batch_norm import freeze
from cartl_cli.core.method.losses import cross_entropy
from cartl_cli.core.method.neft import apply_neft, bake, weight_modules
from cartl_cli.core.method.norm_ball import uniform_start
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.method.transfer_methods import replace_head
from cartl_cli.core.models.blocks import BlockModel, ResidualSum, extractor, sub_model
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runtime.randomness import seeded
from tests.fitting import fitted

CPU = torch.device("cpu")


def train(model: BlockModel, data: DataSet, seed: int = 0) -> None:
    config = TransferConfig(epochs=1, batch_size=8, lr=0.05, seed=seed)
    fitted(model, data.train, config, NaturalTraining(model))


@pytest.mark.parametrize(
    ("arch", "k", "expected"),
    [
        ("wrn-10-1", 5, {"conv1": 3, "conv2": 3, "shortcut": 2, "linear": 1}),
        ("wrn-10-1", 2, {"linear": 1}),
        ("resnet-18", 4, {"conv1": 3, "conv2": 3, "0": 1, "linear": 1}),
        ("wrn-10-1-relu", 3, {"conv1": 1, "conv2": 1, "shortcut": 1, "linear": 1}),
        ("torchvision:resnet50", 4, {"conv1": 3, "conv2": 3, "conv3": 3, "0": 1, "linear": 1}),
    ],
)
def test_every_weight_of_the_last_k_blocks_has_norm_beta(
    arch: str, k: int, expected: dict[str, int], images: Tensor, labels: Tensor
) -> None:
    torch.manual_seed(0)
    model = build_model(arch, 4)
    normalized = apply_neft(model, k, 0.4)
    kinds = [name.split(".")[-1] for name in normalized]
    assert {kind: kinds.count(kind) for kind in kinds} == expected
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    bake(model, k)
    modules = dict(model.named_modules())
    for name in normalized:
        weight = modules[name].weight
        assert isinstance(weight, nn.Parameter)  # plain again
        largest = torch.linalg.svdvals(weight.flatten(1).double())[0]
        assert largest.item() == pytest.approx(0.4, abs=1e-5)
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    sums = [module.convex for module in model.modules() if isinstance(module, ResidualSum)]
    inside = expected.get("conv1", 0)  # one in each residual block
    assert sums == [False] * (len(sums) - inside) + [True] * inside


def test_power_iteration_follows_the_weights(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    apply_neft(model, 5, 0.6)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        for _ in range(100):  # weights at rest, as at the end of a schedule
            model(images[:2])
    model.eval()
    for _, module in weight_modules(model, 5):
        used = module.weight.detach().flatten(1)
        assert torch.linalg.svdvals(used)[0].item() == pytest.approx(0.6, rel=0.01)


def test_x22_x23_a_baked_model_is_plain_and_its_logits_agree(
    model: BlockModel, images: Tensor
) -> None:
    plain = model.state_dict().keys()
    apply_neft(model, 4, 0.6)
    model.eval()
    with torch.no_grad():
        parametrized = model(images)
        bake(model, 4)
        assert (model(images) - parametrized).abs().max() < 1e-5
    assert model.state_dict().keys() == plain


def test_evaluation_runs_no_power_iteration(model: BlockModel, images: Tensor) -> None:
    apply_neft(model, 5, 0.6)
    before = {name: b.clone() for name, b in model.eval().named_buffers()}
    with torch.no_grad():
        model(images)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_neft_reaches_the_last_k_blocks_and_no_further(model: BlockModel) -> None:
    apply_neft(model, 3, 0.4)
    convex = {n for n, m in model.named_modules() if getattr(m, "convex", False)}
    assert convex == {"blocks.2.add"}
    touched = {n for n, m in model.named_modules() if parametrize.is_parametrized(m)}
    assert touched == {"blocks.2.conv1", "blocks.2.conv2", "blocks.2.shortcut", "blocks.4.linear"}


def test_an_all_zero_weight_is_named(model: BlockModel) -> None:
    with torch.no_grad():
        model.get_parameter("blocks.2.conv2.weight").zero_()
    with pytest.raises(RunError, match=r"blocks\.2\.conv2\.weight is all zero"):
        apply_neft(model, 3, 0.4)


def test_new_head_has_a_normal_linear_initialisation(model: BlockModel) -> None:
    torch.manual_seed(0)
    replace_head(model, 7)
    bound = 1 / model.head.in_features**0.5
    assert model.head.weight.shape == (7, 64)
    assert model.head.weight.abs().max() <= bound
    assert abs(model.head.weight.mean().item()) < 0.1 * bound
    assert not model.head.bias.any()


def test_the_head_of_the_official_code_is_uniform(model: BlockModel) -> None:
    """Its logits all rise with the features: they are alike, and far from 0."""
    with seeded(0, "head"):
        replace_head(model, 200, "uniform")
    for drawn in (model.head.weight, model.head.bias):
        assert 0 <= drawn.min() < 0.1 < 0.9 < drawn.max() < 1
        assert abs(drawn.mean().item() - 0.5) < 0.1


def batch_norm_state(blocks: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Statistics and affine parameters of every batch norm below, by name."""
    found: dict[str, dict[str, Tensor]] = {"stats": {}, "affine": {}, "weights": {}}
    norms = {n for n, m in blocks.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, tensor in blocks.state_dict().items():
        layer, _, kind = name.rpartition(".")
        group = "weights"
        if layer in norms:
            group = "affine" if kind in ("weight", "bias") else "stats"
        found[group][name] = tensor.clone()
    return found


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[bool]:
    return {not torch.equal(before[name], after[name]) for name in before}


@pytest.mark.parametrize(
    ("freeze_bn", "statistics_change", "affine_changes", "inner_statistics_change"),
    [
        ("none", True, True, True),
        ("affine", True, False, True),
        ("stats", False, True, True),
        ("all", False, False, True),
        ("everything", False, False, False),
    ],
)
@pytest.mark.parametrize("beta", [None, 0.4])
def test_batch_norm_cases_bit_by_bit(
    model: BlockModel,
    data: DataSet,
    freeze_bn: FreezeBatchNorm,
    statistics_change: bool,
    affine_changes: bool,
    inner_statistics_change: bool,
    beta: float | None,
) -> None:
    """Through train → attack → evaluate → train, as in a real run."""
    replace_head(model, 3)
    freeze(model, 3, freeze_bn)
    if beta is not None:
        apply_neft(model, 3, beta)
    for seed in (0, 1):
        outside = batch_norm_state(extractor(model, 3))
        inside = batch_norm_state(sub_model(model, 3))
        train(model, data, seed)
        assert changed(outside["weights"], batch_norm_state(extractor(model, 3))["weights"]) == {
            False
        }
        assert changed(outside["affine"], batch_norm_state(extractor(model, 3))["affine"]) == {
            False
        }
        assert changed(outside["stats"], batch_norm_state(extractor(model, 3))["stats"]) == {
            statistics_change
        }
        assert changed(inside["affine"], batch_norm_state(sub_model(model, 3))["affine"]) == {
            affine_changes
        }
        assert changed(inside["stats"], batch_norm_state(sub_model(model, 3))["stats"]) == {
            inner_statistics_change
        }
        trained = copy.deepcopy(model.state_dict())
        images = data.evaluation.images.float() / 255
        start = uniform_start(images, 8 / 255, torch.Generator().manual_seed(0))
        budget = Budget(8 / 255, 2 / 255, 2)
        attack(model, images, data.evaluation.labels, start, budget, cross_entropy, True)
        clean_correct(model, data.evaluation, 4, CPU)
        after = model.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in trained.items())


def test_frozen_parameters_get_no_gradient(
    model: BlockModel, images: Tensor, labels: Tensor
) -> None:
    freeze(model, 2, "affine")
    F.cross_entropy(model(images), labels).backward()
    assert all(p.grad is None for p in extractor(model, 2).parameters())
    assert model.head.weight.grad is not None
