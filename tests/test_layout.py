"""Strangers' folders and zips: how they are laid out, named and filled."""

import errno
import io
import os
import shutil
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base

from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data import layout
from cartl_cli.core.data.data_sets import DataChoice, load_data_set
from cartl_cli.core.data.decoding import decode_image
from cartl_cli.core.data.downloads import NOWHERE, Place
from cartl_cli.core.data.listings import listed
from cartl_cli.core.data.split import DataSet
from cartl_cli.core.errors import DataError
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.storage import allocate
from tests.conftest import Command

SQUARE = Preprocessing(image_size=32)


def encoded(colour: object = "red", kind: str = "PNG", size: tuple[int, int] = (32, 32)) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, kind)  # type: ignore[arg-type]
    return held.getvalue()


def colours() -> Callable[[], bytes]:
    """A maker of images that all differ."""
    made = iter(range(1, 250))
    return lambda: encoded((next(made), 100, 50))


def filled(root: Path, counts: Mapping[str, int]) -> Path:
    """A folder with so many images in each of its folders."""
    image = colours()
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / folder / f"{number}.png").write_bytes(image())
    return root


def load(path: Path, place: Place = NOWHERE, **choice: Any) -> DataSet:
    return load_data_set(DataChoice(str(path), **choice), SQUARE, place)


def refused(path: Path, **choice: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(path, **choice)
    return str(raised.value)


@pytest.mark.parametrize(
    ("train", "other", "measured"),
    [
        ("Train", "Test", "test"),
        ("TRAIN", "TEST", "test"),
        ("training", "testing", "test"),
        ("train", "val", "val"),
        ("train", "Valid", "val"),
        ("Training", "validation", "val"),
        ("train", "dev", "val"),
    ],
)
def test_d37_splits_are_known_by_their_usual_names(
    tmp_path: Path, train: str, other: str, measured: str
) -> None:
    counts = {f"{train}/cat": 5, f"{train}/dog": 4, f"{other}/cat": 2, f"{other}/dog": 3}
    data = load(filled(tmp_path / "pets", counts))
    assert data.classes == ("cat", "dog")
    assert data.class_counts == ((5, 4), (2, 3))
    assert data.measured == measured


def test_d38_val_and_test_may_both_exist_and_either_can_measure(tmp_path: Path) -> None:
    counts = {"train/a": 5, "train/b": 5, "val/a": 2, "val/b": 1, "test/a": 3, "test/b": 4}
    folder = filled(tmp_path / "data", counts)
    data = load(folder)
    assert (data.measured, data.class_counts[1]) == ("test", (3, 4))
    assert "val/ is not used (3 images)" in data.notes
    data = load(folder, measured="val")
    assert (data.measured, data.class_counts[1]) == ("val", (2, 1))
    assert "test/ is not used (7 images)" in data.notes
    data = load(folder, val_fraction=0.2)
    assert (data.measured, data.class_counts) == ("held-out", ((4, 4), (1, 1)))


def test_d39_a_data_set_deeper_in_a_folder_is_found(tmp_path: Path) -> None:
    counts = {"data/train/a": 3, "data/train/b": 3, "data/extra": 2, "figures": 4, "docs/x": 1}
    data = load(filled(tmp_path / "project", counts))
    assert data.classes == ("a", "b")
    assert "4 images in figures belong to no split, left out" in data.notes
    assert "2 images in data/extra belong to no split, left out" in data.notes


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"cat": 2, "dog": 2, "Test": 2}, "has Test/ but no train/"),
        ({"val/a": 2, "val/b": 2}, "has val/ but no train/"),
        ({"car": 2, "train": 2}, "'pets' is the training split by its name, but holds 2 images"),
        ({"train/a": 2, "Training/a": 2}, "'Training' and 'train' of 'pets' both mean the train"),
        ({"x/train/a": 2, "y/train/a": 2}, "'pets' holds two data sets: 'x' and 'y'"),
        ({"train/a": 2, "train/b": 2, "test": 3}, "test/ of 'pets' holds 3 images but no class"),
        ({"train/cats": 3, "test/cats": 3}, "need at least 2 classes, found 1: 'cats'"),
        ({"cats": 3}, "need at least 2 classes, found 1: 'cats'"),
        ({"images/train/a": 2, "images/train/b": 2, "labels/train": 0}, ""),
    ],
)
def test_d39_a_layout_that_is_not_clear_is_refused_with_its_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = filled(Path("pets"), counts)
    if says:
        assert says in refused(folder)
    else:  # only one of the two has images
        assert load(folder, val_fraction=0.5).classes == ("a", "b")


