import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from cartl_cli.core.attacks.judged_pgd import attack, predict
from cartl_cli.core.method.losses import cross_entropy
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import Affine, BlockModel, Shift, make_convex
from cartl_cli.core.models.folding import FoldedCopy, folded
from cartl_cli.core.registry.architectures import build_model
from tests.victims import untouched


def lived_in(arch: str, positive: bool = False) -> BlockModel:
    """A model whose batch norm has statistics, and weights of every sign or ``positive`` ones."""
    torch.manual_seed(2)
    model: BlockModel = build_model(arch, 5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            if positive:
                module.weight.data.abs_()
    return model.eval()


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("arch", ["wrn-10-1", "wrn-16-2", "resnet-18"])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_folded_features_logits_and_gradients_are_the_models(
    arch: str, positive: bool, dtype: torch.dtype, close: float, images: Tensor
) -> None:
    """A gradient jumps where a unit is at zero: to float32's rounding one image may be there."""
    model = lived_in(arch, positive).to(dtype)
    make_convex(model, 1)
    light = folded(model)
    exempt = 1 if dtype == torch.float32 else 0
    points = images.to(dtype).requires_grad_()
    for block in range(len(model.blocks) + 1):
        ours, theirs = light.features(points, block), model.features(points, block)
        assert ours.dtype == theirs.dtype
        assert relative(ours, theirs) < close
        gradients = [torch.autograd.grad(f.square().sum(), points)[0] for f in (ours, theirs)]
        apart = sorted(map(relative, *gradients))
        assert max(apart[: len(apart) - exempt]) < close


@pytest.mark.parametrize("arch", ["wrn-10-1", "resnet-18"])
def test_no_batch_norm_is_left_and_no_parameter_takes_a_gradient(arch: str) -> None:
    light = folded(lived_in(arch))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in light.modules())
    assert not any(parameter.requires_grad for parameter in light.parameters())
    convolutions = [m for m in light.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert len(convolutions) == {"wrn-10-1": 3, "resnet-18": 20}[arch]


def test_a_positive_scale_is_left_to_the_weights() -> None:
    def count(positive: bool, kind: type[nn.Module]) -> int:
        light = folded(lived_in("wrn-16-1", positive))
        return sum(isinstance(module, kind) for module in light.modules())

    assert (count(True, Shift), count(True, Affine)) == (6, 1)
    assert (count(False, Shift), count(False, Affine)) == (0, 7)


@pytest.mark.parametrize("arch", ["wrn-10-1", "resnet-18"])
def test_a_copy_in_training_follows_the_model_where_it_is(arch: str, images: Tensor) -> None:
    model = lived_in(arch, positive=True)
    copy = FoldedCopy(model)
    before = copy.refreshed()
    first = [tensor.clone() for tensor in before.state_dict().values()]
    places = [tensor.data_ptr() for tensor in before.state_dict().values()]
    with torch.no_grad():
        for value in model.state_dict().values():
            value.mul_(2)
    after = copy.refreshed()
    assert after is before
    assert [tensor.data_ptr() for tensor in after.state_dict().values()] == places
    changed = zip(first, after.state_dict().values(), strict=True)
    assert not any(torch.equal(one, other) for one, other in changed if one.any())
    assert torch.equal(after(images), folded(model)(images))


def test_a_copy_in_training_may_change_its_kind_of_layers(images: Tensor) -> None:
    model = lived_in("wrn-16-1", positive=True)
    copy = FoldedCopy(model)
    assert any(isinstance(module, Shift) for module in copy.refreshed().modules())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.neg_()
    light = copy.refreshed()
    assert not any(isinstance(module, Shift) for module in light.modules())
    assert relative(predict(light, images), predict(model, images)) < 1e-5


def test_folding_leaves_the_model_as_it_is(images: Tensor) -> None:
    model = lived_in("wrn-10-1").train()
    model.blocks[0].eval()
    with untouched(model):
        light = folded(model)
    assert relative(predict(light, images), predict(model.eval(), images)) < 1e-5


def test_an_activation_that_occurs_twice_is_not_passed_over(images: Tensor) -> None:
    torch.manual_seed(0)
    activation = nn.ReLU()
    convolutions = [nn.Conv2d(channels, 4, 3, padding=1) for channels in (3, 4)]
    norms = [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    first = nn.Sequential(
        *(convolutions[0], activation, norms[0], convolutions[1], activation, norms[1])
    )
    last = nn.Sequential()
    last.add_module("flat", nn.Flatten())
    last.add_module("linear", nn.Linear(4 * 32 * 32, 5))
    model = BlockModel(nn.Identity(), [first, last])
    for norm in norms:
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.normal_(norm.bias)
    model.eval()
    assert relative(predict(folded(model), images), predict(model, images)) < 1e-5


def test_a_parametrized_convolution_keeps_its_weight(images: Tensor) -> None:
    model = lived_in("wrn-10-1")
    convolution = model.blocks[1].conv1
    assert isinstance(convolution, nn.Module)
    spectral_norm(convolution)
    model.eval()
    assert relative(predict(folded(model), images), predict(model, images)) < 1e-5


def test_under_bfloat16_the_activations_stay_in_bfloat16(images: Tensor) -> None:
    model = lived_in("wrn-10-1")
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = folded(model).features(images, 2), model.features(images, 2)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert relative(ours.float(), theirs.float()) < 0.1


def test_verdicts_of_an_attack_are_those_of_the_model_itself(
    images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lived_in("wrn-10-1")
    labels = predict(model, images).argmax(1)
    opposite = lived_in("wrn-10-1")
    opposite.head.weight.data.neg_()
    opposite.head.bias.data.neg_()
    monkeypatch.setattr("cartl_cli.core.attacks.judged_pgd.folded", lambda _: opposite)
    outcome = attack(model, images, labels, images, Budget(0.0, 0.0, 2), cross_entropy, True)
    assert not outcome.fallen.any()
    assert not outcome.fallen_last.any()
