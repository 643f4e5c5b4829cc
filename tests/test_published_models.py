"""``cartl import`` and ``--source`` of what is published: fetched from a server on this machine."""

import hashlib
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save
from torchvision.models import Weights
from torchvision.transforms._presets import ImageClassification

from cartl_cli import load_model
from cartl_cli.core.imports import published
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.reader import read_run
from tests.conftest import Command
from tests.publishing import Server, cut_off, log_in_page, missing, serving

CLASSES = [f"kind {number}" for number in range(4)]
TRANSFER = ("--epochs", 1, "--k", 1, "--classes", "ring,frame", "--fraction", 0.1)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def torchvision_network() -> Any:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=len(CLASSES)).eval()


@pytest.fixture
def resnet18(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A ResNet-18 of four classes and 64 pixels as the one that torchvision publishes; its file."""
    packed = io.BytesIO()
    torch.save(torchvision_network().state_dict(), packed)
    data = packed.getvalue()
    file = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.files[file] = data
    transforms = partial(ImageClassification, crop_size=32, resize_size=40)
    weights = Weights(server.url + file, transforms, {"categories": CLASSES})

    class Published:
        DEFAULT = weights

    monkeypatch.setattr(published, "get_model_weights", lambda name: Published)
    return file


def hub(server: Server, name: str, config: object, tensors: dict[str, torch.Tensor]) -> None:
    """A repository of the hub."""
    server.files[f"{name}/resolve/main/config.json"] = json.dumps(config).encode()
    server.files[f"{name}/resolve/main/model.safetensors"] = save(tensors)


def test_what_torchvision_publishes_is_a_source(
    cartl: Command, server: Server, resnet18: str
) -> None:
    """Imported once, with its own preprocessing; then found again without a download."""
    for name in ("one", "two"):
        done = cartl("transfer", "--source", "torchvision:resnet18", *TRANSFER, "--name", name)
        assert done.code == 0, done.err
        assert ("imported torchvision:resnet18 as runs/001-import" in done.err) == (name == "one")
        assert read_run(Path("runs", name)).source.run == "001-import"
    assert set(server.asked) == {f"/{resnet18}"}
    asked = len(server.asked)
    manifest = read_run(Path("runs/001-import")).manifest
    assert manifest.original is not None
    assert (manifest.kind, manifest.original.file) == ("import", resnet18)
    assert manifest.original.sha256 == hashlib.sha256(server.files[resnet18]).hexdigest()
    assert manifest.model.classes == tuple(CLASSES)
    assert manifest.model.preprocessing.shown == "32 pixels, crop of 40, bilinear"
    assert manifest.config.model_dump()["origin"] == server.url + resnet18

    images = torch.rand(2, 3, 32, 32)
    usual = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        found = load_model("runs/001-import")(images)
        torch.testing.assert_close(found, torchvision_network()(usual(images)))

    done = cartl("export", "torchvision:resnet18", "--format", "hub")
    assert done.code == 0, done.err
    done = cartl("import", "torchvision:resnet18", "--name", "again", "--image-size", 48)
    assert done.code == 0, done.err
    assert read_run(Path("runs/again")).manifest.model.preprocessing.shown == (
        "48 pixels, crop of 55, bilinear"
    )
    assert len(server.asked) == asked

    done = cartl("import", "001-import-hub", "--name", "back")
    assert done.code == 0, done.err
    back = read_run(Path("runs/back")).manifest
    assert back.model == manifest.model
    assert back.weights == manifest.weights


def test_without_download_it_is_said_what_would_be_fetched(
    cartl: Command, server: Server, resnet18: str
) -> None:
    for command in (("transfer", "--source"), ("import",)):
        done = cartl(*command, "torchvision:resnet18", "--no-download")
        assert (done.code, f"{server.url}{resnet18}" in done.err) == (1, True), done.err
    done = cartl("import", "hf-hub:somebody/model", "--no-download")
    pages = [f"somebody/model/resolve/main/{n}" for n in ("config.json", "model.safetensors")]
    assert done.code == 1
    assert all(f"{server.url}{page}" in done.err for page in pages)
    assert server.asked == []
    assert not list(Path("runs").glob("*-import"))


def test_a_repository_of_timm_tells_its_network(cartl: Command, server: Server) -> None:
    """timm's names, sizes and normalization; ``timm:`` asks timm where the weights are."""
    timm = pytest.importorskip("timm")
    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=4).eval()
    cfg = {"input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic"}
    cfg |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "license": "apache-2.0"}
    config = {"architecture": name, "num_classes": 4, "pretrained_cfg": cfg, "label_names": CLASSES}
    where = timm.get_pretrained_cfg(name).hf_hub_id
    for place in ("somebody/vit", where):
        hub(server, place, config, network.state_dict())
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        normal = (images - 0.5) / torch.tensor([0.25, 0.5, 0.5]).view(3, 1, 1)
        expected = network(normal)
    for run, address in (("a", "hf-hub:somebody/vit"), ("b", f"timm:{name}")):
        done = cartl("import", address, "--name", run)
        assert done.code == 0, done.err
        manifest = read_run(Path("runs", run)).manifest
        assert manifest.model.arch == f"timm:{name}"
        assert manifest.model.classes == tuple(CLASSES)
        assert manifest.model.preprocessing.shown == "224 pixels, crop of 248, bicubic"
        settings = manifest.config.model_dump()
        assert (settings["licence"], settings["checkpoint"]) == ("apache-2.0", address)
        with torch.no_grad():
            torch.testing.assert_close(load_model(f"runs/{run}")(images), expected)


