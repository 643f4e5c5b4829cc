"""What the commands answer to bad input, one row an entry; the ids are those of the catalogue.

C: command line, R: runs and checkpoints, D: data, T: training, X: transfer, A: attack.
"""

import hashlib
import json
import os
import shutil
import struct
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save

from cartl_cli.core.models import build_model
from cartl_cli.core.tensors import to_bytes
from tests.conftest import TINY_PRETRAIN, TINY_TRANSFER, Command

PRETRAIN = ["pretrain", *TINY_PRETRAIN.split()]
TRANSFER = ["transfer", *TINY_TRANSFER.split()]
ATTACK = ["attack", "--pgd-steps", "1", "--limit", "12"]


@dataclass(frozen=True)
class Scene:
    """An empty folder with ``runs/source`` and ``runs/target`` in it."""

    root: Path

    @property
    def weights(self) -> Path:
        return self.root / "runs" / "target" / "model.safetensors"

    @property
    def manifest(self) -> Path:
        return self.root / "runs" / "target" / "manifest.json"

    def edit_manifest(self, change: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(self.manifest.read_text())
        change(content)
        self.manifest.write_text(json.dumps(content))

    def replace_weights(self, data: bytes) -> None:
        """A stranger's file whose manifest agrees with it."""
        self.weights.write_bytes(data)
        record = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.edit_manifest(lambda manifest: manifest["weights"].update(record))

    def change_tensors(self, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        tensors = load_file(self.weights)
        change(tensors)
        self.replace_weights(save(tensors))

    def images(
        self,
        classes: tuple[str, ...] = ("cat", "dog"),
        train: int = 4,
        test: int = 2,
        size: tuple[int, int] = (32, 32),
    ) -> Path:
        root = self.root / "images"
        for split, count in (("train", train), ("test", test)):
            for label in classes:
                folder = root / split / label
                folder.mkdir(parents=True)
                for index in range(count):
                    Image.new("RGB", size, (10 * index, 0, 0)).save(folder / f"{index}.png")
        return root


Arguments = list[Any]
Setup = Callable[[Scene], Arguments]


def on(dataset: Path, *more: object, batch_size: int = 4) -> Arguments:
    """A small pre-training on an image folder."""
    return [
        *("pretrain", "--dataset", dataset, "--arch", "wrn-10-1", "--k", 2, "--epochs", 1),
        *("--batch-size", batch_size, "--pgd-steps", 1, *more),
    ]


def spoiled(data: bytes, name: str = "bad.png") -> Setup:
    """One file of an image folder replaced by ``data``."""

    def setup(scene: Scene) -> Arguments:
        folder = scene.images()
        (folder / "train" / "cat" / name).write_bytes(data)
        return on(folder)

    return setup


def painted(mode: str, size: tuple[int, int] = (32, 32), **options: Any) -> Setup:
    """One more image of some mode and size in an image folder."""

    def setup(scene: Scene) -> Arguments:
        folder = scene.images()
        kind = options.pop("kind", "png")
        Image.new(mode, size).save(folder / "train" / "cat" / f"bad.{kind}", **options)
        return on(folder)

    return setup


def truncated_image(scene: Scene) -> Arguments:
    path = scene.images() / "train" / "cat" / "0.png"
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    return on(scene.root / "images")


def animated_image(scene: Scene) -> Arguments:
    folder = scene.images()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    path = folder / "train" / "cat" / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return on(folder)


def huge_image(scene: Scene) -> Arguments:
    """A PNG header that claims 20,000 × 20,000 pixels, with nothing behind it."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    return spoiled(data)(scene)


def with_images(
    *more: object,
    after: Callable[[Path], None] = lambda path: None,
    batch_size: int = 4,
    **options: Any,
) -> Setup:
    def setup(scene: Scene) -> Arguments:
        folder = scene.images(**options)
        after(folder)
        return on(folder, *more, batch_size=batch_size)

    return setup


def without_classes(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "train").mkdir(parents=True)


def folder_that_is_no_run(scene: Scene) -> Arguments:
    (scene.root / "images").mkdir()
    return [*ATTACK, "images"]


def missing_weights(scene: Scene) -> Arguments:
    scene.weights.unlink()
    return [*ATTACK, "target"]


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def attack_weights(change: Callable[[bytes], bytes]) -> Setup:
    """Attack a run whose weights were changed behind its manifest's back."""

    def setup(scene: Scene) -> Arguments:
        scene.weights.write_bytes(change(scene.weights.read_bytes()))
        return [*ATTACK, "target"]

    return setup


def attack_stranger(change: Callable[[bytes], bytes]) -> Setup:
    """Attack a run whose changed weights agree with its manifest."""

    def setup(scene: Scene) -> Arguments:
        scene.replace_weights(change(scene.weights.read_bytes()))
        return [*ATTACK, "target"]

    return setup


def attack_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Setup:
    def setup(scene: Scene) -> Arguments:
        scene.change_tensors(change)
        return [*ATTACK, "target"]

    return setup


def attack_manifest(change: Callable[[dict[str, Any]], Any]) -> Setup:
    def setup(scene: Scene) -> Arguments:
        scene.edit_manifest(change)
        return [*ATTACK, "target"]

    return setup


def attack_manifest_text(change: Callable[[bytes], bytes]) -> Setup:
    def setup(scene: Scene) -> Arguments:
        scene.manifest.write_bytes(change(scene.manifest.read_bytes()))
        return [*ATTACK, "target"]

    return setup


def header_with(offsets: list[int]) -> Callable[[bytes], bytes]:
    """The same file with one tensor's data offsets replaced."""

    def change(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        first = next(name for name in header if name != "__metadata__")
        header[first]["data_offsets"] = offsets
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return change


def in_runs_dir(make: Callable[[Path], object], name: str = "place") -> Setup:
    def setup(scene: Scene) -> Arguments:
        make(scene.root / name)
        return [*PRETRAIN, "--runs-dir", scene.root / name]

    return setup


def busy_run(scene: Scene) -> Arguments:
    """A lock that another open file holds, as another process would."""
    import fcntl

    descriptor = os.open(scene.root / "runs" / "source" / ".lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    HELD.append(descriptor)
    return [*PRETRAIN, "--name", "source"]


HELD: list[int] = []


def zero_weight(scene: Scene) -> Arguments:
    source = Scene(scene.root)
    path = source.root / "runs" / "source"
    tensors = load_file(path / "model.safetensors")
    tensors["blocks.2.conv2.weight"].zero_()
    data = save(tensors)
    (path / "model.safetensors").write_bytes(data)
    content = json.loads((path / "manifest.json").read_text())
    content["weights"].update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (path / "manifest.json").write_text(json.dumps(content))
    return [*TRANSFER, "--neft-beta", "0.4"]


def each(row: str, flags: Arguments, code: int, says: str, commands: str) -> list[Any]:
    """The same bad flags for several commands, by their letters."""
    base = {"P": PRETRAIN, "T": TRANSFER, "A": [*ATTACK]}
    known = {"P": "pretrain", "T": "transfer", "A": "attack"}
    assert base.keys() == known.keys()
    return [
        pytest.param(
            [*_without(base[letter], flags), *flags], code, says, id=f"{row}-{known[letter]}"
        )
        for letter in commands
    ]


def _without(arguments: Arguments, flags: Arguments) -> Arguments:
    """Arguments less the options that ``flags`` gives too."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif str(argument).startswith("--") and argument in flags:
            skip = True
        else:
            kept.append(argument)
    return kept


def row(name: str, arguments: Arguments | Setup, code: int, says: str) -> Any:
    return pytest.param(arguments, code, says, id=name)


REFUSED = [
    *each("C01", ["--epss", "1"], 2, "no such option: --epss", "PTA"),
    *each("C02", ["--ep", "1"], 2, "no such option: --ep", "PTA"),
    row("C03", ["atack"], 2, "no such command 'atack'"),
    *each("C05", ["--seed", "1", "--seed", "2"], 2, "--seed given twice", "PTA"),
    *each("C06", ["--seed"], 2, "option '--seed' requires an argument", "PTA"),
    row("C07-pretrain", [*PRETRAIN, "extra"], 2, "unexpected extra argument"),
    row("C07-transfer", [*TRANSFER, "extra"], 2, "unexpected extra argument"),
    row("C07-attack", [*ATTACK, "target", "extra"], 2, "unexpected extra argument"),
    *each("C08", ["--epochs", "3.5"], 2, "--epochs: must be a whole number, got '3.5'", "PT"),
    *each("C08", ["--k", "1e3"], 2, "--k: must be a whole number, got '1e3'", "PT"),
    *each("C08", ["--restarts", ""], 2, "--restarts: must be a whole number, got ''", "A"),
    *each("C08", ["--seed", "1_0"], 2, "--seed: must be a whole number, got '1_0'", "PTA"),
    *each("C10", ["--eps", "0,03"], 2, "--eps: write 0.03", "PA"),
    *each("C10", ["--lr", "0,1"], 2, "--lr: write 0.1", "T"),
    *each("C11", ["--lr", "nan"], 2, "--lr: must be a finite number", "PT"),
    *each("C11", ["--eps", "nan"], 2, "--eps: must be a finite number", "A"),
    *each("C12", ["--lr", "inf"], 2, "--lr: must be a finite number", "PT"),
    *each("C12", ["--weight-decay", "-inf"], 2, "--weight-decay: must be a finite number", "PT"),
    *each("C12", ["--momentum", "1e400"], 2, "--momentum: must be a finite number", "PT"),
    *each("C13", ["--lr", "-0.0"], 2, "--lr: must be > 0", "PT"),
    *each("C13", ["--lr", "1e-400"], 2, "--lr: must be > 0", "PT"),
    *each("C14", ["--seed", "-1"], 2, "--seed: must be >= 0", "PTA"),
    *each("C14", ["--seed", "4294967296"], 2, "--seed: must be <= 4", "PTA"),
    *each("C15", ["--device", "banana"], 2, "unknown device 'banana'; use auto, cpu,", "PTA"),
    row("C25", [*PRETRAIN, "--runs-dir", "a/b/c"], 2, "parent folder missing"),
    row("C26", in_runs_dir(Path.touch), 2, "is a file, not a folder"),
    row("C28", [*PRETRAIN, "--name", "source"], 2, "already holds a run"),
    row("C29", busy_run, 1, "run 'source' is in use by another cartl process"),
    row("C30", [*PRETRAIN, "--runs-dir", "/dev/null"], 2, "is a file, not a folder"),
    row("C30-fifo", in_runs_dir(os.mkfifo), 2, "is a file, not a folder"),
    row("C31", in_runs_dir(lambda p: p.symlink_to("nowhere")), 2, "is a link that points nowhere"),
    row("C31-loop", in_runs_dir(lambda p: p.symlink_to(p)), 2, "link"),
    row("C32", [*PRETRAIN, "--runs-dir", "x" * 256], 2, "name too long"),
    row("C33", [*PRETRAIN, "--runs-dir", "bad\udcff"], 2, "is not valid UTF-8"),
    row("R01", [*ATTACK, "nothing"], 2, "no such run: 'nothing'; runs in 'runs': source, target"),
    row("R02", folder_that_is_no_run, 1, "not a cartl run"),
    row("R03", attack_manifest_text(lambda data: b""), 1, "manifest is empty"),
    row("R04", attack_manifest_text(lambda data: data[:29]), 1, "is not valid JSON (line "),
    row("R05", attack_manifest_text(lambda data: b"\xef\xbb\xbf" + data), 1, "UTF-8 without BOM"),
    row(
        "R05-utf16",
        attack_manifest_text(lambda d: d.decode().encode("utf-16")),
        1,
        "UTF-8 without BOM",
    ),
    row(
        "R09",
        attack_manifest(lambda m: m.update(schema_version=3)),
        1,
        "written by a newer cartl (schema 3",
    ),
    row(
        "R13",
        attack_manifest(lambda m: m["weights"].update(name="../../x")),
        1,
        "names a file outside the run",
    ),
    row(
        "R13-root",
        attack_manifest(lambda m: m["weights"].update(name="/etc/passwd")),
        1,
        "names a file outside the run",
    ),
    row("R18", missing_weights, 1, "model.safetensors is missing"),
    row("R19", attack_weights(lambda data: b""), 1, "checkpoint is empty"),
    row("R20", attack_weights(lambda data: data[:-1000]), 1, "checkpoint is truncated ("),
    row("R21", attack_weights(lambda data: data + b"ab"), 1, "checkpoint has 2 surplus bytes"),
    row("R22", attack_weights(lambda data: bytes(len(data))), 1, "checkpoint is all zeros"),
    row(
        "R23",
        attack_stranger(lambda data: struct.pack("<Q", 2**63) + data[8:]),
        1,
        "header too large",
    ),
    row(
        "R23-101MB",
        attack_stranger(lambda d: struct.pack("<Q", 101_000_000) + d[8:]),
        1,
        "header too large",
    ),
    row(
        "R24-html",
        attack_weights(lambda data: b"<!DOCTYPE html><html>"),
        1,
        "is an HTML page, not safetensors",
    ),
    row(
        "R24-lfs",
        attack_weights(lambda data: b"version https://git-lfs.github.com/spec/v1\n"),
        1,
        "git-lfs pointer",
    ),
    row("R24-zip", attack_weights(lambda data: b"PK\x03\x04" + data), 1, "is a zip archive"),
    row(
        "R24-tar",
        attack_weights(lambda data: b"x" * 257 + b"ustar" + bytes(250)),
        1,
        "is a tar archive",
    ),
    row("R25", [*ATTACK, "model.pt"], 2, "pickle can run code"),
    row("R25-magic", attack_weights(lambda data: b"\x80\x02" + data[2:]), 1, "is a pickle file"),
    row("R26-overlap", attack_stranger(header_with([0, 10])), 1, "damaged header"),
    row("R26-negative", attack_stranger(header_with([-4, 0])), 1, "damaged header"),
    row("R26-text", attack_stranger(lambda d: d[:8] + b"!" + d[9:]), 1, "damaged header"),
    row(
        "R27-missing",
        attack_tensors(lambda t: t.pop("stem.weight")),
        1,
        "1 tensors (stem.weight) missing",
    ),
    row(
        "R27-surplus",
        attack_tensors(lambda t: t.update(extra=torch.ones(1))),
        1,
        "1 tensors (extra) unexpected",
    ),
    row(
        "R28",
        attack_tensors(lambda t: t.update({"stem.weight": torch.ones(16, 3, 5, 5)})),
        1,
        "stem.weight is 16x3x5x5, this model needs 16x3x3x3",
    ),
    row(
        "R29",
        attack_tensors(lambda t: t.update({"stem.weight": t["stem.weight"].half()})),
        1,
        "stem.weight is F16, expected F32",
    ),
    row(
        "R30",
        attack_tensors(lambda t: t["stem.weight"].view(-1)[:12].fill_(float("nan"))),
        1,
        "12 non-finite values in stem.weight",
    ),
    row("R32", attack_weights(lambda data: data[:-1] + bytes([data[-1] ^ 1])), 1, "sha256 differs"),
    row(
        "R33",
        attack_manifest(lambda m: m["model"].update(arch="wrn-99")),
        1,
        "'wrn-99' is unknown; known:",
    ),
    row(
        "R35",
        attack_manifest(lambda m: m["model"].update(classes=["frame", "ring", "grid"])),
        1,
        "class order differs: 'frame' is 1 in the data, 0 in run 'target'",
    ),
    row(
        "D01",
        [*PRETRAIN[:-2], "--dataset", "shaeps"],
        2,
        "unknown data set 'shaeps'; did you mean shapes?",
    ),
    row("D10", with_images(after=without_classes), 1, "no class folders in"),
    row(
        "D11",
        with_images(after=lambda p: empty(p / "train" / "cat")),
        1,
        "class 'cat' has no images in train",
    ),
    row(
        "D12",
        with_images("--val-fraction", "0.5", train=1),
        1,
        "class 'cat' has 1 image; cannot split",
    ),
    row("D13", truncated_image, 1, "damaged image: 'train/cat/0.png'"),
    row("D14", spoiled(b""), 1, "not an image: 'train/cat/bad.png'"),
    row("D14-text", spoiled(b"hello"), 1, "not an image: 'train/cat/bad.png'"),
    row("D17", painted("CMYK", kind="jpg"), 1, "CMYK image: 'train/cat/bad.jpg'"),
    row("D18", painted("I;16"), 1, "16-bit image: 'train/cat/bad.png'"),
    row("D19", huge_image, 1, "image too large: 'train/cat/bad.png'"),
    row("D20", painted("RGB", (1, 1)), 1, "images must be at least 8x8"),
    row("D21", animated_image, 1, "multi-frame image: 'train/cat/moving.gif'"),
    row("D30", with_images(test=0), 1, "test split is empty"),
    row(
        "D31",
        with_images(batch_size=64),
        2,
        "--batch-size: 64 is larger than the 8 training images",
    ),
    row("D32", with_images(classes=("cat",)), 1, "need at least 2 classes"),
    *each("T01", ["--epochs", "0"], 2, "--epochs: must be >= 1", "PT"),
    *each("T01", ["--epochs", "-1"], 2, "--epochs: must be >= 1", "PT"),
    *each("T02", ["--batch-size", "0"], 2, "--batch-size: must be >= 1", "PT"),
    *each("T02", ["--batch-size", "5000"], 2, "--batch-size: 5000 is larger than the", "PT"),
    *each("T03", ["--batch-size", "1"], 2, "batch norm needs at least 2 images per batch", "PT"),
    *each("T04", ["--lr", "0"], 2, "--lr: must be > 0", "PT"),
    *each("T04", ["--lr", "-1"], 2, "--lr: must be > 0", "PT"),
    *each("T05", ["--lr", "1e30"], 1, "loss: not finite at step", "PT"),
    *each("T06", ["--momentum", "1"], 2, "--momentum: must be < 1", "PT"),
    *each("T06", ["--weight-decay", "-1"], 2, "--weight-decay: must be >= 0", "PT"),
    *each("T07", ["--schedule", "step", "--milestones", "2,1"], 2, "--milestones: must rise", "PT"),
    *each("T07", ["--schedule", "step", "--milestones", "9"], 2, "be < epochs (2), got 9", "PT"),
    *each(
        "T08",
        ["--schedule", "step", "--milestones", "1", "--warmup-epochs", "5"],
        2,
        "--warmup-epochs: must be < epochs (2)",
        "PT",
    ),
    *each("T08", ["--eps-warmup", "1.5"], 2, "--eps-warmup: must be <= 1", "P"),
    *each("T09", ["--eps", "8"], 2, "is on a 0..1 scale, 8/255 = 0.0314; did you mean 8/255?", "P"),
    *each("T09", ["--eps", "-0.1"], 2, "--eps: must be >= 0", "P"),
    *each("T10", ["--eps", "0"], 2, "--eps: 0 means natural training; use --method natural", "P"),
    *each("T11", ["--step-size", "0"], 2, "--step-size: must be > 0", "P"),
    *each("T11", ["--step-size", "0.5"], 2, "--step-size: must be at most 2 x eps", "P"),
    *each("T12", ["--pgd-steps", "0"], 2, "--pgd-steps: must be >= 1", "P"),
    *each("T16", ["--k", "0"], 2, "--k: must be >= 1", "PT"),
    *each("T17", ["--k", "99"], 2, "wrn-10-1 has 5 blocks", "PT"),
    *each("T18", ["--arch", "lenet"], 2, "'lenet' is unknown; known: wrn-D-W", "P"),
    *each("T19", ["--fdm-lambda", "-1"], 2, "--fdm-lambda: must be >= 0", "P"),
    *each("T19", ["--fdm-lambda", "nan"], 2, "--fdm-lambda: must be a finite number", "P"),
    *each("T21", ["--arch", "wrn-17-2"], 2, "'wrn-17-2' is unknown", "P"),
    *each(
        "T22", ["--classes", "disk,wheel"], 2, "--classes: no class 'wheel'; the data has 10", "P"
    ),
    row("X01", [*TRANSFER, "--source", "nothing"], 2, "--source: no such run: 'nothing'"),
    row("X05", [*TRANSFER, "--source", "source", "--name", "source"], 2, "already holds a run"),
    row("X06", [*TRANSFER, "--arch", "resnet-18"], 2, "no such option: --arch"),
    row("X09", [*TRANSFER, "--neft-beta", "0"], 2, "--neft-beta: must be > 0"),
    row("X10", [*TRANSFER, "--neft-beta", "1.5"], 2, "--neft-beta: must be <= 1"),
    row("X11", [*TRANSFER, "--neft-beta", "nan"], 2, "--neft-beta: must be a finite number"),
    row("X13", zero_weight, 1, "blocks.2.conv2.weight is all zero"),
    row("X17", [*TRANSFER[:-2], "--classes", "ring"], 1, "need at least 2 classes, found 1"),
    *each("A01", ["--eps", "-0.1"], 2, "--eps: must be >= 0", "A"),
    *each("A02", ["--eps", "1.5"], 2, "--eps: is on a 0..1 scale", "A"),
    *each("A03", ["--eps", "8"], 2, "did you mean 8/255?", "A"),
    *each("A05", ["--eps", ""], 2, "--eps: must be a number", "A"),
    *each("A06", ["--pgd-steps", "0"], 2, "--pgd-steps: must be >= 1", "A"),
    *each("A07", ["--step-size", "0"], 2, "--step-size: must be > 0", "A"),
    *each("A07", ["--step-size", "0.9"], 2, "--step-size: must be at most 2 x eps", "A"),
    *each("A08", ["--restarts", "0"], 2, "--restarts: must be >= 1", "A"),
    *each("A09", ["--limit", "0"], 2, "--limit: must be >= 1", "A"),
    *each("A09", ["--limit", "9999"], 2, "--limit: must be 1..150, got 9999", "A"),
]


@pytest.fixture
def scene(cartl: Command, runs_dir: Path, tmp_path: Path) -> Scene:
    shutil.copytree(runs_dir, tmp_path / "runs")
    return Scene(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.mark.parametrize(("arguments", "code", "says"), REFUSED)
def test_refused(
    scene: Scene, cartl: Command, arguments: Arguments | Setup, code: int, says: str
) -> None:
    given = arguments(scene) if callable(arguments) else arguments
    before = contents(scene.root / "runs")
    try:
        done = cartl(*given)
    finally:
        while HELD:
            os.close(HELD.pop())
    errors = [line for line in done.err.splitlines() if line.startswith("cartl: error: ")]
    assert done.code == code, done.err
    assert len(errors) == 1, done.err
    assert says.lower() in errors[0].lower()
    assert "Traceback" not in done.err
    assert done.out == ""
    after = contents(scene.root / "runs")
    assert {name: after[name] for name in before} == before  # nothing written over


def run_fine(*more: object) -> Setup:
    return lambda scene: [*ATTACK, "target", *more]


def in_folder(name: str) -> Setup:
    """A pre-training whose runs go to a folder of this name."""
    return lambda scene: [*PRETRAIN, "--runs-dir", scene.root / name]


def odd_images(change: Callable[[Path], object]) -> Setup:
    def setup(scene: Scene) -> Arguments:
        folder = scene.images()
        change(folder / "train" / "cat" / "odd.png")
        return on(folder)

    return setup


ACCEPTED = [
    row("C09", run_fine("--eps", "8/255"), 0, "eps 8/255"),
    row("C34", in_folder("日本語 " + unicodedata.normalize("NFD", "é") + " 🙂"), 0, "日本語"),
    row("C35", in_folder("a 'b' \"c\"\n[red]"), 0, r"a 'b' \"c\"\n[red]".replace('\\"', '"')),
    row("C35-dash", lambda scene: [*PRETRAIN, "--runs-dir=-dash"], 0, "saved -dash/"),
    row("C36", in_folder("esc\x1b[31m\u202e"), 0, r"esc\x1b[31m\u202e"),
    row("D15", odd_images(Image.new("L", (32, 32)).save), 0, "1 of 13 images were grayscale"),
    row("D16", odd_images(Image.new("RGBA", (32, 32)).save), 0, "1 of 13 images were transparent"),
    row(
        "D22",
        odd_images(Image.new("RGB", (28, 28)).save),
        0,
        "1 of 13 images were resized to 32x32",
    ),
    row("T20", [*PRETRAIN, "--fdm-lambda", "1e6"], 0, "clean accuracy is at chance"),
    row("X07", [*TRANSFER, "--k", "4"], 0, "was minimised for k=3, you use k=4"),
    row("X08", [*TRANSFER, "--k", "5"], 0, "no robust block is kept"),
    row(
        "X15",
        lambda s: [
            "transfer",
            "--dataset",
            s.images(size=(28, 28)),
            "--epochs",
            1,
            "--batch-size",
            4,
        ],
        0,
        "12 of 12 images were resized to 32x32",
    ),
    row("A04", run_fine("--eps", "0"), 0, "eps 0/255"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), ACCEPTED)
def test_accepted_and_said(
    scene: Scene, cartl: Command, arguments: Arguments | Setup, code: int, says: str
) -> None:
    done = cartl(*(arguments(scene) if callable(arguments) else arguments))
    assert done.code == code, done.err
    assert says in done.err + done.out
    assert "\x1b" not in done.err + done.out
    assert "\u202e" not in done.err + done.out


def test_c04_no_arguments_show_help(cartl: Command) -> None:
    done = cartl()
    assert done.code == 2
    assert "Usage: cartl" in done.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:7"], ids=["C16", "C17"])
def test_c16_c17_a_missing_device_is_no_fallback(cartl: Command, name: str) -> None:
    done = cartl("pretrain", "--device", name)
    assert done.code == 2
    assert f"--device: '{name}', but there is no CUDA device here" in done.err


def test_c27_a_folder_that_cannot_be_written(cartl: Command, tmp_path: Path) -> None:
    place = Path("/proc/cartl-runs")
    if os.geteuid() != 0:
        place = tmp_path / "locked" / "runs"
        place.parent.mkdir(mode=0o500)
    done = cartl(*PRETRAIN, "--runs-dir", place)
    assert done.code == 1
    assert "cartl: error: cannot write " in done.err


def test_r34_another_number_of_classes(scene: Scene, cartl: Command) -> None:
    scene.edit_manifest(lambda manifest: manifest["config"].update(classes=[]))
    folder = scene.images(("ring", "frame"))
    done = cartl(*ATTACK, "target", "--dataset", folder)
    assert done.code == 1
    assert "run 'target' has 3 classes, data has 2" in done.err


def test_t13_a_diverged_run_is_kept_and_says_so(cartl: Command) -> None:
    done = cartl(*_without(PRETRAIN, ["--lr"]), "--lr", "1e30", "--name", "wild")
    assert done.code == 1
    assert json.loads(Path("runs/wild/manifest.json").read_text())["status"] == "diverged"
    assert not Path("runs/wild/model.safetensors").exists()


def test_t37_something_is_always_trained() -> None:
    """k ≥ 1, so that the head at least is trained, whatever batch norm is kept."""
    from cartl_cli.core.surgery import freeze

    model = build_model("wrn-10-1", 3)
    freeze(model, 1, "all")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"blocks.4.linear.weight", "blocks.4.linear.bias"}
    assert len(to_bytes(model.state_dict())) > 0