@pytest.mark.parametrize("test", [{"test": 3}, {"test/unknown": 3}, {"test/a": 0}])
def test_what_is_not_measured_on_need_not_be_clear(tmp_path: Path, test: dict[str, int]) -> None:
    folder = filled(tmp_path / "pets", {"train/a": 4, "train/b": 4, **test})
    assert refused(folder)
    data = load(folder, val_fraction=0.5)
    assert (len(data.train), len(data.evaluation), data.measured) == (4, 4, "held-out")


def test_a_folder_whose_name_is_no_text_can_be_told_in_a_manifest(tmp_path: Path) -> None:
    folder = filled(tmp_path / "pets", {"train/a": 2, "train/b": 2})
    shutil.copytree(folder / "train" / "a", folder / os.fsdecode(b"Zubeh\xf6r"))
    (note,) = (note for note in load(folder, val_fraction=0.5).notes if "Zubeh" in note)
    assert note.encode() == rb"2 images in Zubeh\udcf6r belong to no split, left out"


def test_a_cache_that_has_no_room_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def partly(descriptor: int, offset: int, size: int) -> None:
        os.ftruncate(descriptor, size // 2)  # as some file systems do
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", partly)
    with pytest.raises(OSError, match="no space"):
        allocate(tmp_path / "pixels", 10_000)
    assert (tmp_path / "pixels").stat().st_size == 0


def test_where_no_space_can_be_promised_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    assert not allocate(tmp_path / "pixels", 10_000)
    assert allocate(tmp_path / "pixels", 10_000)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        allocate(tmp_path / "large", 2**60)


def test_hidden_folders_are_not_looked_into(tmp_path: Path) -> None:
    folder = filled(tmp_path / "pets", {"train/a": 2, "train/b": 2, ".Trashes/a": 1})
    with listed(folder) as listing:
        assert all(parts[:1] == ("train",) for parts, _ in listing.entries)


def test_d44_what_is_left_out_is_counted(tmp_path: Path) -> None:
    folder = filled(tmp_path / "pets", {"train/a": 3, "train/b": 3, "train": 2})
    for name in ("a/x.HEIC", "a/y.heic", "b/list.txt", "b/Thumbs.db", "b/clip.mov"):
        (folder / "train" / name).write_bytes(b"x")
    data = load(folder)
    assert data.notes == (
        "warning: files left out by their ending: 2 .heic, 1 .mov, 1 .txt (convert them first: the "
        "package pillow-heif reads HEIC)",
        "warning: 2 images in train are in no class folder, left out",
    )
    for name in ("a", "b"):
        for file in (folder / "train" / name).glob("*.png"):
            file.rename(file.with_suffix(".heic"))
    assert "class 'a' has no images in train" in refused(folder)
    assert "heic" in refused(folder)


def test_d38_a_run_says_its_classes_and_keeps_their_counts(cartl: Command) -> None:
    counts = {"train/a": 24, "train/b": 2, "val/a": 2, "val/b": 2}
    filled(Path("pets"), counts)
    done = cartl(
        *("pretrain", "--dataset", "pets", "--arch", "wrn-10-1", "--k", "1", "--epochs", "1"),
        *("--pgd-steps", "1", "--batch-size", "8", "--name", "source"),
    )
    assert done.code == 0, done.err
    assert "2 classes (images in train + val): a 24 + 2, b 2 + 2" in done.err
    assert "warning: class 'a' has 12 times as many training images as 'b'" in done.err
    kept = read_run(Path("runs/source")).manifest.data
    assert (kept.train_counts, kept.measured_counts, kept.measured) == ((24, 2), (2, 2), "val")
    attacked = cartl("attack", "source", "--pgd-steps", "1", "--checks", "off", "--split", "val")
    assert attacked.code == 0, attacked.err
    attacked = cartl("attack", "source", "--pgd-steps", "1", "--checks", "off", "--split", "test")
    assert "--split: 'pets' has no test split; choose val or train" in attacked.err


def test_the_split_seed_alone_chooses_what_is_held_out(tmp_path: Path) -> None:
    folder = filled(tmp_path / "pets", {"a": 20, "b": 20})
    first, again, other = (load(folder, split_seed=seed).fingerprint() for seed in (0, 0, 1))
    assert first == again != other


def png(depth: int, kind: int, channels: int) -> bytes:
    """A PNG of 16×16 zeros, written by hand."""
    rows = bytes(1 + 16 * channels * depth // 8) * 16

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 16, 16, depth, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(channels: int) -> bytes:
    """A TIFF of 16×16 pixels with 16 bits a channel, written by hand."""
    tags = [
        (256, 3, 1, 16),
        (257, 3, 1, 16),
        (258, 3, channels, 8 + 12 * 9 + 6),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8 + 12 * 9 + 6 + 2 * channels),
        (277, 3, 1, channels),
        (278, 3, 1, 16),
        (279, 4, 1, 16 * 16 * channels * 2),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    depths = struct.pack(f"<{channels}H", *[16] * channels)
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(tags))
        + entries
        + struct.pack("<I", 0)
        + depths
        + bytes(16 * 16 * channels * 2)
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rgb.png", png(16, 2, 3)),
        ("rgba.png", png(16, 6, 4)),
        ("gray.png", png(16, 0, 1)),
        ("gray-alpha.png", png(16, 4, 2)),
        ("rgb.tif", tiff(3)),
        ("raw.ppm", b"P6\n16 16\n65535\n" + bytes(16 * 16 * 6)),
        ("ten-bit.ppm", b"P6\n16 16\n1023\n" + bytes(16 * 16 * 6)),
        ("plain.ppm", b"P3\n16 16\n1023\n" + b"7 " * (16 * 16 * 3)),
        ("gray.pgm", b"P5\n16 16\n65535\n" + bytes(16 * 16 * 2)),
    ],
)
def test_d40_images_with_more_than_8_bits_are_refused(name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=rf"^\d\d-bit image: '{name}'; convert it to 8 bits"):
        decode_image(data, name, SQUARE)


