import pytest
import torch
from torch import Tensor, nn

from cartl_cli.core.errors import UsageError
from cartl_cli.core.models.block_table import block_table
from cartl_cli.core.models.blocks import BlockModel, ResidualSum, eval_mode
from cartl_cli.core.registry.architectures import build_model, parse_architecture


@pytest.mark.parametrize(
    ("arch", "blocks"),
    [("wrn-34-10", 17), ("wrn-28-4", 14), ("wrn-16-2", 8), ("wrn-10-1", 5), ("resnet-18", 9)],
)
def test_block_counts_are_those_of_the_paper(arch: str, blocks: int) -> None:
    assert parse_architecture(arch).block_count == blocks
    assert block_table(arch, 32)[-1].number == blocks


@pytest.mark.parametrize(
    "name", ["wrn-15-1", "wrn-4-1", "wrn-16", "wrn-16-0", "resnet-50", "lenet"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown"):
        parse_architecture(name)


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("wrn-28-10", 36_479_194),  # Zagoruyko & Komodakis 2016: 36.5 M
        ("wrn-16-1", 175_066),  # 0.2 M
        ("resnet-18", 11_173_962),  # the CIFAR variant with a 3×3 stem
    ],
)
def test_parameter_counts_are_the_published_ones(arch: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(arch, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("arch", ["wrn-10-1", "resnet-18"])
def test_features_and_forward_agree_at_every_block(arch: str, images: Tensor) -> None:
    model = build_model(arch, 5).eval()
    with torch.no_grad():
        logits = model(images[:2])
        for stop in range(len(model.blocks) + 1):
            features = model.features(images[:2], stop)
            assert torch.equal(model.classify(features, stop), logits)
    assert logits.shape == (2, 5)


def test_normalization_is_the_first_layer(model: BlockModel, images: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        plain = model((images - 0.4) / 0.2)
        model.normalize.fix((0.4,) * 3, (0.2,) * 3)
        assert torch.allclose(model(images), plain, atol=1e-5)
    assert {"normalize.mean", "normalize.std"} <= model.state_dict().keys()


def test_eval_mode_restores_each_flag_of_its_own(model: BlockModel) -> None:
    model.train()
    model.blocks[0].eval().requires_grad_(False)

    def flags() -> tuple[list[bool], list[bool]]:
        modules = [module.training for module in model.modules()]
        return modules, [parameter.requires_grad for parameter in model.parameters()]

    before = flags()
    assert [set(each) for each in before] == [{True, False}] * 2
    with eval_mode(model):
        assert [set(each) for each in flags()] == [{False}] * 2
    assert flags() == before


def test_convex_residual_is_the_mean(images: Tensor) -> None:
    add = ResidualSum()
    assert torch.equal(add(images, 3 * images), images + 3 * images)
    add.convex = True
    assert torch.equal(add(images, 3 * images), (images + 3 * images) / 2)


def test_wide_resnet_uses_the_official_activation(model: BlockModel) -> None:
    slopes = {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.1}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_images_of_whole_numbers_are_refused(model: BlockModel, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"got {dtype}; divide them by 255"):
        model.eval()(torch.ones(2, 3, 32, 32, dtype=dtype))


def test_a_model_is_exported_without_a_check_in_its_graph(
    model: BlockModel, images: Tensor
) -> None:
    exported = torch.export.export(model.eval(), (images,))
    assert "floating" not in exported.graph_module.code
    assert torch.equal(exported.module()(images), model(images))
