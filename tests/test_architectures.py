"""Networks of others: equal to theirs, cut into blocks, folded, tuned, and what is refused."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cartl_cli import load_model
from cartl_cli.core.errors import RunError, UsageError
from cartl_cli.core.method.batch_norm import KEPT, freeze, settled
from cartl_cli.core.method.neft import obstacle
from cartl_cli.core.models.block_table import block_table
from cartl_cli.core.models.blocks import BlockModel, ResidualSum, extractor
from cartl_cli.core.models.folding import folded
from cartl_cli.core.models.timm_networks import _ClassToken
from cartl_cli.core.registry.architectures import build_model, parse_architecture, renamed
from cartl_cli.core.registry.transfer_methods import check_network
from cartl_cli.core.runs.reader import list_runs, read_run
from tests.conftest import Command, ImageFolder
from tests.foreign import lived_in, published

CLASSES = 5
SIZES = {
    "wrn-10-2-relu": 32,
    "resnet-18": 32,
    "preact-resnet-18": 32,
    "preact-resnet-18-raw": 32,
    "torchvision:resnet18": 64,
    "torchvision:resnet50": 64,
    "timm:convnext_tiny": 64,
    "timm:xcit_small_12_p16_224": 64,
    "timm:deit_tiny_patch16_224": 224,
    "timm:swin_tiny_patch4_window7_224": 224,
}
"""Architectures, and a size of images that each takes."""
OTHERS = (
    *("wrn-16-1", "torchvision:resnet34", "torchvision:wide_resnet50_2"),
    *("timm:convnextv2_atto", "timm:deit3_small_patch16_224", "timm:xcit_nano_12_p8_224"),
)
PAGE = Path(__file__).parents[1] / "docs" / "own-model.md"
OWN = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]


def loaded(arch: str) -> tuple[BlockModel, nn.Module]:
    """Our network with the tensors of the published one, and that one."""
    torch.manual_seed(0)
    theirs = lived_in(published(arch, CLASSES))
    ours: BlockModel = build_model(arch, CLASSES).double().eval()
    renames = parse_architecture(arch).renames
    named = {renamed(renames, name): tensor for name, tensor in theirs.state_dict().items()}
    named.pop("", None)
    for name, tensor in ours.normalize.state_dict(prefix="normalize.").items():
        named[name] = named.get(name, tensor).view_as(tensor)
    ours.load_state_dict(named)  # strict: all of them, and no others
    return ours, theirs


@pytest.mark.parametrize("arch", SIZES)
def test_a_published_network_is_ours_by_other_names(arch: str) -> None:
    ours, theirs = loaded(arch)
    images = torch.rand(1, 3, SIZES[arch], SIZES[arch], dtype=torch.float64)
    with torch.no_grad():
        wanted = theirs(images)
        assert wanted.std() > 1e-3
        assert (ours(images) - wanted).abs().max() < 1e-6

        light, blocks = folded(ours), len(ours.blocks)
        assert not any(type(module) is nn.BatchNorm2d for module in light.modules())
        features = ours.features_at(images, range(blocks))
        stops = range(blocks) if SIZES[arch] < 100 else (0, blocks // 2, blocks - 1)
        embedded = ours.stages(features[0], 0)[-1]
        assert embedded.shape == (1, ours.head.in_features)
        for stop in stops:
            found = features[stop]
            torch.testing.assert_close(light.features(images, stop), found, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(ours.classify(found, stop), wanted, rtol=1e-9, atol=1e-9)
            stages = ours.stages(found, stop)
            assert len(stages) == blocks - stop
            torch.testing.assert_close(stages[:-1], features[stop + 1 :], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(stages[-1], embedded, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.head(embedded), wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(light(images), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch", [*SIZES, *OTHERS])
def test_names_of_ours_stay_and_no_two_rules_want_one_name(arch: str) -> None:
    architecture = parse_architecture(arch)
    empty = architecture.empty()
    assert architecture.count() == len(empty.blocks)
    renames = architecture.renames
    assert [renamed(renames, name) for name in empty.state_dict()] == list(empty.state_dict())
    for name in empty.state_dict():
        assert sum(bool(re.match(pattern, name)) for pattern, _ in renames) == 0
    if arch not in OTHERS:
        with torch.device("meta"):
            names = published(arch, 2).state_dict()
        rules = [sum(bool(re.match(pattern, n)) for pattern, _ in renames) for n in names]
        assert max(rules) == 1
        wanted = {renamed(renames, name) for name in names} - {""}
        assert wanted | {"normalize.mean", "normalize.std"} == set(empty.state_dict())


def test_a_memory_layout_of_images_does_not_disturb_tokens() -> None:
    model: BlockModel = build_model("timm:xcit_nano_12_p16_224", 3)
    model.to(memory_format=torch.channels_last).eval()
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    assert model.features(images, 3).shape == (2, 4, 128)


@pytest.mark.parametrize(
    ("arch", "size", "said"),
    [
        ("timm:resnet50", 64, "is of timm's class ResNet, which is not cut into blocks here"),
        ("timm:deit_tiny_distilled_patch16_224", 224, "VisionTransformerDistilled"),
        ("timm:vit_base_patch16_siglip_224", 224, "pools by attention"),
        ("timm:lenet", 32, "timm has no network 'lenet'"),
        ("timm:deit_tiny_patch16_224", 32, "the stem of timm:deit_tiny_patch16_224 does not take"),
        ("timm:convnext_atto", 16, "does not take images of 16 pixels"),
    ],
)
def test_what_timm_cannot_give_is_said(arch: str, size: int, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        block_table(arch, size)


def test_a_missing_timm_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package timm; pip install 'cartl\[timm\]'"):
        parse_architecture("timm:convnext_tiny").count()


@pytest.mark.parametrize(
    ("arch", "k", "said"),
    [
        ("torchvision:resnet50", 17, None),
        ("torchvision:wide_resnet50_2", 17, None),
        ("preact-resnet-18-raw", 9, None),
        ("wrn-16-1-relu", 8, None),
        ("timm:convnext_tiny", 2, "cannot give the weights of ConvNeXtBlock a spectral norm"),
        ("timm:xcit_nano_12_p16_224", 2, "cannot"),
        ("timm:deit_tiny_patch16_224", 2, "the residual sums of Block convex"),
        ("timm:swin_tiny_patch4_window7_224", 1, "the weights of LayerNorm a spectral norm"),
    ],
)
def test_neft_is_refused_where_it_cannot_reach(arch: str, k: int, said: str | None) -> None:
    empty = parse_architecture(arch).empty()
    why = obstacle(empty, k)
    assert why is None if said is None else why is not None and said in why
    settings = {"neft_beta": 0.4, "lwf_lambda": None, "keep_lambda": None, "freeze_bn": None}
    if said is None:
        check_network(empty, k, settings)
    else:
        with pytest.raises(UsageError, match="--neft-beta: NEFT cannot"):
            check_network(empty, k, settings)
        check_network(empty, k, settings | {"neft_beta": None})


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([nn.Conv2d(4, 4, 3, groups=4)], "a grouped convolution"),
        ([nn.MultiheadAttention(4, 2)], "MultiheadAttention"),
        ([nn.LayerNorm(4)], "LayerNorm"),
        ([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout()], None),
    ],
)
def test_neft_looks_at_each_layer(layers: list[nn.Module], said: str | None) -> None:
    why = obstacle(BlockModel(nn.Identity(), [nn.Sequential(*layers)]), 1)
    assert why is None if said is None else why is not None and said in why


def test_a_case_of_batch_norm_is_refused_where_there_is_none() -> None:
    settings: dict[str, Any] = {"neft_beta": None, "lwf_lambda": None, "keep_lambda": None}
    convnext, xcit = (
        parse_architecture(f"timm:{name}").empty()
        for name in ("convnext_atto", "xcit_nano_12_p16_224")
    )
    for case in (None, *KEPT):
        check_network(xcit, 2, settings | {"freeze_bn": case})
        if case in (None, "none"):
            check_network(convnext, 2, settings | {"freeze_bn": case})
        else:
            with pytest.raises(UsageError, match=f"--freeze-bn: {case}, but this network has no"):
                check_network(convnext, 2, settings | {"freeze_bn": case})


@pytest.mark.parametrize("case", KEPT)
def test_dropout_of_the_extractor_never_disturbs_its_features(case: Any) -> None:
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))
    head = nn.Sequential()
    head.linear = nn.Linear(4, 2)
    model = BlockModel(stem, [nn.Sequential(nn.BatchNorm2d(4), nn.Dropout()), head])
    freeze(model, 1, case)
    drops = [m.training for m in extractor(model, 1).modules() if isinstance(m, nn.Dropout)]
    assert drops == [False, False]
    assert settled(model, 1) == KEPT[case][0]


class Crossed(nn.Module):
    """Layers in a Sequential that are not called in a row, and a norm with more than norm to it."""

    class NormAct(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(super().forward(x))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.norm_act = Crossed.NormAct(3)
        self.bare = nn.BatchNorm2d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.layers[0](x)
        crossed: Tensor = self.bare(self.norm_act(mapped + self.layers[1](mapped.relu())))
        return crossed


def test_folding_takes_nothing_for_granted_in_layers_of_others(images: Tensor) -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head.linear = nn.Linear(3, 2)
    model = lived_in(BlockModel(Crossed(), [Crossed(), head]))
    points = images.double()
    torch.testing.assert_close(folded(model)(points), model(points))


# A file of one's own


def finish(cartl: Command, line: str) -> None:
    done = cartl(*line.split())
    assert done.code == 0, done.err


def own(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "my_model.py"
    file.write_text(text)
    return file


def test_the_model_of_the_docs_goes_from_pretrain_to_python(
    cartl: Command, tmp_path: Path, images: Tensor
) -> None:
    own(tmp_path, OWN)
    small = "--epochs 1 --batch-size 64 --device cpu"
    source = f"pretrain --arch my_model.py:factory --k 2 --classes disk,bar {small}"
    finish(cartl, f"{source} --pgd-steps 1 --fdm-lambda 0.01")
    finish(cartl, f"transfer --k 2 --neft-beta 0.5 --classes ring,grid,frame {small}")
    target = read_run(Path("runs/002-transfer"))
    assert target.results.spectral_norms
    assert all(abs(norm - 0.5) < 1e-3 for norm in target.results.spectral_norms.values())
    assert load_model("runs/002-transfer")(images).shape == (8, 3)
    finish(cartl, "attack --pgd-steps 2 --limit 20 --checks fast --batch-size 20")
    assert cartl("transfer", "--k", 9).err.endswith("has 3 blocks; use 1..3\n")


def test_a_run_does_not_say_which_file_is_run(cartl: Command, tmp_path: Path) -> None:
    """A run of a stranger names a file: nothing runs it before the user has named it."""
    file = own(tmp_path, OWN)
    arch = f"{file}:factory"
    tiny = "--epochs 1 --batch-size 64 --device cpu --method natural --k 2 --classes disk,bar"
    assert cartl("pretrain", "--arch", arch, *tiny.split()).code == 0
    ran = tmp_path / "ran"
    file.write_text(f"{OWN}\nopen({str(ran)!r}, 'w').close()\n")  # another file by that name
    assert [run.name for run in list_runs(Path("runs"))] == ["001-pretrain"]
    with pytest.raises(RunError, match="nobody has named"):
        load_model("runs/001-pretrain")
    done = cartl("transfer", "--k", 1)
    assert done.code == 1
    assert f"cartl pretrain --describe --arch {arch}" in done.err
    assert cartl("pretrain", "--resume", "001-pretrain").code == 0  # complete: nothing is run
    assert not ran.exists()
    assert cartl("pretrain", "--describe", "--arch", arch, "--k", 1).code == 0
    assert ran.exists()
    load_model("runs/001-pretrain")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no function 'factory'"),
        ("factory = 3", "has no function 'factory'"),
        ("import nothing_like_it", "cannot be run: ModuleNotFoundError"),
        ("def factory(", "cannot be run: SyntaxError"),
        ("raise SystemExit(3)", "cannot be run: SystemExit: 3"),
        ("def factory(n):\n    return 1 / 0", "factory(10): ZeroDivisionError"),
        ("def factory(n):\n    return n", "gives a int, not an nn.Module"),
        ("factory = nn.Linear.__call__", "factory(10): "),
        ("def factory(n):\n    return nn.Linear(3, n)", "the modules stem, blocks (a list"),
        ("def factory(n):\n    return nn.Sequential(nn.Linear(3, n))", "two layers with weights"),
        (
            "def factory(n):\n    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, n, 1))",
            "must end in an nn.Linear, not in Conv2d",
        ),
        (
            "def factory(n):\n    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 7))",
            "gives 7 outputs when asked for 10 classes",
        ),
        (
            "def factory(n):\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, n))",
            "--image-size: ",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    cartl: Command, tmp_path: Path, text: str, said: str
) -> None:
    own(tmp_path, f"from torch import nn\n\n{text}\n")
    done = cartl("pretrain", "--describe", "--arch", "my_model.py:factory", "--k", 1)
    assert done.code == 2
    assert done.err.startswith("cartl: error: --")
    assert done.err.count("\n") == 1
    assert said in done.err


def test_a_file_that_is_not_there_is_named(cartl: Command) -> None:
    done = cartl("pretrain", "--arch", "none.py:factory")
    assert done.code == 2
    assert "--arch: cannot read 'none.py': No such file" in done.err


def test_a_module_with_stem_blocks_and_head_keeps_its_names_as_rules(
    cartl: Command, tmp_path: Path
) -> None:
    text = """
