"""What the commands answer to bad input, one row an entry; the ids are those of the catalogue.

C: command line, R: runs and checkpoints, D: data, T: training, X: transfer, A: attack.
"""

import errno
import functools
import hashlib
import io
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import time
import tomllib
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file, save

from cartl_cli.app import main
from cartl_cli.core import storage
from cartl_cli.core.data import listings
from cartl_cli.core.registry.architectures import build_model
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.weights import read_model, to_bytes
from cartl_cli.core.runtime.requirements import OLDEST_TORCH, check_torch
from tests.catalogue import INAPPLICABLE, ROWS, rows_of
from tests.conftest import TINY_PRETRAIN, TINY_TRANSFER, Command

PRETRAIN = ["pretrain", *TINY_PRETRAIN.split()]
TRANSFER = ["transfer", *TINY_TRANSFER.split()]
FREE, NATURAL = ["--method", "free"], ["--method", "natural"]
ATTACK = ["attack", "--pgd-steps", "1", "--limit", "12", "--checks", "off"]


@dataclass(frozen=True)
class Scene:
    """An empty folder with ``runs/source`` and ``runs/target`` in it; ``run`` is to be spoiled."""

    root: Path
    run: str = "target"

    @property
    def folder(self) -> Path:
        return self.root / "runs" / self.run

    @property
    def source(self) -> "Scene":
        return Scene(self.root, "source")

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    def edit_manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads(self.manifest.read_text())
        change(content)
        self.manifest.write_text(json.dumps(content))

    def replace_weights(self, data: bytes) -> None:
        """A stranger's file whose manifest agrees with it."""
        self.weights.write_bytes(data)
        record = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.edit_manifest(lambda manifest: manifest["weights"].update(record))

    def change_tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
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
    after: Callable[[Path], object] = lambda path: None,
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


