"""Any network is attacked as our own are: ``cartl_cli.attack``, and ``cartl attack --model``."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import cartl_cli
from cartl_cli import load_model
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.data_sets import DataChoice, load_data_set
from cartl_cli.core.data.shapes import shapes
from cartl_cli.core.errors import UsageError
from cartl_cli.core.models.folding import folded
from cartl_cli.core.models.whole import whole
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.statistics import accuracy_interval
from cartl_cli.core.trust import rivals
from cartl_cli.core.trust.tiers import CHECKS
from tests.conftest import Command
from tests.victims import linear

EPS = 0.004


@pytest.fixture
def known() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, images and labels; a fifth of the labels are wrong."""
    model, images, labels = linear(4, count=60)
    labels[::5] = (labels[::5] + 1) % 4
    return model, images, labels


def test_verdicts_are_those_of_the_closed_form(known: tuple[Any, Tensor, Tensor]) -> None:
    """A linear model's worst case is known."""
    model, images, labels = known
    worst = model.worst(images, labels, EPS, "linf")
    assert worst.abs().min() > 1e-4  # no image is decided by rounding
    stands = worst < 0
    right = model(images).argmax(1) == labels
    found = cartl_cli.attack(model, images, labels, eps=EPS, pgd_steps=10, checks="off")
    assert torch.equal(found.clean, right)
    assert torch.equal(found.robust, stands)
    assert 0 < int(found.robust.sum()) < int(found.clean.sum()) < 60
    n = int(stands.sum())
    assert found.robust_accuracy == n / 60
    assert found.interval == accuracy_interval(n, 60)
    assert found.clean_accuracy == int(right.sum()) / 60
    moved = (found.adversarial - images).abs().amax((1, 2, 3))
    assert (moved <= EPS + 1e-6).all()
    wrong = model(found.adversarial).argmax(1) != labels
    assert torch.equal(wrong, ~found.robust)
    assert (found.headline, found.results.trust) == ("ok", ())