def test_d40_images_with_8_bits_or_fewer_are_read() -> None:
    for name, data in (
        ("rgb.png", png(8, 2, 3)),
        ("one.png", png(1, 0, 1)),
        ("dark.ppm", b"P6\n16 16\n100\n" + bytes([50]) * (16 * 16 * 3)),
    ):
        pixels, _ = decode_image(data, name, SQUARE)
        assert pixels.unique().tolist() == ([128] if name == "dark.ppm" else [0])


def test_d40_what_is_said_of_an_image_is_true() -> None:
    """An opaque image with an alpha channel is not transparent, an EXIF turn of 0 turns nothing."""
    held = io.BytesIO()
    Image.new("RGBA", (32, 32), (1, 2, 3, 255)).save(held, "PNG")
    pixels, changes = decode_image(held.getvalue(), "opaque.png", SQUARE)
    assert (pixels[:, 0, 0].tolist(), changes) == ([1, 2, 3], ())
    for orientation in (0, 1, 9):
        exif = Image.Exif()
        exif[Base.Orientation] = orientation
        held = io.BytesIO()
        Image.new("RGB", (32, 32)).save(held, "JPEG", exif=exif)
        assert decode_image(held.getvalue(), "x.jpg", SQUARE)[1] == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.jfif", "JPEG"),
        ("x.jpe", "JPEG"),
        ("x.avif", "AVIF"),
        ("x.jp2", "JPEG2000"),
        ("x.tga", "TGA"),
        ("x.TIF", "TIFF"),
    ],
)
def test_d43_what_pillow_reads_is_read(tmp_path: Path, name: str, kind: str) -> None:
    folder = filled(tmp_path / "pets", {"a": 3, "b": 3})
    (folder / "a" / name).write_bytes(encoded((200, 10, 10), kind))
    data = load(folder, val_fraction=0.4)
    assert len(data.train) + len(data.evaluation) == 7
    found = torch.cat([*data.train.batches(9), *data.evaluation.batches(9)]).float().mean((2, 3))
    assert ((found - torch.tensor([200.0, 10, 10])).abs().amax(1) < 6).sum() == 1


