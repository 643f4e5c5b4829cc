"""``cartl import``: a stranger's checkpoint becomes a source run, and is looked at."""

import json
import os
from importlib import util
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from cartl_cli import load_model
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.reader import read_run
from tests import tiny
from tests.conftest import Command

FOLDER = Path(os.environ.get("CARTL_TEST_DATA", ""))
real_data = pytest.mark.skipif(
    "CARTL_TEST_DATA" not in os.environ, reason="CARTL_TEST_DATA names no folder of real images"
)
TINY = ("--dataset", "shapes", "--limit", 40, "--pgd-steps", 2)


def tiny_weights(classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = build_model("wrn-10-1", classes).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("normalize")}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small network for the ten built-in classes, in the layout of RobustBench's files."""
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in tiny_weights().items()}}, path)
    return path


def test_an_import_is_a_source_run_like_any_other(cartl: Command, checkpoint: Path) -> None:
    """It predicts as the network in the file, and can be transferred from and attacked."""
    done = cartl(
        *(
            "import",
            checkpoint,
            "--arch",
            "wrn-10-1",
            "--mean",
            "0.4,0.5,0.6",
            "--std",
            "0.2,.3,.4",
        ),
        *("--origin", "a friend", "--licence", "MIT", "--threat", "linf 8/255", "--name", "theirs"),
        *("--k", 3, *TINY, "--json"),
    )
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert (said["run"], said["classes"], said["n"]) == ("theirs", 10, 40)
    manifest = read_run(Path("runs/theirs")).manifest
    assert (manifest.kind, manifest.k, manifest.data.measured) == ("import", 3, "test")
    assert manifest.original is not None
    assert (manifest.original.file, len(manifest.original.sha256)) == ("model.pt", 64)
    config = manifest.config.model_dump()
    assert (config["origin"], config["licence"], config["threat"]) == (
        *("a friend", "MIT", "linf 8/255"),
    )
    expected = build_model("wrn-10-1", 10)
    expected.load_state_dict(tiny_weights(), strict=False)
    expected.normalize.fix((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        found, like = load_model("runs/theirs")(images), expected.eval()(images)
    torch.testing.assert_close(found, like)

    tuning = ("--source", "theirs", "--epochs", 1, "--classes", "ring,frame", "--name", "target")
    done = cartl("transfer", *tuning)
    assert done.code == 0, done.err
    assert read_run(Path("runs/target")).manifest.k == 3
    for run in ("theirs", "target"):
        done = cartl("attack", run, "--pgd-steps", 1, "--limit", 20, "--checks", "off")
        assert done.code == 0, done.err
    done = cartl("report", "--format", "csv")
    assert done.code == 0, done.err
    assert "import theirs" in done.out
    done = cartl("transfer", "--method", "latent", "--k", 2, *tuning[:-1], "latent")
    assert done.code == 0, done.err
    assert "radius" in done.err


def test_what_was_not_measured_says_so_where_it_matters(cartl: Command, checkpoint: Path) -> None:
    done = cartl("import", checkpoint, "--arch", "wrn-10-1", "--name", "theirs")
    assert done.code == 0, done.err
    assert "no normalization is known" in done.err
    assert "it was not measured here; cartl import with --dataset" in done.err
    run = read_run(Path("runs/theirs"))
    assert run.import_results.clean_accuracy is None
    assert run.manifest.model.classes == tuple(f"class {number}" for number in range(10))
    tuning = ("--epochs", 1, "--classes", "ring,frame", "--k", 1)
    tuned = cartl("transfer", *tuning)
    assert tuned.code == 0
    assert "dataset: shapes-target (built in; --dataset takes a folder of your images)" in tuned.err
    named = cartl("transfer", *tuning, "--dataset", "shapes-target", "--seed", 1)
    assert "(built in; " not in named.err
    done = cartl("transfer", *tuning, "--method", "latent")
    assert done.code == 2
    assert "--radius: auto needs the images of source 'theirs'" in done.err
    done = cartl("attack", "theirs")
    assert done.code == 2
    assert "--dataset: 'theirs' was imported without images; name some, or another run" in done.err
    after = cartl("export", "theirs").err  # an attack, which is next of others, would be refused
    assert "next: cartl report theirs --format html" in after


def test_classes_have_the_order_of_the_outputs(cartl: Command, tmp_path: Path) -> None:
    """One network, its outputs turned around: the same answers, the same accuracies."""
    names = list(read_names(cartl))
    state = tiny_weights()
    save_file(state, tmp_path / "plain.safetensors")
    turned = {k: v.flip(0) if ".linear." in k else v for k, v in state.items()}
    save_file(turned, tmp_path / "turned.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(reversed(names)) + "\n")
    results = []
    for name, more in (("plain", ()), ("turned", ("--classes", f"@{tmp_path / 'names.txt'}"))):
        arguments = (tmp_path / f"{name}.safetensors", "--arch", "wrn-10-1", *TINY, *more)
        done = cartl("import", *arguments, "--name", name)
        assert done.code == 0, done.err
        results.append(read_run(Path("runs", name)).import_results.clean_accuracy)
        done = cartl("attack", name, "--pgd-steps", 1, "--limit", 100, "--checks", "off", "--json")
        assert done.code == 0, done.err
        results.append(json.loads(done.out)["clean_accuracy"])
    assert results[:2] == results[2:]


def test_a_model_that_answers_at_chance_is_told(cartl: Command, checkpoint: Path) -> None:
    done = cartl("import", checkpoint, "--arch", "wrn-10-1", *TINY)
    assert done.code == 0, done.err
    assert "its outputs are taken for the classes of shapes, in their order" in done.err
    assert (
        "is at chance; these may be other images than its own, --arch another network" in done.err
    )
    assert "normalization: mean 0,0,0, std 1,1,1" in done.err


def read_names(cartl: Command) -> tuple[str, ...]:
    from cartl_cli.core.data.shapes import shapes

    return shapes().classes


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "--arch: name the network; the file seems to be wrn-10-1"),
        (("--arch", "wrn-10-1", "--mean", "0.5", "--std", "1"), 2, "give three numbers, as R,G,B"),
        (("--arch", "wrn-16-1"), 1, "the file does not fit: "),
        (("--arch", "wrn-10-1", "--mean", "0.5,0.5,0.5"), 2, "goes with --std; give both"),
        (
            ("--arch", "wrn-10-1", "--mean", "125,123,114", "--std", "63,62,66"),
            *(2, "is of pixels in 0..1; divide both by 255"),
        ),
        (("--arch", "wrn-10-1", "--classes", "a,b"), 2, "2 names, the file has 10 outputs"),
        (
            ("--arch", "wrn-10-1", "--dataset", "shapes-target"),
            *(2, "has 8 classes, the file 10 outputs"),
        ),
        (
            ("--arch", "wrn-10-1", "--resize", "squash", "--shorter-side", 40),
            *(2, "goes with --resize crop"),
        ),
        (("--arch", "wrn-10-1", "--k", 9), 2, "--k: 9, but wrn-10-1 has 5 blocks; use 1..5"),
    ],
)
def test_an_import_that_cannot_be_is_refused(
    cartl: Command, checkpoint: Path, arguments: tuple[object, ...], code: int, says: str
) -> None:
    done = cartl("import", checkpoint, *arguments)
    assert (done.code, says in done.err) == (code, True), done.err
    assert not Path("runs").exists() or not list(Path("runs").glob("*-import"))