def hold(scene: Scene) -> None:
    """A lock that another open file holds, as another process would."""
    import fcntl

    descriptor = os.open(scene.folder / ".lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    HELD.append(descriptor)


HELD: list[int] = []


def busy_run(scene: Scene) -> Arguments:
    hold(scene.source)
    return [*PRETRAIN, "--name", "source"]


def source_being_written(scene: Scene) -> Arguments:
    scene.source.edit_manifest(updated(status="running"))
    hold(scene.source)
    return [*TRANSFER, "--source", "source"]


def transfer_from(change: Callable[[Scene], object], *more: object) -> Setup:
    """A transfer from a source run that was spoiled."""

    def setup(scene: Scene) -> Arguments:
        change(scene.source)
        return [*TRANSFER, "--source", "source", *more]

    return setup


def copied_run(scene: Scene) -> Arguments:
    shutil.copytree(scene.folder, scene.root / "runs" / "copy")
    return [*ATTACK, "2"]


def updated(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest.update(fields)


def with_weights_named(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["weights"].update(name=name)


def edited(**fields: object) -> Callable[[Scene], object]:
    return lambda scene: scene.edit_manifest(updated(**fields))


def filled(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[name].fill_(value)


def last_bit_turned(scene: Scene) -> None:
    data = scene.weights.read_bytes()
    scene.weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def many_tensors(key: str, value: object) -> Callable[[bytes], bytes]:
    """A safetensors file whose header lists 100,000 tensors."""

    def change(data: bytes) -> bytes:
        listed = {key.format(index): value for index in range(100_000)}
        text = json.dumps(listed, separators=(",", ":")).encode()
        return struct.pack("<Q", len(text)) + text

    return change


def archived(change: Callable[[zipfile.ZipFile], object]) -> Setup:
    """A pre-training on a zip of images with something more in it."""

    def setup(scene: Scene) -> Arguments:
        folder = scene.images()
        path = scene.root / "images.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.rglob("*.png")):
                archive.write(file, str(file.relative_to(folder)))
            change(archive)
        return on(path)

    return setup


def zipped_link(archive: zipfile.ZipFile) -> None:
    link = zipfile.ZipInfo("train/cat/x.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(link, "/etc/passwd")


def damaged_archive(scene: Scene) -> Arguments:
    """Deflated data that cannot be inflated."""
    spoil = archived(lambda archive: archive.writestr("train/cat/x.png", bytes(range(256))))
    arguments = spoil(scene)
    path = scene.root / "images.zip"
    data = bytearray(path.read_bytes())
    start = data.index(b"train/cat/x.png") + 15
    data[start : start + 100] = b"\xff" * 100
    path.write_bytes(data)
    return arguments


def folder_of_targets(scene: Scene) -> Path:
    """Images with the class names of the target run."""
    return scene.images(("ring", "frame", "grid"))


def float_images(scene: Scene) -> Arguments:
    folder = folder_of_targets(scene)
    Image.new("F", (32, 32), 300.0).save(folder / "test" / "ring" / "odd.tif")
    return [*ATTACK, "target", "--dataset", folder]


def other_results(scene: Scene) -> Arguments:
    scene.edit_manifest(lambda m: m["results"].update(clean_accuracy=0.841))
    return ["attack", "target", "--pgd-steps", "1"]


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
    *each("C08", ["--k", "1e3"], 2, "--k: must be a whole number", "PT"),
    *each("C08", ["--epochs", "3.0"], 2, "--epochs: must be a whole number, got '3.0'", "PT"),
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
    row("C28-above", [*PRETRAIN, "--name", "../x"], 2, "is not a run name"),
    row("C28-below", [*PRETRAIN, "--name", "sub/x"], 2, "is not a run name"),
    row("C28-number", [*PRETRAIN, "--name", "1"], 2, "would be taken for the number of a run"),
    row("C28-root", [*PRETRAIN, "--name", "/tmp/x"], 2, "--runs-dir for another folder"),
    row("C29", busy_run, 1, "run 'source' is in use by another cartl process"),
    row("C30", [*PRETRAIN, "--runs-dir", "/dev/null"], 2, "is a file, not a folder"),
    row("C30-fifo", in_runs_dir(os.mkfifo), 2, "is a file, not a folder"),
    row("C31", in_runs_dir(lambda p: p.symlink_to("nowhere")), 2, "is a link that points nowhere"),
    row("C31-loop", in_runs_dir(lambda p: p.symlink_to(p)), 2, "link"),
    row("C32", [*PRETRAIN, "--runs-dir", "x" * 256], 2, "name too long"),
    *each("C33", ["--runs-dir", "bad\udcff"], 2, "is not valid UTF-8", "PTA"),
    *each("C33", ["--dataset", "bad\udcff"], 2, "is not valid UTF-8", "PTA"),
    row("C33-class", with_images(classes=("cat", "\udcff")), 1, "is not valid UTF-8"),
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
        "R06",
        attack_manifest_text(lambda d: d.replace(b"{", b'{"kind": "transfer",', 1)),
        1,
        "manifest: key 'kind' appears twice",
    ),
    row(
        "R07-nan",
        attack_manifest(lambda m: m["results"].update(clean_accuracy=float("nan"))),
        1,
        "manifest holds NaN, which isn't finite",
    ),
    row(
        "R07-infinity",
        attack_manifest(lambda m: m["results"].update(clean_accuracy=float("inf"))),
        1,
        "manifest holds Infinity, which isn't finite",
    ),
    row(
        "R07-overflow",
        attack_manifest_text(lambda d: re.sub(rb'"seconds": *[\d.]+', b'"seconds": 1e999', d)),
        1,
        "manifest is not valid: results",
    ),
    row(
        "R08",
        attack_manifest(lambda m: m["results"].update(clean_accuracy=None)),
        1,
        "clean_accuracy is missing; the run diverged",
    ),
    row(
        "R09",
        attack_manifest(lambda m: m.update(schema_version=99)),
        1,
        "written by a newer cartl (schema 99",
    ),
    row("R11", attack_manifest(lambda m: m.pop("schema_version")), 1, "a bad schema_version"),
    row("R11-true", attack_manifest(updated(schema_version=True)), 1, "a bad schema_version"),
    row("R11-text", attack_manifest(updated(schema_version="2")), 1, "a bad schema_version"),
    row(
        "R12",
        attack_manifest(lambda m: m.update(extra=1)),
        1,
        "manifest is not valid: extra: Extra inputs are not permitted",
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
    *(
        row(
            f"R14-{name}",
            attack_manifest(with_weights_named(f"a{bad}b")),
            1,
            f"manifest names a file by a bad name ('a{shown}b')",
        )
        for name, bad, shown in (
            ("nul", "\0", r"\x00"),
            ("newline", "\n", r"\n"),
            ("escape", "\x1b", r"\x1b"),
        )
    ),
    row("R15", attack_manifest_text(lambda d: b" " * 50_000_000 + d), 1, "manifest is too large"),
    row(
        "R15-nested",
        attack_manifest_text(lambda d: b"[" * 100_000 + b"]" * 100_000),
        1,
        "manifest is not usable JSON",
    ),
    *(
        row(
            f"R17-{status}",
            attack_manifest(updated(status=status)),
            1,
            f"run 'target' is not complete: {shown}",
        )
        for status, shown in (
            ("running", "crashed; go on with: cartl transfer --resume"),
            ("failed", "failed; go on with:"),
            ("interrupted", "interrupted; go on with:"),
            ("diverged", "diverged"),
        )
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
    row(
        "R25-magic", attack_weights(lambda data: b"\x80\x02}q\0." + data[6:]), 1, "is a pickle file"
    ),
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
    row(
        "R31-negative",
        attack_tensors(filled("blocks.0.norm_act1.norm.running_var", -1.0)),
        1,
        "running_var < 0 in blocks.0.norm_act1.norm.running_var",
    ),
    row(
        "R31-weight",
        attack_tensors(filled("stem.weight", 0.0)),
        1,
        "checkpoint: stem.weight is all zero",
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
        "R40",
        attack_stranger(
            many_tensors("block.{}", {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
        ),
        1,
        "header too large",
    ),
    row("R40-short", attack_stranger(many_tensors("{:x}", 0)), 1, "too many"),
    row("R42", copied_run, 2, "run 2 found twice: copy, target; give a name"),
    row(
        "D01",
        [*PRETRAIN[:-2], "--dataset", "shaeps"],
        2,
        "unknown data set 'shaeps'; did you mean shapes?",
    ),
    row("D07", archived(lambda a: a.writestr("../x.png", b"")), 1, "unsafe member: '../x.png'"),
    row("D07-root", archived(lambda a: a.writestr("/etc/x.png", b"")), 1, "unsafe member: '/etc/x"),
    row("D07-link", archived(zipped_link), 1, "unsafe member: 'train/cat/x.png'; nothing was read"),
    row(
        "D08",
        archived(lambda a: a.writestr("train/cat/x.png", bytes(20_000_000))),
        1,
        "archive would expand to 20 MB from 0.0 MB",
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
    row("D13-zip", damaged_archive, 1, "cannot read 'train/cat/x.png'"),
    row("D14", spoiled(b""), 1, "not an image: 'train/cat/bad.png'"),
    row("D14-text", spoiled(b"hello"), 1, "not an image: 'train/cat/bad.png'"),
    row(
        "D14-fifo",
        with_images(after=lambda p: os.mkfifo(p / "train" / "cat" / "x.png")),
        1,
        "image 'train/cat/x.png' is not a regular file",
    ),
    row("D17", painted("CMYK", kind="jpg"), 1, "CMYK image: 'train/cat/bad.jpg'"),
    row("D18", painted("I;16"), 1, "16-bit image: 'train/cat/bad.png'"),
    row("D19", huge_image, 1, "image too large: 'train/cat/bad.png'"),
    row("D20", painted("RGB", (1, 1)), 1, "images must be at least 8x8"),
    row("D21", animated_image, 1, "multi-frame image: 'train/cat/moving.gif'"),
    row(
        "D25",
        with_images(after=lambda p: shutil.copytree(p / "test" / "cat", p / "test" / "cow")),
        1,
        "class 'cow' is in test but not in train",
    ),
    row(
        "D25-train",
        with_images(after=lambda p: shutil.rmtree(p / "test" / "cat")),
        1,
        "class 'cat' has no images in test",
    ),
    row("D27", with_images(classes=("cat", "Cat")), 1, "ambiguous class names: 'Cat' and 'cat'"),
    row("D27-nfd", with_images(classes=("\xe9", "e\u0301")), 1, "ambiguous class names: "),
    row("D30", with_images(test=0), 1, "test split is empty"),
    row("D32", with_images(classes=("cat",)), 1, "need at least 2 classes"),
    row(
        "D33-loop",
        with_images(after=lambda p: (p / "train" / "cat" / "loop").symlink_to(p)),
        1,
        "link: 'train/cat/loop'; links are not followed",
    ),
    row(
        "D33-file",
        with_images(after=lambda p: (p / "train" / "cat" / "x.png").symlink_to("/etc/passwd")),
        1,
        "links are not followed; take a copy without them: cp -rL ",
    ),
    *each("T01", ["--epochs", "0"], 2, "--epochs: must be >= 1", "PT"),
    *each("T01", ["--epochs", "-1"], 2, "--epochs: must be >= 1", "PT"),
    *each("T02", ["--batch-size", "0"], 2, "--batch-size: must be >= 1", "PT"),
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
    *each("T19", ["--method", "tradse"], 2, "'tradse' is not one of 'at', 'fast', 'free'", "P"),
    *each("T19", ["--replays", "0"], 2, "--replays: must be >= 1", "P"),
    *each("T19", ["--replays", "2"], 2, "--replays: is of --method free, not of at; drop it", "P"),
    *each("T19", ["--replays", "2.5", "--method", "free"], 2, "--replays: must be a whole", "P"),
    *each("T19", ["--trades-beta", "0"], 2, "--trades-beta: must be > 0", "P"),
    *each("T19", ["--trades-beta", "nan"], 2, "--trades-beta: must be a finite number", "P"),
    *each("T19", ["--trades-beta", "6"], 2, "--trades-beta: is of --method trades, not of at", "P"),
    *each("T19", ["--awp-gamma", "-1"], 2, "--awp-gamma: must be >= 0", "P"),
    *each("T19", ["--awp-gamma", "inf"], 2, "--awp-gamma: must be a finite number", "P"),
    *each("T19", [*FREE, "--awp-gamma", "1"], 2, "--awp-gamma: needs a backward pass", "P"),
    *each("T19", [*NATURAL, "--awp-gamma", "1"], 2, "--awp-gamma: needs adversarial images", "P"),
    *each("T19", [*NATURAL, "--fdm-lambda", "1"], 2, "--fdm-lambda: needs adversarial", "P"),
    *each("T19", [*FREE, "--step-size", "0.01"], 2, "--step-size: steps of free training", "P"),
    *each("T19", [*FREE, "--eps", "0"], 2, "--eps: 0 means natural training", "P"),
    *each("T19", [*NATURAL, "--eps", "0"], 2, "--eps: an attack with 0 changes nothing", "P"),
    *each("T19", ["--ema", "1"], 2, "--ema: must be < 1", "P"),
    *each("T19", ["--ema", "-0.1"], 2, "--ema: must be >= 0", "P"),
    *each("T21", ["--arch", "wrn-17-2"], 2, "'wrn-17-2' is unknown", "P"),
    *each(
        "T22", ["--classes", "disk,wheel"], 2, "--classes: no class 'wheel'; the data has 10", "P"
    ),
    *each("T33", ["--save-every", "0"], 2, "--save-every: must be above 0", "PT"),
    *each("T33", ["--save-every", "-1"], 2, "--save-every: must be minutes such as 10m", "PT"),
    *each("T34", ["--val-fraction", "1"], 2, "--val-fraction: must be <= 0.5", "PT"),
    *each("T34", ["--val-fraction", "-0.1"], 2, "--val-fraction: must be >= 0", "PT"),
    *each("T40", ["--fraction", "0"], 2, "--fraction: must be > 0", "T"),
    *each("T40", ["--fraction", "1.5"], 2, "--fraction: must be <= 1", "T"),
    *each("T40", ["--fraction", "nan"], 2, "--fraction: must be a finite number", "T"),
    *each(
        "T40",
        ["--fraction", "0.001"],
        2,
        "--fraction: 0.001 of 180 training images leaves class 'ring' empty; use at least 3/180",
        "T",
    ),
    row("X01", [*TRANSFER, "--source", "nothing"], 2, "--source: no such run: 'nothing'"),
    *(
        row(
            f"X03-{status}",
            transfer_from(edited(status=status)),
            1,
            f"run 'source' is not complete: {status}",
        )
        for status in ("interrupted", "failed", "diverged")
    ),
    row(
        "X04",
        source_being_written,
        1,
        "run 'source' is not complete: being written now; wait for it",
    ),
    row("X05", [*TRANSFER, "--source", "source", "--name", "source"], 2, "already holds a run"),
    row("X06", [*TRANSFER, "--arch", "resnet-18"], 2, "no such option: --arch"),
    row("X09", [*TRANSFER, "--neft-beta", "0"], 2, "--neft-beta: must be > 0"),
    row("X10", [*TRANSFER, "--neft-beta", "1.5"], 2, "--neft-beta: must be <= 1"),
    row("X11", [*TRANSFER, "--neft-beta", "nan"], 2, "--neft-beta: must be a finite number"),
    row(
        "X13",
        transfer_from(
            lambda s: s.change_tensors(filled("blocks.2.conv2.weight", 0.0)), "--neft-beta", "0.4"
        ),
        1,
        "blocks.2.conv2.weight is all zero",
    ),
    *each("X09", ["--lwf-lambda", "-1"], 2, "--lwf-lambda: must be >= 0", "T"),
    *each("X11", ["--lwf-lambda", "nan"], 2, "--lwf-lambda: must be a finite number", "T"),
    row(
        "X19-methods",
        [*TRANSFER, "--neft-beta", "0.4", "--lwf-lambda", "0.1"],
        2,
        "--neft-beta: does not go with --lwf-lambda: NEFT changes the size of features",
    ),
    row(
        "X19-phase",
        [*TRANSFER, "--interpolate", "0.5", "--head-first", "0"],
        2,
        "--head-first: --interpolate begins at the classifier alone; use 1 or more",
    ),
    row(
        "X19-long",
        [*TRANSFER, "--lwf-lambda", "0.1", "--head-first", "2"],
        2,
        "--head-first: must be < epochs (2), got 2",
    ),
    row("X17", [*TRANSFER[:-2], "--classes", "ring"], 1, "need at least 2 classes, found 1"),
    row("X19", [*TRANSFER, "--resume", "target", "--name", "x"], 2, "drop --name or --resume"),
    row(
        "X20",
        transfer_from(last_bit_turned),
        1,
        "checkpoint changed since it was written (sha256 differs)",
    ),
    row(
        "X21",
        transfer_from(
            lambda s: s.change_tensors(lambda t: t["blocks.1.conv1.weight"].fill_(float("inf")))
        ),
        1,
        "non-finite values in blocks.1.conv1.weight",
    ),
    *each("A01", ["--eps", "-0.1"], 2, "--eps: must be >= 0", "A"),
    *each("A02", ["--eps", "1.5"], 2, "--eps: is on a 0..1 scale", "A"),
    *each("A03", ["--eps", "8"], 2, "did you mean 8/255?", "A"),
    *each("A04", ["--eps", "0"], 2, "--eps: an attack with 0 changes nothing", "A"),
    *each("A05", ["--eps", ""], 2, "--eps: must be a number", "A"),
    *each("A05", ["--eps", "0.1,,0.2"], 2, "--eps: must be a number", "A"),
    *each("A11", ["--norm", "l3"], 2, "'l3' is not one of 'linf', 'l2'", "A"),
    *each("A12", ["--attack", "pdg"], 2, "did you mean 'pgd'", "A"),
    *each("A12", ["--attack", ""], 2, "--attack: ", "A"),
    *each("A12", ["--attack", "pgd,pgd"], 2, "--attack: 'pgd' is there twice", "A"),
    *each("A06", ["--pgd-steps", "0"], 2, "--pgd-steps: must be >= 1", "A"),
    *each("A07", ["--step-size", "0"], 2, "--step-size: must be > 0", "A"),
    *each("A07", ["--step-size", "0.9"], 2, "--step-size: must be at most 2 x eps", "A"),
    *each("A07", ["--step-size", "2"], 2, "--step-size: is on a 0..1 scale", "A"),
    *each("A08", ["--restarts", "0"], 2, "--restarts: must be >= 1", "A"),
    *each("A09", ["--limit", "0"], 2, "--limit: must be >= 1", "A"),
    *each("A09", ["--limit", "9999"], 2, "--limit: must be 1..150, got 9999", "A"),
    row("A16", other_results, 1, "clean accuracy: expected 84.1 %, got "),
    row(
        "A17",
        attack_tensors(lambda t: t.pop("normalize.std")),
        1,
        "1 tensors (normalize.std) missing",
    ),
    row("A18", float_images, 1, "32-bit image: 'test/ring/odd.tif'; convert it to 8 bits"),
    *each("A33", ["--precision", "fp16"], 2, "'fp16' is not one of 'auto', 'fp32', 'bf16'", "A"),
    row(
        "A37",
        attack_tensors(lambda t: t.update({"stem.weight": torch.ones(16, 1, 3, 3)})),
        1,
        "stem.weight is 16x1x3x3, this model needs 16x3x3x3",
    ),
    row(
        "A41",
        lambda scene: [*ATTACK, "target", "--dataset", folder_of_targets(scene)],
        1,
        "class order differs: 'ring' is 2 in the data, 0 in run 'target'",
    ),
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
    """An attack whose run goes to a folder of this name."""
    return lambda scene: [*ATTACK, "runs/target", "--runs-dir", scene.root / name]


def odd_images(change: Callable[[Path], object]) -> Setup:
    return with_images(after=lambda folder: change(folder / "train" / "cat" / "odd.png"))


def lying_on_its_side(path: Path) -> None:
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (32, 32)).save(path, exif=orientation)


def with_hidden_files(folder: Path) -> None:
    for extra in (folder / "train" / ".hidden", folder / "__MACOSX" / "cat"):
        extra.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(extra / "x.png")
    (folder / "train" / "cat" / ".DS_Store").write_bytes(b"x")


def at_chance(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.4.linear.weight"].fill_(1e-6)
    tensors["blocks.4.linear.bias"].copy_(torch.tensor([1.0, 0.0, 0.0]))


def moved_run(scene: Scene) -> Arguments:
    (scene.root / "runs").rename(scene.root / "elsewhere")
    return [*ATTACK, "elsewhere/target"]


def old_run(scene: Scene) -> Arguments:
    shutil.copytree(Path(__file__).parent / "data" / "schema-1", scene.root / "old")
    return [*ATTACK, "old/target"]


ACCEPTED = [
    row("C09", run_fine("--eps", "8/255"), 0, "eps 8/255"),
    row("C34", in_folder("日本語 " + unicodedata.normalize("NFD", "é") + " 🙂"), 0, "日本語"),
    row("C35", in_folder("a 'b' \"c\"\n[red]"), 0, r"a 'b' \"c\"\n[red]".replace('\\"', '"')),
    row("C35-dash", [*ATTACK, "runs/target", "--runs-dir=-dash"], 0, "saved -dash/"),
    row("C36", in_folder("esc\x1b[31m\u202e"), 0, r"esc\x1b[31m\u202e"),
    row("R10", old_run, 0, "attacking target, 12 images"),
    row("R36", moved_run, 0, "attacking target, 12 images"),
    row(
        "R43",
        attack_manifest(lambda m: m["versions"].update(torch="1.0")),
        0,
        "note: run target was made with torch 1.0, here is ",
    ),
    row("D15", odd_images(Image.new("L", (32, 32)).save), 0, "1 of 13 images were grayscale"),
    row("D16", odd_images(Image.new("RGBA", (32, 32)).save), 0, "1 of 13 images were transparent"),
    row(
        "D22",
        odd_images(Image.new("RGB", (28, 28)).save),
        0,
        "1 of 13 images were resized to 32x32",
    ),
    row("D23", odd_images(lying_on_its_side), 0, "1 of 13 images were turned upright (EXIF)"),
    row("D24", with_images(), 0, "warning: 4 of 4 test images are also in train"),
    row(
        "D24-held-out",
        with_images(test=0, after=lambda p: shutil.rmtree(p / "test", ignore_errors=True)),
        0,
        "warning: 2 of 2 held-out images are also in train",
    ),
    row("D26", with_images(after=with_hidden_files), 0, "on images, 8 training images"),
    row(
        "D31",
        with_images(batch_size=64),
        0,
        "--batch-size 64 is more than the 8 training images; batches have 8",
    ),
    row(
        "T40",
        [*TRANSFER, "--fraction", "0.1"],
        0,
        "note: --batch-size 64 is more than the 18 training",
    ),
    row(
        "T22-comma",
        lambda s: on(s.images(classes=("a,b", "c", "d")), "--classes", '"a,b",c'),
        0,
        "on images, 8 training images",
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
    row(
        "X16",
        ["transfer", "--dataset", "shapes", "--classes", "disk,square", "--epochs", "1"],
        0,
        "source and target use the same data set shapes",
    ),
    row("A13", run_fine("--attack", "apgd-t"), 0, "with fewer than 4 classes apgd-t aims with"),
    row("A04-curve", run_fine("--eps", "0,8/255"), 0, "eps 0/255"),
    row("A04-l2", run_fine("--norm", "l2", "--eps", "8/255"), 0, "so small in ℓ₂ that hardly"),
    row("A10", run_fine(), 0, "warning: with n = 12 the 95 % interval is "),
    row("A15", attack_tensors(at_chance), 0, "warning: clean accuracy is at chance"),
    row("A34", run_fine("--eps", "77/255"), 0, "note: eps 77/255 is unusual for images of this"),
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


@pytest.mark.parametrize(
    ("name", "count", "says"),
    [
        ("cuda", 0, "'cuda', but there is no CUDA device here; use cpu"),
        ("cuda:7", 0, "'cuda:7', but there is no CUDA device here; use cpu"),
        ("cuda:7", 1, "'cuda:7' is not present (1 CUDA devices)"),
    ],
)
def test_c16_c17_a_missing_device_is_no_fallback(
    cartl: Command, monkeypatch: pytest.MonkeyPatch, name: str, count: int, says: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    done = cartl("pretrain", "--device", name)
    assert done.code == 2
    assert f"--device: {says}" in done.err


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
    from cartl_cli.core.method.batch_norm import freeze

    model = build_model("wrn-10-1", 3)
    freeze(model, 1, "all")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"blocks.4.linear.weight", "blocks.4.linear.bias"}
    assert len(to_bytes(model.state_dict())) > 0


def started(scene: Scene, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """``cartl`` as a process of its own; ``env`` is added to the environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "cartl_cli", *map(str, arguments)],
        cwd=scene.root,
        env=environment,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def test_c46_the_reader_may_leave(scene: Scene) -> None:
    """As in ``cartl … | head``, on either stream; the attack ends well and is kept."""
    processes = {}
    for stream in ("stdout", "stderr"):
        read_end, write_end = os.pipe()
        os.close(read_end)
        attack = [*ATTACK, "target", "--force", "--name", stream]
        processes[stream] = started(scene, *attack, **{stream: write_end})
        os.close(write_end)
    for stream, process in processes.items():
        out, err = process.communicate()
        assert process.returncode == 0
        assert (out, err).count(None) == 1
        assert not re.search(r"Traceback|BrokenPipe|Exception ignored", f"{out}{err}")
        assert read_run(scene.root / "runs" / stream).manifest.status == "completed"


def test_c47_terminals_that_want_no_colour_or_are_dumb(scene: Scene) -> None:
    shown = {}
    for name, environment in {
        "colourless": {"TERM": "xterm-256color", "NO_COLOR": "1"},
        "dumb": {"TERM": "dumb"},
    }.items():
        ours, theirs = os.openpty()
        attack = [*ATTACK, "target", "--force", "--name", name]
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        shown[name] = (started(scene, *attack, env=environment, **streams), ours)
        os.close(theirs)
    texts = {}
    for name, (process, terminal) in shown.items():
        texts[name] = read_terminal(terminal)
        assert process.wait() == 0, texts[name]
    assert not re.search(r"\x1b\[[\d;]*\b(?:[349][0-8]|10[0-7])[\d;]*m", texts["colourless"])
    assert "\x1b" not in texts["dumb"]
    bar = re.compile(r"-:--:--|\d:\d\d:\d\d")
    assert bar.search(texts["colourless"])  # so that its absence means something
    assert not bar.search(texts["dumb"])
    assert all("worst of all" in text for text in texts.values())


def read_terminal(descriptor: int) -> str:
    found = b""
    try:
        while part := os.read(descriptor, 1000):
            found += part
    except OSError:  # the other side is closed
        pass
    os.close(descriptor)
    return found.decode()


def test_c48_ascii_streams(scene: Scene, cartl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {}
    with monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            written[name] = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
            patch.setattr(sys, name, written[name])
        patch.setattr(sys, "argv", ["cartl", *map(str, in_folder("日本語")(scene))])
        with pytest.raises(SystemExit) as exit_:
            main()
    texts = {}
    for name, stream in written.items():
        stream.flush()
        texts[name] = stream.detach().getvalue().decode("ascii")
    assert exit_.value.code == 0
    assert r"saved " in texts["stderr"]
    assert r"\u65e5\u672c\u8a9e" in texts["stderr"]
    assert "worst of all" in texts["stdout"]


def test_c48_help_in_the_c_locale(scene: Scene) -> None:
    process = started(scene, "--help", env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "pretrain" in out


@pytest.mark.parametrize("home", [None, "/proc/nowhere"], ids=["C49-none", "C49-unwritable"])
def test_c49_without_a_home_there_is_no_cache(
    scene: Scene, cartl: Command, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # no such user: KeyError
    else:
        monkeypatch.setenv("HOME", home)
    done = cartl(*on(scene.images()))
    assert done.code == 0, done.err
    done = cartl("pretrain", "--dataset", "~/nothing")
    assert done.code == 2
    assert "no image folder or .zip at '~/nothing'" in done.err


def test_c51_time_stamps_are_utc(
    scene: Scene, cartl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "FAR-14")
        time.tzset()
        done = cartl(*ATTACK, "target", "--name", "far")
    time.tzset()
    assert done.code == 0
    created = datetime.fromisoformat(read_run(Path("runs/far")).manifest.created)
    assert created.utcoffset() == timedelta(0)
    assert abs(created - datetime.now(UTC)) < timedelta(hours=1)


@pytest.mark.parametrize(
    ("torch_version", "requirement", "says"),
    [
        ("2.4.1+cpu", "torch==2.4.1", f"needs torch >= {OLDEST_TORCH}, found 2.4.1+cpu"),
        ("2.12.0", "torch==2.11.0", "torch and torchvision do not match"),
        ("2.13.1", "torch (>=2.14.0)", "torch and torchvision do not match"),
    ],
    ids=["C53", "C54-equal", "C54-at-least"],
)
def test_another_torch_is_refused(
    cartl: Command, monkeypatch: pytest.MonkeyPatch, torch_version: str, requirement: str, says: str
) -> None:
    installed(monkeypatch, torch_version, requirement)
    done = cartl("pretrain")
    assert done.code == 1
    assert done.err.startswith(f"cartl: error: {says}")


def installed(monkeypatch: pytest.MonkeyPatch, torch_version: str, requirement: str) -> None:
    """Another torch, and a torchvision with such a requirement."""
    versions = {"torch": torch_version, "torchvision": "0.20"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    monkeypatch.setattr(metadata, "requires", {"torchvision": ["numpy", requirement]}.__getitem__)


def test_c53_an_old_torch_is_refused_before_it_is_loaded() -> None:
    code = (
        "import sys\n"
        "from importlib import metadata\n"
        "import cartl_cli.app as app\n"
        "metadata.version = lambda name: '2.4'\n"
        "sys.argv = ['cartl', 'pretrain']\n"
        "try: app.main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cartl: error: needs torch >= {OLDEST_TORCH}, found 2.4; ")


def test_c53_c54_a_fitting_torch_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_torch()  # the one that is here
    for torch_version, requirement in (
        ("2.12.0+cu128", "torch==2.12.0"),
        ("2.10", "torch (==2.10.0)"),
        ("2.15.1", "torch (>=2.14.0)"),
        ("2.15.0.dev20261001", "torch==2.15.0.dev20261001"),
    ):
        with monkeypatch.context() as patch:
            installed(patch, torch_version, requirement)
            check_torch()
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert f"torch>={OLDEST_TORCH}" in project["project"]["dependencies"]


def test_c57_network_file_systems_are_warned_of(
    scene: Scene, cartl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = scene.root / "mounts"
    mounts.write_text(f"disk / ext4 rw 0 0\nserver:/home {scene.root} nfs4 rw 0 0\n")
    ask = storage.unreliable_locks
    assert ask(scene.root / "runs", mounts) == "nfs4"
    assert ask(scene.root.parent, mounts) is None
    assert ask(scene.root, scene.root / "no mounts") is None
    monkeypatch.setattr(storage, "unreliable_locks", functools.partial(ask, mounts=mounts))
    done = cartl(*ATTACK, "target")
    assert done.code == 0
    assert "warning: runs is on nfs4, where locks are unreliable" in done.err


def test_c58_a_nonsensical_number_of_threads(scene: Scene) -> None:
    process = started(scene, *ATTACK, "target", env={"OMP_NUM_THREADS": "abc"})
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "worst of all" in out


def test_r16_x02_only_a_fitting_kind_of_run_is_taken(scene: Scene, cartl: Command) -> None:
    assert cartl(*ATTACK, "target", "--name", "attacked").code == 0
    for arguments, says in (
        ([*ATTACK, "attacked"], "RUN: 'attacked' is an attack result; its run is 'target'"),
        (
            [*TRANSFER, "--source", "attacked"],
            "--source: 'attacked' is an attack result; its run is 'target'",
        ),
        (
            [*TRANSFER, "--source", "target"],
            "--source: 'target' is a transfer run, not pretrain or import",
        ),
    ):
        done = cartl(*arguments)
        assert done.code == 2
        assert done.err == f"cartl: error: {says}\n"


def test_r37_a_run_folder_that_is_only_to_be_read(scene: Scene, cartl: Command) -> None:
    before = contents(scene.root / "runs")
    places = [scene.root / "runs", *(scene.root / "runs").rglob("*")]
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        done = cartl(*ATTACK, "runs/target", "--runs-dir", "mine")
    finally:
        for place in places:
            place.chmod(0o755)
    assert done.code == 0, done.err
    assert "saved mine/001-attack" in done.err
    assert contents(scene.root / "runs") == before


def deny(monkeypatch: pytest.MonkeyPatch, function: str, ending: str) -> None:
    """Let a function of ``os`` fail for one path, as for a file of another user."""
    real = getattr(os, function)

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(ending):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, function, refuse)


def test_r38_weights_of_another_user(
    scene: Scene, cartl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch, "open", "target/model.safetensors")
    done = cartl(*ATTACK, "target")
    assert done.code == 1
    assert done.err.startswith("cartl: error: cannot read runs/target/model.safetensors: Permissi")


def test_r39_weights_that_shrink_while_they_are_read(
    scene: Scene, cartl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, size = os.read, scene.weights.stat().st_size

    def read(descriptor: int, count: int) -> bytes:
        if os.fstat(descriptor).st_size != size:
            return real(descriptor, count)
        part = real(descriptor, 1000)
        os.truncate(scene.weights, 1000)
        return part

    monkeypatch.setattr(os, "read", read)
    done = cartl(*ATTACK, "target")
    assert done.code == 1
    assert f"cartl: error: checkpoint is truncated (1000 of {size} bytes)" in done.err


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [
        ("MAX_MEMBERS", 11, "archive has 12 members; at most 11"),
        ("MAX_BYTES", 50, "archive would expand to 0 MB from 0.0 MB"),
    ],
    ids=["D08-members", "D08-member"],
)
def test_archives_have_limits(
    scene: Scene, cartl: Command, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, says: str
) -> None:
    monkeypatch.setattr(listings, limit, value)
    done = cartl(*archived(lambda archive: None)(scene))
    assert done.code == 1
    assert says in done.err


@pytest.mark.parametrize(
    ("function", "ending"),
    [("open", "train/cat/0.png"), ("scandir", "train/cat")],
    ids=["D35", "D35-folder"],
)
def test_images_of_another_user(
    scene: Scene, cartl: Command, monkeypatch: pytest.MonkeyPatch, function: str, ending: str
) -> None:
    arguments = on(scene.images())
    deny(monkeypatch, function, ending)
    done = cartl(*arguments)
    assert done.code == 1
    assert re.search(rf"cartl: error: cannot read .*{ending}'?: Permission denied", done.err)


def test_a20_no_model_is_random(runs_dir: Path) -> None:
    """No dropout and no power iteration is left: the same images give the same bits."""
    model = read_model(read_run(runs_dir / "target"))
    assert not any(module.training for module in model.modules())
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))


def test_a21_logits_that_are_not_finite_count_as_wrong(scene: Scene, cartl: Command) -> None:
    scene.change_tensors(lambda t: t["blocks.4.linear.weight"].fill_(3e38))
    done = cartl(*ATTACK, "target", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["clean_accuracy"] == found["robust_accuracy"] == 0
    assert "warning: clean accuracy is at chance" in done.err


def test_a22_a24_a_blunted_attack_is_told_and_strict_fails(scene: Scene, cartl: Command) -> None:
    """Logits so large that the cross-entropy has no gradient left."""
    scene.change_tensors(lambda tensors: tensors["blocks.4.linear.weight"].mul_(1e7))
    scene.edit_manifest(lambda manifest: manifest["data"].update(fingerprint="another"))
    attack = ("attack", "target", "--pgd-steps", 1, "--attack", "pgd", "--limit", 12)
    done = cartl(*attack)
    assert done.code == 0, done.err
    assert "(upper bound, attack incomplete)" in " ".join(done.out.split())
    assert "K4" in done.out
    done = cartl(*attack, "--strict", "--force")
    assert done.code == 1
    assert "checks of the attack failed: " in done.err.splitlines()[-1]


def test_a29_the_same_attack_is_not_repeated_unasked(scene: Scene, cartl: Command) -> None:
    first = cartl(*ATTACK, "target", "--name", "first")
    assert "unusual" not in first.err
    before = contents(scene.root / "runs")
    again = cartl(*ATTACK, "target")
    assert again.code == 2
    assert "the same attack is already there: 'runs/first'; --force to repeat it" in again.err
    assert contents(scene.root / "runs") == before
    assert cartl(*ATTACK, "target", "--force", "--name", "second").code == 0
    results = [read_run(Path("runs") / name).attack_results for name in ("first", "second")]
    assert results[0].by_eps == results[1].by_eps


def test_the_catalogue_agrees_with_the_tests(request: pytest.FixtureRequest) -> None:
    here = [item.nodeid for item in request.session.items if item.path == Path(__file__)]
    covered = set().union(*map(rows_of, here))
    assert covered <= set(ROWS)
    assert INAPPLICABLE.keys() <= set(ROWS)
    assert not covered & INAPPLICABLE.keys()