def test_d43_a_file_with_several_pictures_gives_its_first() -> None:
    """Phones save a photograph and its depth, or a preview, as one ``.jpg`` of the kind MPO."""
    held = io.BytesIO()
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (16, 16), "blue")
    first.save(held, "MPO", save_all=True, append_images=[second])
    pixels, changes = decode_image(held.getvalue(), "IMG_0001.jpg", SQUARE)
    assert pixels[0].float().mean() > 250
    assert pixels[2].float().mean() < 5
    assert changes == ("were the first of several pictures in a file",)


def test_d42_all_bad_files_are_named_and_can_be_skipped(tmp_path: Path, cartl: Command) -> None:
    folder = filled(Path("pets"), {"train/a": 12, "train/b": 12, "test/a": 3, "test/b": 3})
    for number in range(22):
        (folder / "train" / "a" / f"bad{number:02d}.jpg").write_bytes(b"no image")
    (folder / "test" / "b" / "cut.png").write_bytes(encoded()[:40])
    said = refused(folder)
    assert said.startswith(
        "23 images cannot be used; mend them, or leave them out with --skip-bad:"
    )
    assert said.count("not an image: 'train/a/bad") == 20
    assert said.endswith("; and 3 more")
    data = load(folder, skip_bad=True)
    assert data.class_counts == ((12, 12), (3, 3))
    assert data.notes[0].startswith("warning: 23 of 53 images cannot be used and are left out:")
    expected = torch.cat([*data.train.batches(99)])
    for file in folder.rglob("bad*"):
        file.unlink()
    assert torch.equal(expected, torch.cat([*load(folder, skip_bad=True).train.batches(99)]))
    tiny = ("--arch", "wrn-10-1", "--k", "1", "--epochs", "1", "--pgd-steps", "1")
    done = cartl("pretrain", "--dataset", "pets", *tiny, "--batch-size", "8")
    assert (done.code, "cut.png" in done.err, "--skip-bad leaves it out" in done.err) == (1, 1, 1)
    done = cartl("pretrain", "--dataset", "pets", *tiny, "--batch-size", "8", "--skip-bad")
    assert done.code == 0, done.err
    kept = read_run(next(Path("runs").glob("*pretrain"))).manifest.data
    assert any("1 of 31 images cannot be used" in note for note in kept.notes)