def test_a_file_that_is_not_named_or_not_there(cartl: Command) -> None:
    assert "name the file of weights" in cartl("import", "--arch", "wrn-10-1").err
    done = cartl("import", "gone.pt", "--arch", "wrn-10-1")
    assert (done.code, "no such file: 'gone.pt'" in done.err) == (2, True)


def test_another_normalization_that_suits_better_is_named(
    cartl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network trained on normalized pixels, imported without saying so."""
    done = cartl(
        *("pretrain", "--method", "natural", "--arch", "wrn-10-1", "--k", 1, "--epochs", 3),
        *("--classes", "disk,square", "--name", "own"),
    )
    assert done.code == 0, done.err
    state = {k: v.clone() for k, v in load_model("runs/own").state_dict().items()}
    mean, std = (state.pop(f"normalize.{name}").flatten() for name in ("mean", "std"))
    from cartl_cli.core.imports import measuring
    from cartl_cli.core.imports.unwrapping import Normalization

    theirs = Normalization(tuple(mean.tolist()), tuple(std.tolist()))
    monkeypatch.setitem(measuring.USUAL, "theirs", theirs)
    save_file(state, tmp_path / "bare.safetensors")
    monkeypatch.setattr(measuring, "right", lambda c, m, s, usual: 1.0 + (usual == theirs))
    shapes = two_shapes(tmp_path)
    done = cartl("import", tmp_path / "bare.safetensors", "--arch", "wrn-10-1", "--dataset", shapes)
    assert done.code == 0, done.err
    assert "no normalization is known; with that of theirs 200.0 % are right" in done.err


def two_shapes(root: Path) -> Path:
    """Some of the built-in images of two classes, as a folder."""
    from cartl_cli.core.data.shapes import shapes

    data = shapes()
    for label, name in ((0, "disk"), (1, "square")):
        for part, split in (("train", data.train), ("test", data.evaluation)):
            folder = root / "two" / part / name
            folder.mkdir(parents=True)
            for number in (split.labels == label).nonzero().flatten()[:20].tolist():
                pixels = split.images[number].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root / "two"


def test_a_network_for_large_images_takes_photographs(cartl: Command, tmp_path: Path) -> None:
    """torchvision's names in the layout of the robustness library; the crop goes to the target."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    state = {f"module.model.{k}": v for k, v in theirs.state_dict().items()}
    state["module.normalizer.new_mean"] = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    state["module.normalizer.new_std"] = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    state |= {f"module.attacker.model.{k}": v for k, v in theirs.state_dict().items()}
    torch.save({"model": state, "epoch": 7}, tmp_path / "theirs.pt")
    done = cartl(
        *("import", tmp_path / "theirs.pt", "--arch", "torchvision:resnet18", "--name", "theirs"),
        *("--image-size", 64, "--resize", "crop", "--shorter-side", 72),
    )
    assert done.code == 0, done.err
    assert "images become: 64 pixels, crop of 72, bilinear" in done.err
    images = torch.rand(2, 3, 64, 64)
    normalize = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        found, like = load_model("runs/theirs")(images), theirs(normalize(images))
    torch.testing.assert_close(found, like, rtol=1e-4, atol=1e-5)
    tuning = ("--dataset", two_shapes(tmp_path), "--k", 1, "--epochs", 1, "--name", "target")
    done = cartl("transfer", *tuning)
    assert done.code == 0, done.err
    assert read_run(Path("runs/target")).manifest.model.preprocessing.shorter_side == 72


SMALL_CNN = """
from collections import OrderedDict

from torch import Tensor, nn


class Gray(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(1, keepdim=True)


class SmallCNN(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        sizes = ((1, 32), (32, 32), (32, 64), (64, 64))
        layers = {f"conv{n}": nn.Conv2d(*pair, 3) for n, pair in enumerate(sizes, 1)}
        self.feature_extractor = nn.Sequential(OrderedDict(layers))
        linear = {"fc1": nn.Linear(1024, 200), "fc2": nn.Linear(200, 200)}
        self.classifier = nn.Sequential(OrderedDict(linear, fc3=nn.Linear(200, classes)))

    @property
    def stem(self) -> nn.Module:
        return nn.Sequential(Gray(), self.feature_extractor.conv1, nn.ReLU())

    @property
    def blocks(self) -> list[nn.Module]:
        _, conv2, conv3, conv4 = self.feature_extractor
        fc1, fc2, _ = self.classifier
        return [
            nn.Sequential(conv2, nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(conv3, nn.ReLU()),
            nn.Sequential(conv4, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Sequential(fc1, nn.ReLU()),
            nn.Sequential(fc2, nn.ReLU()),
        ]

    @property
    def head(self) -> nn.Module:
        return self.classifier.fc3
"""

RESNET_2B = """
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet2b(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer1 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.linear1 = nn.Linear(1024, 100)
        self.linear2 = nn.Linear(100, classes)

    @property
    def stem(self) -> nn.Module:
        return nn.Sequential(self.conv1, nn.ReLU())

    @property
    def blocks(self) -> list[nn.Module]:
        return [*self.layer1, nn.Sequential(nn.Flatten(), self.linear1, nn.ReLU())]

    @property
    def head(self) -> nn.Module:
        return self.linear2
"""


@real_data
@pytest.mark.real_data
def test_a_robust_network_of_digits(cartl: Command) -> None:
    """TRADES' own: 99.3 % clean, about 93.4 % under PGD-20 at 0.3, by those who kept it."""
    Path("small.py").write_text(SMALL_CNN)
    done = cartl(
        *("import", FOLDER / "checkpoints/trades_mnist_smallcnn.pt", "--arch", "small.py:SmallCNN"),
        *("--dataset", FOLDER / "mnist.zip", "--image-size", 28, "--eps", 0.3, "--limit", 500),
    )
    assert done.code == 0, done.err
    results = read_run(Path("runs/001-import")).import_results
    assert (results.clean_accuracy or 0) > 0.985
    assert 0.9 < (results.robust_accuracy or 0) < 0.965
    assert "not robust" not in done.err


@real_data
@pytest.mark.real_data
def test_a_normalization_that_the_file_lacks_is_missed(cartl: Command, small_cifar: Path) -> None:
    """alpha-beta-CROWN's resnet2b: 69 % clean with its normalization, a fifth without it."""
    Path("net.py").write_text(RESNET_2B)
    common = (FOLDER / "checkpoints/resnet2b.pth", "--arch", "net.py:ResNet2b", "--pgd-steps", 5)
    where = ("--dataset", small_cifar)
    done = cartl("import", *common, *where, "--name", "bare")
    assert done.code == 0, done.err
    assert "warning: no normalization is known; with that of" in done.err
    known = ("--mean", "0.485,0.456,0.406", "--std", "0.225,0.225,0.225")
    done = cartl("import", *common, *where, *known, "--name", "known")
    assert done.code == 0, done.err
    assert "warning" not in done.err
    bare, better = (
        read_run(Path("runs", name)).import_results.clean_accuracy or 0
        for name in ("bare", "known")
    )
    assert bare < 0.4 < 0.6 < better < 0.8


@real_data
@pytest.mark.real_data
@pytest.mark.skipif(util.find_spec("pyautoattack") is None, reason="needs pyautoattack")
def test_a_network_that_is_not_robust_is_called_so(cartl: Command, small_cifar: Path) -> None:
    spec = util.find_spec("pyautoattack")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.parent.rglob("pyautoattack/**/model_test.pt")
    done = cartl(
        *("import", file, "--arch", "resnet-18", "--dataset", small_cifar, "--limit", 60),
        *("--pgd-steps", 5),
    )
    assert done.code == 0, done.err
    assert "warning: this source is not robust: PGD-5 at eps 8/255 leaves" in done.err
    assert (read_run(Path("runs/001-import")).import_results.clean_accuracy or 0) > 0.75


@real_data
@pytest.mark.real_data
def test_weights_of_ours_in_float16_are_a_source(cartl: Command, small_cifar: Path) -> None:
    file = FOLDER / "sources/cifar10-wrn-28-4-at.safetensors"
    done = cartl(
        *("import", file, "--arch", "wrn-28-4", "--dataset", small_cifar, "--limit", 40),
        *("--pgd-steps", 2),
    )
    assert done.code == 0, done.err
    assert "warning" not in done.err
    assert (read_run(Path("runs/001-import")).import_results.clean_accuracy or 0) > 0.5


@pytest.fixture(scope="module")
def small_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first test images of each class of CIFAR-10, as a zip: 40 to look at, 2 to train on."""
    import zipfile

    path = tmp_path_factory.mktemp("data") / "cifar10.zip"
    taken: dict[str, int] = {}
    with zipfile.ZipFile(FOLDER / "cifar10.zip") as whole, zipfile.ZipFile(path, "w") as some:
        for member in whole.namelist():
            *_, split, name = Path(member).parts[:-1]
            count = taken[f"{split}/{name}"] = taken.get(f"{split}/{name}", 0) + 1
            if count <= {"train": 2, "test": 20}[split]:
                some.writestr(member, whole.read(member))
    return path


def test_the_distance_of_a_source_comes_along_without_its_images(cartl: Command) -> None:
    """``--radius auto`` needs how far its features move, which its run or its export says."""
    shown = ("--classes", "disk,square", "--epochs", 1, "--arch", "wrn-10-1")
    assert cartl("pretrain", *shown, "--k", 3, "--name", "source").code == 0
    assert cartl("export", "source", "--format", "hub", "--out", "hub").code == 0
    moved = read_run(Path("runs/source")).results.moved
    assert moved[-3] is not None
    for name, place in (("run", "runs/source"), ("exported", "hub"), ("again", "run-hub")):
        stated = ("--licence", "MIT", "--threat", "linf 8/255") if name == "run" else ()
        assert cartl("import", place, *stated, "--name", name).code == 0
        assert read_run(Path("runs", name)).import_results.moved == moved
        assert cartl("export", name, "--format", "hub").code == 0
        target = ("--source", name, "--name", f"{name}-tuned", "--k", 2, "--method", "latent")
        done = cartl("transfer", "--classes", "ring,frame", "--epochs", 1, *target)
        assert done.code == 0, done.err
        radius = read_run(Path("runs", f"{name}-tuned")).manifest.radius
        assert radius == pytest.approx(moved[-3] / 12)

    config = read_run(Path("runs/again")).manifest.config.model_dump()
    assert (config["licence"], config["threat"]) == ("MIT", "linf 8/255")

    assert "no such file: 'hubs'" in cartl("import", "hubs").err
    told = json.loads(Path("hub/config.json").read_text())
    for wrong in ("0.14", True, -1):
        Path("hub/config.json").write_text(json.dumps(told | {"moved": [wrong] * 5}))
        assert "moved" in cartl("import", "hub", "--name", "other").err
    told["moved"].append(0.1)
    Path("hub/config.json").write_text(json.dumps(told))
    done = cartl("import", "hub", "--name", "other")
    assert (done.code, "moved has 7 numbers where 6 belong" in done.err) == (1, True), done.err


def test_what_an_attack_found_comes_along(cartl: Command) -> None:
    """An export says what its attack left; an import tells it, and does not vouch for it."""
    shown = ("--classes", "disk,square", "--epochs", 1, "--arch", "wrn-10-1")
    assert cartl("pretrain", *shown, "--k", 3, "--name", "made").code == 0
    attack = ("--eps", "4/255,16/255", "--pgd-steps", 2, "--limit", 20, "--checks", "off")
    assert cartl("attack", "made", *attack).code == 0
    assert cartl("export", "made", "--format", "hub", "--out", "hub").code == 0
    card = Path("hub/README.md").read_text()
    assert "When it was made, it was measured on clean images" in card  # five times as many
    assert 'name: "clean accuracy (n = 100)"' in card
    assert "eps 16/255, n = 20)" in card
    results = read_run(Path("runs/002-attack")).attack_results
    left = 100 * results.by_eps[-1].robust_accuracy
    said = f"its maker measured {100 * results.clean_accuracy:.1f} % clean, {left:.1f} % under "
    for name, place in (("first", "hub"), ("second", "first-hub")):
        done = cartl("import", place, "--name", name)
        assert said in done.err.replace("\n", " "), done.err
        run = read_run(Path("runs", name))
        assert run.manifest.config.model_dump()["threat"] == "linf 8/255"  # of its training
        original = run.manifest.original
        assert original is not None
        assert original.claim.endswith(
            "at eps 16/255 (20 images of shapes; checks of the attack: off)"
        )
        assert cartl("export", name, "--format", "hub").code == 0
        card = Path(f"{name}-hub/README.md").read_text()
        assert "**`cartl attack` was not run on this model.**\nIts maker measured" in card
        assert "Nobody knows how robust" not in card

    told = json.loads(Path("hub/config.json").read_text())
    for wrong, said in (
        ({"classes": "disk"}, "classes cannot be 'disk'"),
        ({"classes": ["disk", "disk"]}, "classes cannot be ['disk', 'disk']; get the folder again"),
        ({"classes": ["disk", " "]}, "classes.1 cannot be ' '"),
        ({"classes": ["disk"]}, "1 names of classes stand beside weights with 2 outputs"),
        ({"attack": told["attack"] | {"n": -1}}, "attack.n cannot be -1"),
    ):
        Path("hub/config.json").write_text(json.dumps(told | wrong))
        done = cartl("import", "hub", "--name", "other")
        assert (done.code, said in done.err) == (1, True), done.err
    Path("hub/config.json").write_text("[]")
    done = cartl("import", "hub", "--name", "other")
    assert (done.code, "holds no JSON object" in done.err) == (1, True), done.err
    Path("hub/config.json").write_text(json.dumps(told))
    tiny.make_images(Path("images"))
    done = cartl("import", "hub", "--dataset", "images", "--pgd-steps", 1, "--name", "other")
    assert "note: the 2 names of classes beside the weights do not name its outputs" in done.err
    assert read_run(Path("runs/other")).manifest.model.classes == ("dark", "light")


def test_sums_that_are_means_stay_means(cartl: Command, tmp_path: Path) -> None:
    """A model of NEFT is imported with what its run, or an export, says beside its weights."""
    for command in (
        ("pretrain", "--method", "natural", "--arch", "wrn-10-1", "--k", 3, "--name", "source"),
        ("transfer", "--neft-beta", 0.4, "--classes", "ring,frame", "--name", "neft"),
    ):
        done = cartl(*command, "--epochs", 1)
        assert done.code == 0, done.err
    assert cartl("export", "neft", "--format", "hub", "--out", "hub").code == 0
    images, weights = torch.rand(2, 3, 32, 32), Path("runs/neft/model.safetensors")
    with torch.no_grad():
        expected = load_model("runs/neft")(images)
    for name, place in (("run", "runs/neft"), ("file", weights), ("exported", "hub")):
        done = cartl("import", place, "--name", name)
        assert done.code == 0, done.err
        model = read_run(Path("runs", name)).manifest.model
        assert (model.convex_blocks, model.classes) == (3, ("ring", "frame"))
        with torch.no_grad():
            assert torch.equal(load_model(f"runs/{name}")(images), expected)
    done = cartl("transfer", "--source", "run", "--classes", "tee,grid", "--epochs", 1)
    assert done.code == 0, done.err
    tuned = read_run(Path("runs/006-transfer"))
    assert tuned.manifest.model.convex_blocks == 3
    done = cartl("attack", "6", "--attack", "fgsm", "--pgd-steps", 1)  # it is what was measured
    assert done.code == 0, done.err

    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(weights.read_bytes())
    done = cartl("import", alone, "--arch", "wrn-10-1")
    assert (done.code, "import the folder of its run" in done.err) == (1, True), done.err
    told = json.loads(Path("hub/config.json").read_text())
    Path("hub/config.json").write_text(json.dumps(told | {"convex_blocks": 0}))
    done = cartl("import", "hub")
    assert (done.code, "import the folder of its run" in done.err) == (1, True), done.err
    Path("hub/config.json").write_text(json.dumps(told))
    changed = Path("hub/model.safetensors")
    changed.write_bytes(Path("runs/source/model.safetensors").read_bytes())
    done = cartl("import", "hub")
    assert (done.code, "is not the file that is described beside it" in done.err) == (1, True)


def test_what_no_command_could_use_is_not_imported(cartl: Command, runs_dir: Path) -> None:
    own = load_file(runs_dir / "source" / "model.safetensors")
    (name,) = (name for name in own if name.endswith("blocks.0.norm_act1.norm.running_var"))
    for changed, said in (
        ({name: own[name] - 9}, "running_var < 0"),
        ({"stem.weight": own["stem.weight"] * 0}, "stem.weight is all zero"),
    ):
        save_file(own | changed, "broken.safetensors")
        done = cartl("import", "broken.safetensors", "--arch", "wrn-10-1")
        assert (done.code, said in done.err) == (1, True), done.err


def test_counters_that_were_halved_with_the_weights_are_no_obstacle(
    cartl: Command, runs_dir: Path
) -> None:
    own = load_file(runs_dir / "source" / "model.safetensors")
    half = {name: t.half() for name, t in own.items()}
    torch.save({n: t * 1e6 if n.endswith("_tracked") else t for n, t in half.items()}, "half.pt")
    done = cartl("import", "half.pt", "--arch", "wrn-10-1", "--name", "half")
    assert done.code == 0, done.err
    assert "counters num_batches_tracked are not in the file as such; set to 0" in done.err


def test_a_size_that_the_network_does_not_take_is_refused(cartl: Command, tmp_path: Path) -> None:
    Path("my.py").write_text(
        "from torch import nn\n"
        "def factory(classes):\n"
        "    stem = nn.Conv2d(3, 4, 8, 8)\n"
        "    return nn.Sequential(stem, nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, classes))\n"
    )
    network = {"0.weight": (4, 3, 8, 8), "0.bias": (4,), "1.weight": (4, 4, 1, 1), "1.bias": (4,)}
    network |= {"3.weight": (5, 64), "3.bias": (5,)}
    torch.save({name: torch.rand(shape) for name, shape in network.items()}, "my.pt")
    line = ("import", "my.pt", "--arch", "my.py:factory", "--image-size")
    assert cartl(*line, 32).code == 0
    done = cartl(*line, 64)
    assert (done.code, "does not take images of 3 × 64 × 64 pixels" in done.err) == (2, True), (
        done.err
    )