@pytest.mark.parametrize(
    ("address", "code", "says"),
    [
        ("torchvision:nothing", 2, "torchvision has no weights of 'nothing'"),
        ("torchvision:resnet101", 2, "'torchvision:resnet101' is unknown; known:"),
        ("torchvision:fasterrcnn_resnet50_fpn", 2, "is unknown; known:"),
        ("timm:nothing", 2, "timm has no network 'nothing'"),
        ("timm:resnet50", 2, "is not cut into blocks here"),
        ("hf-hub:nobody", 2, "must be hf-hub:OWNER/NAME"),
        ("hf-hub:../../etc", 2, "must be hf-hub:OWNER/NAME"),
        ("hf-hub:nobody/nothing", 1, "HTTP 404 Not Found"),
    ],
)
def test_an_address_that_names_nothing(
    cartl: Command, server: Server, address: str, code: int, says: str
) -> None:
    pytest.importorskip("timm")
    server.answer = missing
    for command in (("import",), ("transfer", "--source")):
        done = cartl(*command, address)
        assert (done.code, says in done.err) == (code, True), done.err


def test_what_does_not_arrive_whole_is_not_kept(
    cartl: Command, server: Server, resnet18: str
) -> None:
    for answer, says in ((cut_off, "got "), (log_in_page, "the server sent an HTML page")):
        server.answer = answer
        done = cartl("import", "torchvision:resnet18")
        assert (done.code, says in done.err) == (1, True), done.err
    hub(server, "somebody/model", {}, {})
    server.answer = cut_off
    done = cartl("import", "hf-hub:somebody/model")
    assert (done.code, "got " in done.err) == (1, True), done.err
    assert not list(Path("runs").glob("*-import"))


def test_another_file_than_the_published_is_refused(
    cartl: Command, server: Server, resnet18: str
) -> None:
    server.files[resnet18] += b"more"
    done = cartl("import", "torchvision:resnet18")
    assert (done.code, "sha256 differs" in done.err) == (1, True), done.err


def test_a_repository_that_tells_no_network(cartl: Command, server: Server) -> None:
    """Another library's config does not tell it: then the flags do."""
    state = build_model("wrn-10-1", 4).state_dict()
    hub(server, "somebody/model", {"architectures": ["Other"]}, state)
    done = cartl("import", "hf-hub:somebody/model")
    assert (done.code, "--arch: name the network" in done.err) == (2, True), done.err
    done = cartl("import", "hf-hub:somebody/model", "--arch", "wrn-10-1", "--name", "theirs")
    assert done.code == 0, done.err
    hub(server, "somebody/bad", {"architecture": "../x", "pretrained_cfg": {"mean": [1]}}, state)
    done = cartl("import", "hf-hub:somebody/bad")
    assert (done.code, "config.json': architecture cannot be '../x'" in done.err) == (1, True), (
        done.err
    )


def test_a_sweep_takes_what_was_imported(cartl: Command, resnet18: str, tmp_path: Path) -> None:
    spec = tmp_path / "some.toml"
    spec.write_text(
        "seeds = [0, 1]\n[methods.vanilla]\n"
        '[base.transfer]\nsource = "torchvision:resnet18"\nk = 1\n'
    )
    done = cartl("sweep", spec, "--dry-run")
    assert (done.code, "run: cartl import torchvision:resnet18" in done.err) == (2, True), done.err
    assert cartl("import", "torchvision:resnet18").code == 0
    done = cartl("sweep", spec, "--dry-run", "--json")
    assert done.code == 0, done.err
    points = json.loads(done.out)["points"]
    assert [p["labels"]["source"] for p in points if p["kind"] == "transfer"] == ["001-import"] * 2
