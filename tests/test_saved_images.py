"""``--save-adversarial``: what the files hold, what is said of them, and the picture."""

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder as TorchvisionFolder

from cartl_cli import load_model
from cartl_cli.core import storage
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.downloads import NOWHERE
from cartl_cli.core.data.folders import image_folder as read_image_folder
from cartl_cli.core.errors import StorageError
from cartl_cli.core.evaluation import saved_images
from cartl_cli.core.evaluation.gallery import ROWS, Gallery, Shown, chosen_rows
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.weights import to_bytes
from cartl_cli.display.attack_grid import attack_grid
from tests import tiny
from tests.conftest import Command, ImageFolder
from tests.crashes import call
from tests.victims import measured_split

SAVING = ("--save-adversarial", "--pgd-steps", 2, "--eps", "2/255,8/255", "--batch-size", 16)


@pytest.fixture(scope="module")
def saved(runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An attack with several attacks and two eps on all images, more than the checks look at."""
    folder = tmp_path_factory.mktemp("saved") / "runs"
    shutil.copytree(runs_dir / "source", folder / "source")
    arguments = ["attack", "source", *map(str, SAVING), "--attack", "pgd,pgd-margin", "--name", "a"]
    code, said = call(arguments, folder.parent)
    assert code == 0, said
    return read_run(folder / "a")


def wrong(images: torch.Tensor, labels: torch.Tensor, run: Run) -> torch.Tensor:
    """Which images the attacked model gets wrong, one at a time."""
    model = load_model(run.folder.parent / "source")
    with torch.no_grad():
        return torch.cat([model(image[None]).argmax(1) for image in images]) != labels


def png(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def test_the_file_holds_what_the_verdicts_say(saved: Run) -> None:
    held = load_file(saved.folder / "adversarial.safetensors")
    outcomes = load_file(saved.folder / "outcomes.safetensors")
    images, labels = held["adversarial"], held["labels"]
    split = measured_split()
    assert torch.equal(held["indices"], outcomes["indices"])
    assert torch.equal(held["indices"], torch.arange(len(split)))
    assert torch.equal(labels, split.labels)
    assert (images.dtype, images.shape) == (torch.float32, split.images.shape)

    fell = (outcomes["fell_at"] >= 0).any(1)  # (eps, N)
    fallen = fell.any(0) | ~outcomes["clean"]
    assert fell[0].any()
    assert (fell[1] & ~fell[0]).any()
    assert (~fallen).any()
    assert torch.equal(wrong(images, labels, saved), fallen)

    assert images.min() >= 0
    assert images.max() <= 1
    moved = (images - split.images.float() / 255).abs().flatten(1).amax(1)
    assert (moved <= 8 / 255 + 1e-6).all()
    assert (moved[fell[0]] <= 2 / 255 + 1e-6).all()  # where it fell first, it stays
    assert (moved[~fallen] > 2 / 255).all()  # where the attack led to at the largest eps
    assert (moved[~outcomes["clean"]] == 0).all()


def test_the_manifest_names_the_file_and_what_reading_it_back_gave(saved: Run) -> None:
    data = (saved.folder / "adversarial.safetensors").read_bytes()
    record = saved.manifest.adversarial
    assert record is not None
    assert (record.size, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    held = load_file(saved.folder / record.name)
    again = saved.attack_results.saved
    assert again is not None
    assert (again.missed, again.recovered) == (0, 0)
    rounded = (255 * held["adversarial"]).round() / 255
    for accuracy, images in ((again.accuracy, held["adversarial"]), (again.accuracy_8bit, rounded)):
        right = ~wrong(images, held["labels"], saved)
        assert accuracy == pytest.approx(right.float().mean().item())
    assert again.accuracy == pytest.approx(saved.attack_results.by_eps[-1].robust_accuracy)


def test_the_pictures_are_the_images_in_eight_bits(saved: Run) -> None:
    held = load_file(saved.folder / "adversarial.safetensors")
    classes = saved.manifest.model.classes
    root = saved.folder / "adversarial"
    columns = (held[name] for name in ("adversarial", "labels", "indices"))
    for image, label, index in zip(*columns, strict=True):
        found = png((root / classes[label] / f"{index}.png").read_bytes())
        assert (found - 255 * image.double()).abs().max() <= 0.5 + 1e-4
    assert len(list(root.rglob("*.png"))) == len(held["labels"])
    theirs = TorchvisionFolder(str(root))
    assert theirs.classes == sorted(classes)
    assert len(theirs) == len(held["labels"])
    ours = read_image_folder(root, (), Preprocessing(image_size=32), None, False, NOWHERE)
    assert ours.classes == tuple(sorted(classes))
    assert ours.train.labels.bincount().tolist() == [50, 50, 50]


def test_checks_give_the_same_numbers_without_the_flag(saved: Run) -> None:
    arguments = ["attack", "source", *map(str, SAVING[1:]), "--attack", "pgd,pgd-margin"]
    code, said = call([*arguments, "--name", "plain"], saved.folder.parent.parent)
    assert code == 0, said
    plain = read_run(saved.folder.with_name("plain"))
    assert not (plain.folder / "adversarial").exists()
    assert plain.manifest.adversarial is None
    ours, theirs = saved.attack_results, plain.attack_results
    assert len(theirs.trust) > 5
    assert theirs.trust == ours.trust
    assert (theirs.by_eps, theirs.saved) == (ours.by_eps, None)
    outcomes = [(run.folder / "outcomes.safetensors").read_bytes() for run in (saved, plain)]
    assert outcomes[0] == outcomes[1]


def test_both_accuracies_are_shown(cartl: Command, saved: Run) -> None:
    again = saved.attack_results.saved
    assert again is not None
    where = ("--resume", "a", "--runs-dir", saved.folder.parent)
    before = {p: p.read_bytes() for p in saved.folder.rglob("*.*") if p.is_file()}
    shown = json.loads(cartl("attack", *where, "--json").out)
    assert shown["saved"] == again.model_dump()
    table = cartl("attack", *where).out
    assert "saved images, read back" in table
    for name, value in (("float32", again.accuracy), ("8-bit", again.accuracy_8bit)):
        line = next(line for line in table.splitlines() if name in line)
        assert f"{100 * value:.1f} %" in line
    # a finished run that is resumed stays as it is
    assert {p: p.read_bytes() for p in saved.folder.rglob("*.*") if p.is_file()} == before


def test_what_reads_back_otherwise_is_reported(cartl: Command, runs_dir: Path) -> None:
    real = storage.write_whole

    def darker(path: Path, data: bytes) -> None:
        real(path, data)
        if path.name == saved_images.FILE:
            held = load_file(path)
            held["adversarial"].zero_()
            spoiled.append(to_bytes(held))

    spoiled: list[bytes] = []
    with (
        mock.patch.object(storage, "write_whole", darker),
        mock.patch.object(saved_images, "read_recorded", side_effect=lambda *file: spoiled[0]),
    ):
        done = cartl(
            *("attack", "source", "--save-adversarial", "--pgd-steps", 1, "--limit", 30),
            *("--checks", "off", "--attack", "pgd", "--json", "--runs-dir", runs_dir),
        )
    found = json.loads(done.out)["saved"]
    assert found["missed"] + found["recovered"] > 0
    said = f"{found['missed']} robust images are wrong and {found['recovered']} fallen ones are"
    assert said in done.err


HOSTILE = ("-rf", "..", "a\\b", "line\nbreak", "x" * 300, "\x1b[31m", "/etc", "train", "ok")


def test_hostile_class_names_stay_inside(cartl: Command, image_folder: ImageFolder) -> None:
    names = tuple(name for name in HOSTILE if "/" not in name and len(name) < 200 and name != "..")
    root = image_folder(classes=names, train=6, test=3)
    small = "--image-size 8 --arch wrn-10-1 --k 3 --epochs 1 --pgd-steps 1 --batch-size 16"
    done = cartl("pretrain", "--dataset", root, *small.split(), "--name", "source")
    assert done.code == 0, done.err
    before = {path for path in Path().rglob("*") if "runs" not in path.parts}
    done = cartl("attack", "--pgd-steps", 1, "--save-adversarial", "--name", "a", "--limit", 7)
    assert done.code == 0, done.err
    assert {path for path in Path().rglob("*") if "runs" not in path.parts} - before <= {
        path for path in Path().rglob("*") if "cache" in path.parts
    }
    folder = Path("runs/a/adversarial")
    held = load_file("runs/a/adversarial.safetensors")
    theirs = TorchvisionFolder(str(folder))
    assert len(theirs.classes) == len(held["labels"].unique())
    by_index = dict(zip(held["indices"].tolist(), held["labels"].tolist(), strict=True))
    labels = sorted(set(by_index.values()))
    for path, label in theirs.samples:  # in the same order as the classes
        assert labels[label] == by_index[int(Path(path).stem)]
    assert len(
        read_image_folder(folder, (), Preprocessing(image_size=8), None, False, NOWHERE).classes
    ) == len(theirs.classes)


@given(st.lists(st.text() | st.sampled_from(HOSTILE), min_size=2, max_size=12, unique=True))
def test_every_class_gets_a_folder_of_its_own(names: list[str]) -> None:
    folders = saved_images.folder_names(tuple(names))
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert Path(folder).parts == (folder,)
        assert folder not in ("..", "train")
        assert not folder.startswith(".")
        assert len(folder.encode()) < 256
        assert folder.isprintable()
    if folders != tuple(names):
        assert list(folders) == sorted(folders)
    assert saved_images.folder_names(("cat", "犬", "two-disks", "a b")) == (
        "cat",
        "犬",
        "two-disks",
        "a b",
    )


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A folder with a tiny source run and the images beside it."""
    tiny.make_images(tmp_path / "images")
    (tmp_path / "base").mkdir()
    assert call([*tiny.command("pretrain")[:-1], "source"], tmp_path / "base")[0] == 0
    return tmp_path / "base"


def test_a40_images_that_find_no_room_leave_a_run_to_go_on_with(scene: Path) -> None:
    assert call([*tiny.command("saving")[:-1], "whole"], scene)[0] == 0
    real = storage.commit_folder

    def full(path: Path, contents: dict[str, bytes]) -> None:
        if path.name == saved_images.FOLDER:
            raise StorageError("cannot write: No space left on device")
        real(path, contents)

    with mock.patch.object(storage, "commit_folder", full):
        code, said = call([*tiny.command("saving"), "--force"], scene)
    assert code == 1
    assert "cannot save the adversarial images" in said
    assert "go on with: cartl attack --resume runs/saving" in said
    left = read_run(scene / "runs" / "saving")
    assert (left.manifest.status, left.manifest.results) == ("failed", None)

    elsewhere = scene / "elsewhere"
    elsewhere.mkdir()
    (left.folder / "adversarial").symlink_to(elsewhere)
    code, said = call(tiny.resume("saving"), scene)
    assert (code, "refusing to follow the link" in said) == (1, True)
    assert list(elsewhere.iterdir()) == []
    (left.folder / "adversarial").unlink()

    code, said = call(tiny.resume("saving"), scene)
    assert code == 0, said
    assert f"going on after batch {tiny.BATCHES}" in said
    assert tiny.left(left.folder) == tiny.left(scene / "runs" / "whole")
    assert tiny.orphans(scene) == []


def test_room_for_the_images_is_asked_for_before_the_work(scene: Path) -> None:
    with mock.patch("shutil.disk_usage", return_value=SimpleNamespace(free=10_000)):
        assert call(tiny.command("attack"), scene)[0] == 0
        code, said = call(tiny.command("saving"), scene)
    assert code == 1
    assert "not enough disk space" in said
    assert not (scene / "runs" / "saving").exists()


def test_the_picture_shows_a_few_images(cartl: Command, saved: Run) -> None:
    path = saved.folder / "adversarial.png"
    side = 6 * 32
    before = path.read_bytes()
    assert png(before).shape == (3, 84 + ROWS * (side + 52) + 32, 2 * 28 + 3 * side + 2 * 20)
    path.unlink()
    cartl("attack", "--resume", "a", "--runs-dir", saved.folder.parent)
    assert path.read_bytes() == before


def grid(*images: Shown, eps: float = 8 / 255, norm: str = "linf") -> np.ndarray:
    drawn = attack_grid(Gallery("W" * 40, eps, norm, images))  # type: ignore[arg-type]
    return png(drawn).permute(1, 2, 0).numpy()


def test_pixels_of_the_picture_are_those_of_the_images() -> None:
    clean = torch.randint(40, 200, (3, 8, 8), generator=torch.Generator().manual_seed(0))
    moved = clean.clone()
    moved[0, 0], moved[1, 0], moved[2, 0] = clean[0, 0] + 8, clean[1, 0] - 8, clean[2, 0] + 4
    drawn = grid(Shown(3, clean / 255, moved / 255, "cat", "cat", "dog"))
    side = 8 * 22
    for column, expected in enumerate((clean, moved)):
        left = 28 + column * (side + 20)
        part = drawn[84 : 84 + side, left : left + side]
        middle = part[11::22, 11::22].astype(int)
        assert np.abs(middle - expected.permute(1, 2, 0).numpy()).max() <= 1
        assert (part.reshape(8, 22, 8, 22, 3).std((1, 3)) == 0).all()  # nearest, whole pixels
    left = 28 + 2 * (side + 20)
    change = drawn[84 : 84 + side, left : left + side][11::22, 11::22].astype(int)
    assert np.abs(change[0] - [255, 0, 191]).max() <= 1
    assert np.abs(change[1:] - 128).max() <= 1


def test_no_text_of_the_picture_is_cut_off() -> None:
    """Whatever the names are, the margin and the gaps between columns stay white."""
    images = torch.rand(3, 8, 8)
    name = "W" * 80 + "$x_1$ 犬\x1b[31m"
    for text in ("cat", name, name[60:]):
        drawn = grid(Shown(10**7, images, images, text, text, text), eps=0.1234567, norm="l2")
        side = 8 * 22
        assert (drawn[:, :28] == 255).all()
        assert (drawn[:, -28:] == 255).all()
        for column in (1, 2):
            right = 28 + column * (side + 20)
            assert (drawn[84 : 84 + side + 52, right - 20 : right] == 255).all()


def test_without_matplotlib_one_line_says_what_to_install(
    cartl: Command, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "cartl_cli.display.attack_grid")
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    where = ("--runs-dir", runs_dir, "--name", "unpictured")
    done = cartl(
        *("attack", "source", "--save-adversarial", "--pgd-steps", 1, "--attack", "pgd"),
        *("--limit", 20, "--checks", "off", *where),
    )
    assert done.code == 0
    lines = [line for line in done.err.splitlines() if "pip install" in line]
    assert len(lines) == 1
    assert "pip install 'cartl[plot]'" in lines[0]
    assert not (runs_dir / "unpictured" / "adversarial.png").exists()
    assert (runs_dir / "unpictured" / "adversarial.safetensors").exists()


def test_fallen_images_are_shown_first_and_of_every_class() -> None:
    labels = torch.arange(40) % 4
    clean, fell_at = torch.ones(40, dtype=torch.bool), torch.full((1, 1, 40), -1)
    clean[30:] = False
    fell_at[0, 0, :6] = 0
    rows = chosen_rows({"clean": clean, "fell_at": fell_at}, labels, 0)
    assert len(set(rows)) == ROWS
    assert set(rows[:6]) == set(range(6))
    assert all(6 <= row < 30 for row in rows[6:])
    fell_at[0, 0, :30] = 0
    rows = chosen_rows({"clean": clean, "fell_at": fell_at}, labels, 0)
    assert labels[rows].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert rows == chosen_rows({"clean": clean, "fell_at": fell_at}, labels, 0)
    assert (
        len(chosen_rows({"clean": ~clean[:3], "fell_at": fell_at[..., :3] * 0 - 1}, labels[:3], 0))
        == 3
    )
