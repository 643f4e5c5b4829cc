"""Strangers' weights under the names of our networks: everything fits, or everything is told."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cartl_cli.core.errors import DataError
from cartl_cli.core.imports.checkpoint_files import read_checkpoint
from cartl_cli.core.imports.matching import guess_classes, match
from cartl_cli.core.imports.recognition import recognise
from cartl_cli.core.imports.unwrapping import PREFIXES, Normalization
from cartl_cli.core.registry.architectures import build_model, parse_architecture

FOLDER = os.environ.get("CARTL_TEST_DATA", "")
NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
FITTING = "no normalization is known: pixels go in as they are, in 0..1"
RENAMES = parse_architecture("wrn-10-1").renames
Weights = dict[str, Tensor]


def ours(classes: int = 10) -> Weights:
    torch.manual_seed(3)
    state: Weights = build_model("wrn-10-1", classes).state_dict()
    return {
        name: tensor + torch.rand(tensor.shape) if tensor.is_floating_point() else tensor + 5
        for name, tensor in state.items()
    }


def published(classes: int = 10) -> Weights:
    """Our weights as RobustBench names them, without normalization."""
    names = {
        "stem.": "conv1.",
        "blocks.0.": "block1.layer.0.",
        "blocks.1.": "block2.layer.0.",
        "blocks.2.": "block3.layer.0.",
        "blocks.3.0.": "bn1.",
        "blocks.4.linear.": "fc.",
    }
    found = {}
    for name, tensor in ours(classes).items():
        for here, there in names.items():
            if name.startswith(here):
                inner = name.removeprefix(here).replace("shortcut.", "convShortcut.")
                for place in "12":
                    inner = inner.replace(f"norm_act{place}.norm.", f"bn{place}.")
                found[there + inner] = tensor
    return found


def expected(classes: int = 10) -> Weights:
    with torch.device("meta"):
        state: Weights = build_model("wrn-10-1", classes).state_dict()
    return state


def refusal(found: Mapping[str, Tensor], classes: int = 10) -> str:
    with pytest.raises(DataError) as refused:
        match(found, expected(classes), RENAMES)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_published_names_become_ours() -> None:
    done = match(published(), expected(), RENAMES, NORMALIZATION)
    model = build_model("wrn-10-1", 10)
    model.load_state_dict(done.tensors)
    for name, tensor in ours().items():
        if not name.startswith("normalize"):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert model.normalize.mean.flatten().tolist() == pytest.approx(NORMALIZATION.mean)
    assert model.normalize.std.flatten().tolist() == pytest.approx(NORMALIZATION.std)
    assert done.remarks == ()


def test_without_normalization_pixels_stay_and_it_is_said() -> None:
    done = match(published(), expected(), RENAMES)
    assert not done.tensors["normalize.mean"].any()
    assert (done.tensors["normalize.std"] == 1).all()
    assert done.remarks == (FITTING,)


def test_our_own_names_need_no_renames() -> None:
    found = {name: t for name, t in ours().items() if not name.startswith("normalize")}
    done = match(found, expected(), (), NORMALIZATION)
    assert all(torch.equal(done.tensors[name], found[name]) for name in found)


@given(*[st.lists(st.sampled_from(PREFIXES), max_size=4)] * 2)
def test_a_prefix_counts_on_neither_side(theirs: list[str], honest: list[str]) -> None:
    """A network whose names honestly begin with ``model.`` fits with and without it."""
    found = {"".join(theirs) + name: torch.ones(2) for name in ("conv.weight", "fc.bias")}
    like = {"".join(honest) + name: torch.zeros(2) for name in ("conv.weight", "fc.bias")}
    done = match(found, like)
    assert list(done.tensors) == list(like)
    assert all(tensor.all() for tensor in done.tensors.values())


def test_what_published_files_have_for_nothing_is_left_aside_and_told() -> None:
    unused = {
        name.replace("block1", "sub_block1"): tensor
        for name, tensor in published().items()
        if name.startswith("block1")
    }
    head = {"model_preact_hl1.1.weight": torch.ones(10, 64)}
    done = match(published() | unused | head, expected(), RENAMES, NORMALIZATION)
    assert done.tensors.keys() == expected().keys()
    assert done.remarks == (
        "left aside: sub_block1 (a block no image goes through)",
        "left aside: model_preact_hl1 (a head of the pre-training)",
    )


def test_what_a_network_expects_is_never_left_aside() -> None:
    like = {"sub_block1.weight": torch.zeros(2), "fc.weight": torch.zeros(2, 2)}
    found = {"sub_block1.weight": torch.ones(2), "fc.weight": torch.ones(2, 2)}
    assert match(found, like).tensors["sub_block1.weight"].all()
    with pytest.raises(DataError, match=r"1 missing \(sub_block1\.weight\)"):
        match({"fc.weight": torch.ones(2, 2)}, like)


def test_counters_that_old_files_lack_are_zero_and_told() -> None:
    found = {n: t for n, t in published().items() if not n.endswith("num_batches_tracked")}
    done = match(found, expected(), RENAMES, NORMALIZATION)
    counters = {n: t for n, t in done.tensors.items() if n.endswith("num_batches_tracked")}
    assert len(counters) == 7
    assert all(t.dtype == torch.int64 and t.shape == () and t == 0 for t in counters.values())
    assert done.remarks == ("7 counters num_batches_tracked are not in the file as such; set to 0",)
    build_model("wrn-10-1", 10).load_state_dict(done.tensors)


def test_one_error_tells_all_that_does_not_fit() -> None:
    found = published()
    del found["bn1.weight"]
    found["conv1.weight"] = torch.ones(16, 3, 7, 7)
    found["block2.layer.0.bn1.weight"] = torch.arange(16)
    found |= {f"extra{place}.weight": torch.ones(2) for place in range(12)}
    listed = ", ".join(f"extra{place}.weight" for place in range(10))
    assert refusal(found) == (
        "the file does not fit: 1 missing (blocks.3.0.weight); "
        f"12 left over ({listed}, …); "
        "2 of another shape (stem.weight is 16×3×7×7, should be 16×3×3×3, "
        "blocks.1.norm_act1.norm.weight is 16 of integers, should be 16); "
        "the file seems to be wrn-10-1-relu"
    )


def test_nothing_is_loaded_as_far_as_possible() -> None:
    found = published()
    for name in found:
        if not name.endswith("num_batches_tracked"):
            assert "1 missing" in refusal({n: t for n, t in found.items() if n != name})


def test_two_names_that_become_one_are_told() -> None:
    assert "1 left over (stem.weight)" in refusal(published() | {"stem.weight": torch.ones(2)})


def test_the_number_of_classes_is_the_hint() -> None:
    line = refusal(published(1000), 10)
    assert line.endswith(
        "the classifier has 1000 rows where 10 classes were given: give --classes with 1000 "
        "names, or a --dataset that has 1000"
    )


def test_a_feature_extractor_has_no_classifier() -> None:
    found = {name: t for name, t in published().items() if not name.startswith("fc.")}
    line = "the file has no classifier: it is of a feature extractor, not of a whole network"
    assert refusal(found).endswith(line)


def test_another_image_size_is_the_hint() -> None:
    like = {"pos_embed": torch.zeros(1, 197, 8), "head.weight": torch.zeros(3, 8)}
    with pytest.raises(DataError, match=r"images of another size: give --image-size$"):
        match(like | {"pos_embed": torch.zeros(1, 577, 8)}, like)


def test_other_names_in_the_same_order_are_the_hint() -> None:
    like = {"0.weight": torch.ones(3, 3), "2.weight": torch.ones(2, 3)}
    theirs = {"first.weight": torch.ones(3, 3), "last.weight": torch.ones(2, 3)}
    with pytest.raises(DataError, match="only the names differ, and the order is the same"):
        match(theirs, like)
    with pytest.raises(DataError, match="give --arch the architecture"):
        match({"last.weight": torch.ones(2, 3), "first.weight": torch.ones(3, 3)}, like)


def test_an_unknown_network_is_said_to_be_one() -> None:
    assert refusal({"encoder.weight": torch.ones(3, 3)}).endswith(
        "give --arch the architecture of the file, or write its network in a file of your own"
    )


# What a file is of


def state_of(name: str) -> Weights:
    with torch.device("meta"):
        state: Weights = getattr(torchvision.models, name)(num_classes=13).state_dict()
    return state


def foreign(sign: str, head: str) -> Weights:
    """The one name that gives a family away, before its classifier and a bias."""
    return {sign: torch.ones(8, 8, 3, 3), head: torch.ones(13, 8), "norm.bias": torch.ones(8)}


def small_resnet(shortcut_norm: bool) -> Weights:
    """Names of a ResNet-18 for CIFAR, ``shortcut_norm`` of its plain form."""
    found = {"conv1.weight": torch.ones(64, 3, 3, 3)}
    for stage in "1234":
        for block in "01":
            for conv in "12":
                found[f"layer{stage}.{block}.conv{conv}.weight"] = torch.ones(64, 64, 3, 3)
    found["layer2.0.shortcut.0.weight"] = torch.ones(128, 64, 1, 1)
    if shortcut_norm:
        found["layer2.0.shortcut.1.weight"] = torch.ones(128)
    return found | {"linear.weight": torch.ones(13, 512), "linear.bias": torch.ones(13)}


@pytest.mark.parametrize(
    ("found", "arch"),
    [
        (published(13), "wrn-10-1-relu"),
        (ours(13), "wrn-10-1"),
        *((state_of(n), f"torchvision:{n}") for n in ("resnet18", "resnet34", "resnet50")),
        (state_of("wide_resnet50_2"), "torchvision:wide_resnet50_2"),
        (state_of("resnext50_32x4d"), None),
        (state_of("vgg16_bn"), None),
        (small_resnet(shortcut_norm=True), "resnet-18"),
        (small_resnet(shortcut_norm=False), "preact-resnet-18-raw"),
        (small_resnet(shortcut_norm=False) | {"bn.weight": torch.ones(512)}, "preact-resnet-18"),
        (
            foreign("init_conv.weight", "logits.weight"),
            "DeepMind's wide ResNet (SiLU), for which there is no --arch by name",
        ),
        (
            foreign("stem.stem.0.weight", "head.fc.weight"),
            "a ConvNeXt with ConvStem, for which there is no --arch by name",
        ),
        (
            foreign("stages.0.blocks.0.conv_dw.weight", "head.fc.weight"),
            "a ConvNeXt of timm: timm:convnext_…",
        ),
        (foreign("cls_attn_blocks.0.norm1.weight", "head.weight"), "an XCiT of timm: timm:xcit_…"),
        (
            foreign("layers.0.blocks.0.attn.relative_position_bias_table", "head.fc.weight"),
            "a Swin of timm: timm:swin_…",
        ),
        (
            foreign("blocks.0.attn.qkv.weight", "head.weight"),
            "a vision transformer of timm: timm:vit_… or timm:deit_…",
        ),
    ],
)
def test_architectures_are_recognised_and_their_classes_counted(
    found: Weights, arch: str | None
) -> None:
    assert recognise(found) == arch
    assert guess_classes(found) == 13
    assert guess_classes(dict(sorted(found.items()))) == 13


def test_a_classifier_without_a_name_is_the_last_matrix() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5))
    assert guess_classes(module.state_dict()) == 5
    with pytest.raises(DataError, match="no linear layer at its end; it has no classes"):
        guess_classes({"conv.weight": torch.ones(2, 2, 3, 3)})


# Real files


@pytest.mark.real_data
@pytest.mark.skipif(not FOLDER, reason="CARTL_TEST_DATA names no folder of real images")
@pytest.mark.parametrize(
    ("name", "count", "classes", "first"),
    [
        ("cifar_conv_small_pgd.pth", 8, 10, "0.weight"),
        ("resnet2b.pth", 16, 10, "conv1.weight"),
        ("trades_mnist_smallcnn.pt", 14, 10, "feature_extractor.conv1.weight"),
    ],
)
def test_checkpoints_of_strangers_are_read(name: str, count: int, classes: int, first: str) -> None:
    found = read_checkpoint(Path(FOLDER) / "checkpoints" / name)
    assert (len(found.tensors), next(iter(found.tensors))) == (count, first)
    assert guess_classes(found.tensors) == classes
    assert found.normalization is None


@pytest.mark.real_data
@pytest.mark.skipif(not FOLDER, reason="CARTL_TEST_DATA names no folder of real images")
def test_our_own_weights_in_half_precision_fit_our_network() -> None:
    files = sorted((Path(FOLDER) / "sources").glob("*.safetensors"))
    assert files
    with torch.device("meta"):
        like = build_model("wrn-28-4", 10).state_dict()
    for path in files:
        found = read_checkpoint(path)
        assert recognise(found.tensors) == "wrn-28-4"
        done = match(found.tensors, like, (), found.normalization)
        assert done.remarks == ()
        assert done.tensors["normalize.std"].flatten().tolist() == pytest.approx(
            [0.2455, 0.243, 0.2607], abs=1e-3
        )


def test_the_checkpoint_that_pyautoattack_brings_is_a_resnet18() -> None:
    package = pytest.importorskip("pyautoattack")
    path = Path(package.__file__).parent / "examples" / "model_test.pt"
    if not path.exists():
        pytest.skip("this pyautoattack brings no checkpoint")
    found = read_checkpoint(path)
    assert recognise(found.tensors) == "resnet-18"
    assert (len(found.tensors), guess_classes(found.tensors)) == (122, 10)