def test_verdicts_are_those_of_the_command(cartl: Command, runs_dir: Path) -> None:
    settings: dict[str, Any] = {"attack": "pgd,pgd-margin", "eps": "2/255,8/255", "pgd_steps": 3}
    flags = [
        word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    line = ("attack", runs_dir / "source", *flags, "--limit", 30, "--precision", "fp32", "--json")
    done = cartl(*line, "--runs-dir", "runs")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    outcomes = load_file(Path(said["folder"]) / "outcomes.safetensors")
    choice = DataChoice("shapes", ("disk", "square", "bar"))
    split = load_data_set(choice, Preprocessing(image_size=32)).evaluation.take(outcomes["indices"])
    model = load_model(runs_dir / "source")
    found = cartl_cli.attack(model, split.images / 255, split.labels, **settings, precision="fp32")
    assert torch.equal(found.clean, outcomes["clean"])
    stands = outcomes["clean"] & ~(outcomes["fell_at"] >= 0).flatten(0, 1).any(0)
    assert 0 < int(stands.sum()) < int(found.clean.sum())
    assert int((found.robust != stands).sum()) <= 1  # other memory layout, other rounding
    assert len(found.results.by_eps) == 2
    assert [added.attack for added in found.results.by_eps[0].added] == ["pgd", "pgd-margin"]
    of_files = {"V9", "V10"}
    expected = [check["id"] for check in said["trust"] if check["id"] not in of_files]
    assert [check.id for check in found.results.trust] == expected


class Strange(nn.Module):
    """What networks of others do: ``view``, statistics of a norm by hand, plain tensors, tied
    weights, and normalization of their own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.register_buffer("std", torch.full((3, 1, 1), 0.25))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.inner = nn.Linear(4 * 64, 4 * 64)
        self.tied = self.inner
        self.last = nn.Linear(4 * 64, classes)
        self.shift = torch.zeros(4, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv((images - self.mean) / self.std) + self.shift
        assert self.norm.running_mean is not None
        x = F.batch_norm(
            x, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias
        )
        x = F.relu(x).view(len(x), -1)
        logits: Tensor = self.last(F.relu(self.tied(F.relu(self.inner(x)))))
        return logits


def strange() -> tuple[Strange, Tensor, Tensor]:
    torch.manual_seed(0)
    model, images = Strange(), torch.rand(24, 3, 8, 8)
    return model, images, model(images).argmax(1)


def test_the_model_is_left_as_it_was_found() -> None:
    model, images, labels = strange()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    kept, drawn = images.clone(), torch.get_rng_state()
    cartl_cli.attack(model, images, labels, attack="pgd,feature", pgd_steps=3)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert [module.training for module in model.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(images, kept)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize(
    "name", [name for name, one in EVALUATION_ATTACKS.items() if one.package is None]
)
def test_every_attack_runs_on_a_network_that_nobody_cut(name: str) -> None:
    model, images, labels = strange()
    found = cartl_cli.attack(
        model, images, labels, attack=name, eps=0.3, pgd_steps=9, queries=50, checks="off"
    )
    assert found.clean_accuracy == 1
    assert found.robust_accuracy < 1
    wrong = model.eval()(found.adversarial).argmax(1) != labels
    assert torch.equal(wrong, ~found.robust)


def test_every_check_runs_on_a_network_that_nobody_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKS, "thorough", (*CHECKS["default"], rivals.adaptive))
    model, images, labels = strange()
    found = cartl_cli.attack(
        *(model, images, labels),
        eps=0.02,
        pgd_steps=5,
        attack="pgd",
        checks="thorough",
        final_iterate=True,
    )
    ids = {check.id for check in found.results.trust}
    invariants = {f"V{number}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12)}
    assert ids == invariants | {f"K{number}" for number in range(1, 20) if number != 10}


def test_an_attack_without_gradients_is_refused() -> None:
    model, images, labels = strange()
    with (
        torch.inference_mode(),
        pytest.raises(UsageError, match=r"outside of torch\.inference_mode"),
    ):
        cartl_cli.attack(model, images, labels)


def test_images_may_have_any_number_of_channels() -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), torch.rand(12, 1, 8, 8)
    found = cartl_cli.attack(model, images, model(images).argmax(1), pgd_steps=2, eps=0.1)
    assert found.adversarial.shape == images.shape
    assert found.clean_accuracy == 1


def test_a_network_taken_whole_gives_what_it_gives() -> None:
    model, images, _ = strange()
    model.eval()
    block = whole(model)
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(block(channels_last), model(images))
    assert torch.equal(folded(block)(images), model(images))


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def rounded(images: Tensor) -> Tensor:
    return (images * 8).round() / 8


class Wrapped(nn.Module):
    def __init__(
        self, model: nn.Module, before: Callable[..., Tensor], after: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images: Tensor) -> Any:
        return self.after(self.model(self.before(images)))


def nothing(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("before", "after", "failed", "warned"),
    [
        (rounded, nothing, {"K1", "K4"}, set()),
        (torch.detach, nothing, {"K1", "K4", "K13"}, set()),
        (nothing, softmax, set(), {"K15"}),
    ],
)
def test_a_defence_that_hides_its_gradient_is_found_out(
    before: Any, after: Any, failed: set[str], warned: set[str]
) -> None:
    model, images, labels = strange()
    found = cartl_cli.attack(
        Wrapped(model, before, after), images, labels, eps=0.02, pgd_steps=5, batch_size=24
    )
    verdicts = {check.id: check.verdict for check in found.results.trust}
    assert failed <= {name for name, verdict in verdicts.items() if verdict == "fail"}
    assert warned <= {name for name, verdict in verdicts.items() if verdict == "warn"}
    assert found.headline == ("upper bound, attack incomplete" if failed else "ok")


class Single(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float()


def test_what_a_network_has_not_is_left_out_of_the_checks() -> None:
    """It does not compute in float64 (K13), and has no linear layer (K1)."""
    _, images, labels = strange()
    bare = nn.Sequential(Single(), nn.Conv2d(3, 4, 8), nn.Flatten())
    found = cartl_cli.attack(bare, images, labels, attack="pgd", pgd_steps=2)
    made = {check.id for check in found.results.trust}
    assert not made & {"K1", "K13"}
    assert {"K2", "K4", "K14", "V8"} <= made


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        ({"images": torch.rand(3, 8, 8)}, {}, r"images: must be \(N, C, H, W\)"),
        (
            {"images": torch.rand(24, 3, 8, 8) * 255},
            {},
            r"images: must be in \[0, 1\], got .* to 2",
        ),
        ({"images": torch.randn(24, 3, 8, 8)}, {}, "leave normalization to the model"),
        ({"images": torch.full((24, 3, 8, 8), torch.nan)}, {}, r"images: must be in \[0, 1\]"),
        ({"images": torch.zeros(24, 3, 8, 8, dtype=torch.uint8)}, {}, "images: must be float32"),
        ({"images": torch.rand(24, 3, 9, 9)}, {}, "model does not take images of 3 × 9 × 9 pixels"),
        ({"labels": torch.zeros(23).long()}, {}, "labels: must be 24 class numbers"),
        ({"labels": torch.rand(24)}, {}, "labels: must be 24 class numbers, got torch.float32"),
        ({"labels": [0] * 24}, {}, "labels: must be a tensor, got list"),
        ({"images": torch.rand(24, 3, 8, 8).numpy()}, {}, "images: must be a tensor, got ndarray"),
        ({"labels": torch.full((24,), -1)}, {}, "labels: must be class numbers, got -1"),
        ({"labels": torch.full((24,), 4)}, {}, "labels: the largest is 4, the model has 4"),
        ({"model": nn.Flatten()}, {"epss": 3}, "unknown setting 'epss'; did you mean 'eps'"),
        ({"model": nn.Conv2d(3, 3, 1)}, {}, r"logits \(1, classes\) of one image, gives \(1, 3, 8"),
        ({"model": Wrapped(nn.Flatten(), nothing, tuple)}, {}, "of one image, gives tuple"),
        ({"model": Strange().half()}, {}, "the model does not take images"),
        ({}, {"limit": 5}, "limit: goes with a run"),
        ({}, {"eps": -1}, "^eps: must be >= 0"),
        ({}, {"pgd_steps": 0}, "^pgd_steps: must be >= 1, got 0"),
        ({}, {"attack": "fgsm,pgdd"}, "^attack: choose"),
    ],
)
def test_what_cannot_be_attacked_is_refused(
    change: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    model, images, labels = strange()
    given: dict[str, Any] = {"model": model, "images": images, "labels": labels} | change
    with pytest.raises(UsageError, match=said):
        cartl_cli.attack(**given, **settings)


def test_the_door_loads_no_torch() -> None:
    code = "import sys, cartl_cli; cartl_cli.attack; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


# cartl attack --model

FILE = """
import torch
from torch import nn
from tests.test_any_model import Strange

class Big(Strange):
    def __init__(self, classes):
        super().__init__(classes)
        self.inner = self.tied = nn.Linear(4 * 1024, 32)
        self.tied = nn.Linear(32, 32)
        self.last = nn.Linear(32, classes)

print("a file is free to print")

def factory(classes):
    print("==> Building model..")
    return Big(classes)

def loaded():
    model = Big(10)
    model.load_state_dict(torch.load("plain.pt", weights_only=True))
    return model

def several():
    return Wrapping()

class Wrapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Big(10)

    def forward(self, images):
        return self.network(images), None
"""
QUICK = ("--dataset", "shapes", "--pgd-steps", 2, "--limit", 20, "--device", "cpu")


@pytest.fixture
def theirs(tmp_path: Path) -> Any:
    """Their file, their weights as they are and as a trainer with averages saves them."""
    path = tmp_path / "theirs.py"
    path.write_text(FILE)
    space: dict[str, Any] = {}
    exec(FILE, space)
    torch.manual_seed(3)
    model = space["factory"](10)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": wrapped | {"n_averaged": torch.tensor(1)}}, tmp_path / "wrapped.pt")
    return model.eval()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("--model theirs.py:factory --weights gone.pt", "no such file: 'gone.pt'"),
        ("--model theirs.py:factory --weights theirs.py", "'theirs.py' is neither"),
        ("--model theirs.py:gone", "theirs.py has no function 'gone'"),
    ],
)
def test_what_is_missing_is_told_before_any_image_is_fetched(
    cartl: Command, theirs: Any, model: str, said: str
) -> None:
    done = cartl("attack", *model.split(), "--dataset", "cifar10", "--no-download")
    assert done.code in (1, 2)
    assert said in done.err


def test_a_model_of_others_is_attacked_in_one_command(cartl: Command, theirs: Any) -> None:
    model = ("--model", "theirs.py:factory", "--weights", "wrapped.pt")
    done = cartl("attack", *model, *QUICK, "--diagnose", "--save-adversarial", "--json")
    assert done.code == 0, done.err
    assert "the model is saved as runs/001-import" in done.err
    said = json.loads(done.out)
    assert {"V8", "V9", "K1", "K13"} <= {check["id"] for check in said["trust"]}
    assert len(said["diagnosis"]["blocks"]) == 2
    assert said["saved"]["missed"] == 0
    split = shapes().evaluation
    with torch.no_grad():
        answers = load_model("runs/001-import")(split.images[:50].float() / 255)
        expected = theirs(split.images[:50].float() / 255)
    assert torch.equal(answers, expected)
    original = read_run(Path("runs/001-import")).manifest.original
    assert original is not None
    assert original.file == "wrapped.pt"
    assert any("factory of theirs.py, sha256" in remark for remark in original.remarks)

    done = cartl("attack", *model, *QUICK, "--attack", "fgsm", "--checks", "off", "--name", "other")
    assert done.code == 0, done.err
    assert "the model is that of runs/001-import" in done.err
    assert sorted(path.name for path in Path("runs").glob("*-*")) == ["001-import", "002-attack"]
    assert cartl("report", "--format", "csv").code == 0
    assert cartl("predict", "001-import", "runs/002-attack/adversarial").code == 0

    Path("theirs.py").write_text(FILE + "\n# another file now\n")
    done = cartl("attack", *model, *QUICK, "--attack", "fgsm", "--checks", "off", "--name", "new")
    assert "the model is saved as runs/00" in done.err


def test_a_factory_may_load_its_own_weights(cartl: Command, theirs: Any) -> None:
    done = cartl("attack", "--model", "theirs.py:loaded", *QUICK, "--checks", "off")
    assert done.code == 0, done.err
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_model("runs/001-import")(images), theirs(images))
    manifest = read_run(Path("runs/001-import")).manifest
    assert manifest.original is not None
    assert manifest.original.file == "theirs.py"
    done = cartl("attack", "--model", "theirs.py:factory", *QUICK, "--checks", "off")
    again = cartl("attack", "--model", "theirs.py:factory", *QUICK, "--checks", "off", "--force")
    assert "the model is that of" in again.err  # drawn weights are drawn again


def test_a_model_may_be_imported_first_with_a_preprocessing_of_its_own(
    cartl: Command, theirs: Any
) -> None:
    arch = ("--arch", "whole:theirs.py:factory")
    done = cartl(
        "import", "plain.pt", *arch, "--dataset", "shapes", "--limit", 20, "--pgd-steps", 1
    )
    assert done.code == 0, done.err
    assert done.err.splitlines()[-1] == "next: cartl attack 001-import"
    assert read_run(Path("runs/001-import")).import_results.n == 20
    assert cartl("attack", 1, "--limit", 20, "--pgd-steps", 1, "--checks", "off").code == 0
    done = cartl("transfer", "--source", 1, "--epochs", 1)
    assert done.code == 2
    assert "'001-import' is a network that was taken whole, with no blocks to tune" in done.err
    unasked = cartl("transfer", "--epochs", 1)
    assert (unasked.code, "was taken whole, with no blocks to tune" in unasked.err) == (2, True)
    for line, said in (
        (("import", *arch), "name them, or images of them with --dataset"),
        (("import", *arch, "--mean", "0,0,0", "--std", "1,1,1"), "normalizes its images itself"),
        (("pretrain", *arch), "a network that is taken whole is only attacked"),
    ):
        done = cartl(*line)
        assert (done.code, said in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("--weights plain.pt", 2, "--weights: goes with --model FILE.py:FACTORY"),
        ("--image-size 32", 2, "--image-size: goes with --model FILE.py:FACTORY"),
        ("--model theirs --dataset shapes", 2, "--model: 'theirs' is not FILE.py:FACTORY"),
        ("--model theirs.py:factory", 2, "--model: name images of its classes with --dataset"),
        ("003-pretrain --model theirs.py:factory", 2, "'003-pretrain' has a model already"),
        ("--model theirs.py:factory --resume 2", 2, "an attack that goes on keeps its model"),
        ("--model gone.py:factory --dataset shapes", 2, "--model: cannot read 'gone.py'"),
        ("--model theirs.py:gone --dataset shapes", 2, "theirs.py has no function 'gone'"),
        ("--model theirs.py:several --dataset shapes", 2, "of one image, gives tuple"),
        ("--model theirs.py:factory --dataset shapes --weights gone.pt", 2, "no such file"),
        (
            "--model theirs.py:factory --dataset shapes --weights theirs.py",
            1,
            "neither safetensors",
        ),
        (
            "--model theirs.py:factory --dataset shapes --weights less.pt",
            1,
            "1 missing (last.bias)",
        ),
        ("--model theirs.py:loaded --dataset shapes-target", 2, "has 10 outputs, the data 8"),
    ],
)
def test_a_model_that_cannot_be_attacked_is_refused(
    cartl: Command, theirs: Any, line: str, code: int, said: str
) -> None:
    state = theirs.state_dict()
    torch.save({name: state[name] for name in state if name != "last.bias"}, "less.pt")
    done = cartl("attack", *line.split())
    assert (done.code, said in done.err) == (code, True), done.err
    assert not list(Path("runs").glob("*-*"))