def test_d42_a_file_that_was_mended_is_tried_again(tmp_path: Path) -> None:
    """As after chmod, which leaves size and time as they are."""
    folder, place = filled(tmp_path / "pets", {"a": 3, "b": 3}), Place(tmp_path / "cache")
    bad = folder / "a" / "1.png"
    kept, status = bad.read_bytes(), bad.stat()
    bad.write_bytes(bytes(len(kept)))
    os.utime(bad, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "not an image" in refused(folder, place=place)
    bad.write_bytes(kept)
    os.utime(bad, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load(folder, place=place).fingerprint() == load(folder).fingerprint()


def raw_zip(path: Path, names: Mapping[bytes, bytes], extra: bool = False) -> Path:
    """A zip whose names are stored as these bytes, without the flag that says UTF-8."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(names.items()):
            info = zipfile.ZipInfo(f"{number:0{len(name)}d}")
            if extra:
                text = name.decode("cp850").encode()
                field = struct.pack("<BI", 1, zlib.crc32(name)) + text
                info.extra = struct.pack("<HH", 0x7075, len(field)) + field
            archive.writestr(info, data)
    content = path.read_bytes()
    for number, name in enumerate(names):
        content = content.replace(f"{number:0{len(name)}d}".encode(), name)
    path.write_bytes(content)
    return path


CLASSES = ("Straße", "Zug", "Ärger")


@pytest.mark.parametrize("form", ["NFC", "NFD", "extra", "flag"])
def test_d41_a_zip_has_the_class_names_of_its_folder(tmp_path: Path, form: Any) -> None:
    image = colours()
    files = {f"pets/train/{name}/{n}.png": image() for name in CLASSES for n in range(3)}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "pets.zip"
    if form == "flag":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif form == "extra":
        raw_zip(path, {name.encode("cp850"): data for name, data in files.items()}, extra=True)
    else:
        names = {unicodedata.normalize(form, name).encode(): d for name, d in files.items()}
        raw_zip(path, names)
    zipped, plain = load(path, val_fraction=0.4), load(tmp_path / "pets", val_fraction=0.4)
    assert zipped.classes == plain.classes == CLASSES
    assert zipped.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("separator", ["\\", "./", "//", "mixed"])
def test_d41_separators_of_any_kind_are_understood(tmp_path: Path, separator: str) -> None:
    image, names = colours(), {}
    for number, folder in enumerate(("a", "b") * 3):
        name = f"pets/train/{folder}/{number}.png"
        shown = {
            "\\": name.replace("/", "\\"),
            "./": f"./{name}",
            "//": name.replace("train/", "train//"),
            "mixed": name.replace("train/", "train\\"),
        }[separator]
        names[shown.encode()] = image()
    data = load(raw_zip(tmp_path / "pets.zip", names), val_fraction=0.4)
    assert (data.classes, sum(map(len, (data.train, data.evaluation)))) == (("a", "b"), 6)


@pytest.mark.parametrize(
    "name", [b"..\\x.png", b"a\\..\\..\\x.png", b"./../x.png", b"C:\\x.png", b"\\x.png", b"/x.png"]
)
def test_d41_a_member_that_leads_elsewhere_is_refused(tmp_path: Path, name: bytes) -> None:
    path = raw_zip(tmp_path / "pets.zip", {b"train/a/1.png": encoded(), name: encoded()})
    assert "archive contains an unsafe member" in refused(path)


def test_d41_a_zip_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    path = raw_zip(
        tmp_path / "pets.zip", {b"train/a/1.png": encoded(), b"train/b/1.png": encoded()}
    )
    whole = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "is a .zip that is cut off or damaged; make it again" in refused(tmp_path / "cut.zip")
    flags = whole.index(b"PK\x01\x02") + 8
    path.write_bytes(whole[:flags] + b"\x01" + whole[flags + 1 :])
    assert "is encrypted; unpack it" in refused(path)


def test_d41_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    names = {b"train/a/1.png": encoded(), b"train\\a\\1.png": encoded("blue")}
    assert "'train/a/1.png' twice" in refused(raw_zip(tmp_path / "pets.zip", names))


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (400, 400), (33, 200)])
def test_a_crop_is_the_centre_of_the_image_whatever_its_shape(size: tuple[int, int]) -> None:
    """A ramp, cropped: its middle stays where it is, its slope is that of the shorter side."""
    width, height = size
    ramp = numpy.linspace(0, 255, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    held = io.BytesIO()
    Image.fromarray(ramp.astype(numpy.uint8)).save(held, "PNG")
    how = Preprocessing(image_size=32, resize="crop", shorter_side=40)
    row = decode_image(held.getvalue(), "x.png", how)[0][0, 16].double()
    side = min(size) * 32 / 40
    assert row.mean().item() == pytest.approx(127.5, abs=2)
    expected = 255 / (width - 1) * side * 31 / 32
    assert (row[-1] - row[0]).item() == pytest.approx(expected, abs=3)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size() -> None:
    """As good as from all of its pixels: the picture is smooth."""
    x = numpy.linspace(0, 255, 1600)
    picture = numpy.stack(numpy.broadcast_arrays(x[None, :], x[:1200, None], 90.0), 2)
    held = io.BytesIO()
    Image.fromarray(picture.astype(numpy.uint8)).save(held, "JPEG", quality=95)
    reduced = decode_image(held.getvalue(), "x.jpg", SQUARE)[0]
    held.seek(0)
    whole = Image.open(held).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(numpy.array(whole)).permute(2, 0, 1)
    assert (reduced.int() - expected.int()).abs().max() <= 2


def test_every_ending_is_either_read_or_not() -> None:
    assert not layout.READ & layout.UNREAD