import torch
from torch import nn
from cartl_cli.core.models.blocks import ResidualSum

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.add = ResidualSum()

    def forward(self, x):
        return self.add(x, self.conv(x))

class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        depth = [int(x) for x in torch.linspace(1, 3, 3).tolist()]
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList(Block() for _ in depth)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, n))

NET = Net(2)

def factory(n):
    return NET if n == 2 else Net(n)
"""
    file = own(tmp_path, text)
    assert cartl("pretrain", "--describe", "--arch", f"{file}:factory", "--k", 1).code == 0
    architecture = parse_architecture(f"{file}:factory")
    assert architecture.renames == (
        (r"^head\.2\.weight$", "blocks.3.linear.weight"),
        (r"^head\.2\.bias$", "blocks.3.linear.bias"),
    )
    model = build_model(f"{file}:factory", 2)
    assert {p.device.type for p in architecture.empty().parameters()} == {"meta"}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert obstacle(model, 4) is None
    assert sum(isinstance(module, ResidualSum) for module in model.modules()) == 3


def test_what_lies_beside_a_file_is_not_found_by_itself(cartl: Command) -> None:
    Path("sibling.py").write_text("from torch import nn\n")
    Path("mine.py").write_text("from sibling import nn\n")
    done = cartl("pretrain", "--describe", "--arch", "mine.py:factory")
    assert (done.code, f"PYTHONPATH={Path.cwd()} cartl" in done.err) == (2, True), done.err


def test_tokens_with_a_class_token_are_exported_for_every_batch() -> None:
    module = _ClassToken(nn.Parameter(torch.rand(1, 1, 4)), nn.ModuleList([nn.Linear(4, 4)]))
    tokens = torch.rand(2, 3, 4)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (tokens,), dynamic_shapes=({0: batch},)).module()
    assert program(torch.rand(5, 3, 4)).shape == (5, 4, 4)


def test_a_block_may_be_a_single_layer(cartl: Command) -> None:
    Path("my.py").write_text(
        "from torch import nn\n"
        "def factory(classes):\n"
        "    first = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()\n"
        "    second = nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU()\n"
        "    last = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)\n"
        "    return nn.Sequential(*first, *second, *last)\n"
    )
    small = ("--epochs", 1, "--classes", "disk,square")
    done = cartl("pretrain", "--arch", "my.py:factory", "--method", "natural", "--k", 2, *small)
    assert done.code == 0, done.err
    done = cartl("transfer", "--k", 3, "--epochs", 1, "--classes", "ring,tee", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["spectral_norms"].keys() == {"blocks.1", "blocks.3.linear"}


def test_preact_resnet_trains_by_the_command(
    cartl: Command, image_folder: ImageFolder, images: Tensor
) -> None:
    small = f"--dataset {image_folder(size=(8, 8))} --epochs 1 --batch-size 4 --device cpu --k 1"
    source = "pretrain --arch preact-resnet-18 --image-size 8 --method fast --fdm-lambda 0.001"
    finish(cartl, f"{source} {small}")
    finish(cartl, f"transfer --keep-lambda 1 {small}")
    assert load_model("runs/002-transfer")(images[:, :, :8, :8]).shape == (8, 2)


def test_tokens_are_tuned_by_every_method(cartl: Command, image_folder: ImageFolder) -> None:
    small = f"--dataset {image_folder()} --epochs 1 --batch-size 4 --device cpu --k 2"
    finish(cartl, f"pretrain --arch timm:xcit_nano_12_p16_224 --fdm-lambda 0.01 {small}")
    for method in ("natural --keep-lambda 1 --keep-at all", "latent --radius 0.1", "at"):
        finish(cartl, f"transfer --method {method} {small}")
    done = cartl(*f"transfer --neft-beta 0.4 {small}".split())
    assert done.code == 2
    assert "--neft-beta: NEFT cannot" in done.err
