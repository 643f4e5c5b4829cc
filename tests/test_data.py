import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import pytest
import torch
from PIL import ExifTags, Image

from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data import folders, pixel_cache
from cartl_cli.core.data.batches import LEAST_AREA, zoom
from cartl_cli.core.data.data_sets import DataChoice, augmentation, load_data_set
from cartl_cli.core.data.decoding import decode_image
from cartl_cli.core.data.downloads import NOWHERE, Place
from cartl_cli.core.data.shapes import PATTERN, shapes, shapes_target
from cartl_cli.core.data.split import DataSet, Split, channel_statistics, shared_images
from cartl_cli.core.errors import DataError, UsageError

ImageFolder = Callable[..., Path]

SHAPES = "7e167987ff6ff3ab1a37ba8e66b17fb11b57fefa043266ef94c72d444e827199"
SHAPES_TARGET = "1dc9c0d00e30b34adfd9c19a2fe7873f42d6dd387bd702e85218694758a05b17"


def load(
    path: Path, classes: tuple[str, ...] = (), size: int = 32, place: Place = NOWHERE, **choice: Any
) -> DataSet:
    return load_data_set(
        DataChoice(str(path), classes, **choice), Preprocessing(image_size=size), place
    )


def zipped(folder: Path, top: str = "") -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{top}{file.relative_to(folder)}")
    return path


def test_shapes_are_the_same_pixels_everywhere() -> None:
    assert shapes().fingerprint() == SHAPES
    assert shapes_target().fingerprint() == SHAPES_TARGET


def test_shapes_have_the_documented_sizes() -> None:
    source, target = shapes(), shapes_target()
    assert (len(source.classes), len(target.classes)) == (10, 8)
    assert not set(source.classes) & set(target.classes)
    assert source.train.labels.bincount().tolist() == [300] * 10
    assert source.evaluation.labels.bincount().tolist() == [50] * 10
    assert target.train.labels.bincount().tolist() == [60] * 8
    assert target.evaluation.labels.bincount().tolist() == [50] * 8
    assert source.train.images.shape == (3000, 3, 32, 32)
    assert source.train.images.dtype == torch.uint8


def test_each_class_carries_its_own_faint_pattern() -> None:
    """The mean residual of a class shows fixed signs of amplitude 4/255, as in its test images."""
    data = shapes_target()
    for label in (0, 5):

        def mean_image(
            images: torch.Tensor, labels: torch.Tensor, label: int = label
        ) -> torch.Tensor:
            mean = images[labels == label].double().mean(0) / 255
            blurred = torch.nn.functional.avg_pool2d(mean, 5, 1, 2, count_include_pad=False)
            return (mean - blurred).flatten()

        train = mean_image(data.train.images, data.train.labels)
        test = mean_image(data.evaluation.images, data.evaluation.labels)
        assert torch.corrcoef(torch.stack([train, test]))[0, 1] > 0.5
        assert train.abs().median().item() == pytest.approx(PATTERN, rel=0.25)


def test_test_images_are_not_training_images() -> None:
    data = shapes_target()

    def keys(images: torch.Tensor) -> set[bytes]:
        return {hashlib.sha256(image.numpy().tobytes()).digest() for image in images}

    assert not keys(data.train.images) & keys(data.evaluation.images)


def test_folder_and_zip_give_the_same_data(image_folder: ImageFolder) -> None:
    folder = image_folder(("dog", "cat", "bird"))
    plain = load(folder)
    assert plain.classes == ("bird", "cat", "dog")
    assert (len(plain.train), len(plain.evaluation), plain.measured) == (12, 6, "test")
    for archive in (zipped(folder), zipped(folder, top="images/")):
        assert load(archive).fingerprint() == plain.fingerprint()
    shutil.rmtree(folder / "test")
    bare = load(folder / "train")
    assert (bare.classes, bare.measured) == (plain.classes, "held-out")


def test_chosen_classes_keep_the_data_sets_order(image_folder: ImageFolder) -> None:
    folder = image_folder(("a", "b", "c"))
    chosen = load(folder, ("c", "a"))
    assert chosen.classes == ("a", "c")
    assert chosen.train.labels.bincount().tolist() == [4, 4]
    built_in = load(Path("shapes"), ("square", "disk"))
    assert built_in.classes == ("disk", "square")
    assert torch.equal(built_in.train.images, shapes().train.images[:600])
    with pytest.raises(UsageError, match="no class 'd'"):
        load(folder, ("a", "d"))


@pytest.mark.parametrize(("test", "val_fraction", "held"), [(0, 0.0, 2), (2, 0.25, 5)])
def test_held_out_part_is_stratified_and_seeded(
    image_folder: ImageFolder, test: int, val_fraction: float, held: int
) -> None:
    folder = image_folder(("a", "b"), train=20, test=test)
    data = load(folder, val_fraction=val_fraction)
    assert data.measured == "held-out"
    assert data.evaluation.labels.bincount().tolist() == [held, held]
    assert data.train.labels.bincount().tolist() == [20 - held, 20 - held]
    assert load(folder, val_fraction=val_fraction).fingerprint() == data.fingerprint()
    other = load(folder, val_fraction=val_fraction, split_seed=1)
    assert other.fingerprint() != data.fingerprint()


def test_what_was_converted_is_counted(image_folder: ImageFolder) -> None:
    folder = image_folder(("a", "b"), mode="L", size=(28, 28))
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(folder / "train" / "a" / "clear.png")
    data = load(folder)
    assert data.train.images.shape == (9, 3, 32, 32)
    assert data.notes == (
        "12 of 13 images were grayscale, made RGB",
        "12 of 13 images were resized to 32x32",
        "1 of 13 images were transparent, laid on black",
        "warning: 4 of 4 test images are also in train",
    )
    clear = data.train.images[data.train.labels == 0][-1]
    assert not clear.any()
    grey = data.train.images[0]
    assert torch.equal(grey[0], grey[1])


def test_d23_exif_orientation_is_applied(image_folder: ImageFolder) -> None:
    """One picture, stored in each of the seven ways that a camera may have to turn it."""
    folder = image_folder(("a", "b"), test=0)
    upright = Image.new("RGB", (32, 32))
    upright.paste("red", (0, 0, 16, 32))
    upright.paste("blue", (0, 0, 16, 8))
    stored = {  # orientation → how the pixels lie in the file
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation, turn in stored.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = folder / "train" / "a" / f"turned-{orientation}.png"
        upright.transpose(turn).save(path, exif=exif)
    data = load(folder)
    expected = torch.from_numpy(numpy.array(upright)).permute(2, 0, 1)
    assert all(torch.equal(image, expected) for image in data.train.images[4:11])
    assert data.notes[0] == "7 of 15 images were turned upright (EXIF)"


def test_d24_shared_images_are_counted_pixel_for_pixel(data: DataSet) -> None:
    assert shared_images(data.train, data.evaluation) == 0
    mixed = data.evaluation.images.clone()
    mixed[1], mixed[5] = data.train.images[7], data.train.images[0]
    mixed[6] = data.train.images[3]
    mixed[6, 2, 31, 31] ^= 1  # all but the same
    assert shared_images(data.train, Split(mixed, data.evaluation.labels)) == 2


def test_image_size_resizes(image_folder: ImageFolder) -> None:
    data = load(image_folder(size=(40, 20)), size=16)
    assert data.train.images.shape[-2:] == (16, 16)


def test_decoding_happens_once(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = image_folder(mode="L"), tmp_path / "cache"

    def from_cache() -> DataSet:
        return load(folder, place=Place(cache))

    first = from_cache()
    with monkeypatch.context() as patch:
        patch.setattr(folders, "decode_image", None)  # any decoding now fails
        again = from_cache()
    assert again.fingerprint() == first.fingerprint()
    assert again.notes == first.notes
    Image.new("RGB", (32, 32), "white").save(folder / "train" / "cat" / "0.png")
    assert from_cache().fingerprint() != first.fingerprint()
    expected = from_cache().fingerprint()
    for name in (pixel_cache.STATE, pixel_cache.PIXELS):
        for entry in cache.iterdir():
            (entry / name).write_bytes(b"damaged")
        assert from_cache().fingerprint() == expected


def test_decoding_that_was_stopped_is_gone_on_with(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 18 images 12 are noted as decoded; the pixels are those of a decoding in one go."""
    folder, place, decoded = image_folder(train=6, test=3), Place(tmp_path / "cache"), list[str]()
    expected = load(folder).fingerprint()
    monkeypatch.setattr(pixel_cache, "PART", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    def decode(data: bytes, name: str, preprocessing: Preprocessing) -> Any:
        if len(decoded) == 14:
            raise KeyboardInterrupt
        decoded.append(name)
        return decode_image(data, name, preprocessing)

    monkeypatch.setattr(folders, "decode_image", decode)
    with pytest.raises(KeyboardInterrupt):
        load(folder, place=place)
    assert len(decoded) == 14
    decoded.append("")
    assert load(folder, place=place).fingerprint() == expected
    assert len(decoded) == 15 + 6


def test_what_was_bad_stays_so_until_it_is_tried_again(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, place = image_folder(train=6, test=3), Place(tmp_path / "cache")
    for number in (0, 1):
        (folder / "train" / "cat" / f"{number}.png").write_bytes(b"damaged")

    def found() -> int:
        return len(load(folder, place=place, skip_bad=True).train)

    expected, tried = found(), list[str]()

    def decode(data: bytes, name: str, preprocessing: Preprocessing) -> Any:
        if tried:
            raise KeyboardInterrupt
        tried.append(name)
        return decode_image(data, name, preprocessing)

    with monkeypatch.context() as patch:
        patch.setattr(pixel_cache, "PART", 1)
        patch.setattr(folders, "decode_image", decode)
        with pytest.raises(KeyboardInterrupt):
            found()
    assert tried == ["train/cat/0.png"]
    assert found() == expected == 10


def test_what_is_done_to_the_pixels_does_not_reach_the_cache(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    folder, place = image_folder(), Place(tmp_path / "cache")
    data = load(folder, place=place)
    expected = data.fingerprint()
    data.train.images.zero_()
    assert load(folder, place=place).fingerprint() == expected != data.fingerprint()


def test_a_held_out_part_shares_the_pixels(image_folder: ImageFolder) -> None:
    data = load(image_folder(("a", "b"), train=20, test=0))
    assert data.train.images.data_ptr() == data.evaluation.images.data_ptr()
    whole = torch.cat([*data.train.batches(7)])
    some = torch.tensor([3, 0, 5])
    assert torch.equal(data.train.take(some).images, whole[some])
    assert torch.equal(data.train.part(some).take(torch.tensor([2])).images, whole[[5]])
    assert torch.equal(data.train.part(some).labels, data.train.labels[some])


def test_hidden_files_are_no_classes(image_folder: ImageFolder) -> None:
    folder = image_folder()
    for extra in (folder / "train" / ".hidden", folder / "__MACOSX" / "cat"):
        extra.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(extra / "x.png")
    (folder / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "train" / "notes.txt").write_text("x")
    assert load(folder).classes == ("cat", "dog")


def test_statistics_are_those_of_the_training_pixels(data: DataSet) -> None:
    mean, std = channel_statistics(data.train)
    pixels = data.train.images[:, 1].double() / 255
    assert mean[1] == pytest.approx(pixels.mean().item())
    assert std[1] == pytest.approx(pixels.std(correction=0).item())


def test_augmentation_is_the_data_sets_own_unless_chosen() -> None:
    assert augmentation("shapes", None, 32) == ()
    assert augmentation("some/folder", None, 32) == ("crop",)
    assert augmentation("some/folder", (), 32) == ()
    assert augmentation("shapes", ("flip",), 32) == ("flip",)
    assert augmentation("some/photographs", None, 224) == ("zoom", "flip")


def test_a_zoom_shows_a_part_of_the_image_of_the_area_that_was_drawn() -> None:
    """On an image whose channels are the coordinates: what it shows is read off its corners."""
    side = 200
    line = (torch.arange(side) + 0.5) / side
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    image = torch.stack([rows, columns, torch.zeros(side, side)])
    draws = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    zoomed = zoom(image.expand(50, -1, -1, -1), *draws.unbind(1))
    low, high = zoomed[:, :2, 0, 0], zoomed[:, :2, -1, -1]
    sides = (high - low) * side / (side - 1)
    area = LEAST_AREA + (1 - LEAST_AREA) * draws[:, 2]
    fits = sides.amax(1) < 0.999
    torch.testing.assert_close(sides.prod(1)[fits], area[fits], rtol=1e-3, atol=1e-3)
    assert (sides.prod(1)[~fits] <= area[~fits] + 1e-3).all()
    ratio = sides[:, 1] / sides[:, 0]
    assert ratio.max() <= 4 / 3 + 1e-3
    assert ratio.min() >= 3 / 4 - 1e-3
    assert low.min() >= 0
    assert high.max() <= 1
    free = 1 - sides > 0.1
    place = low / (1 - sides).clamp_min(0.1)
    torch.testing.assert_close(place[free], draws[:, :2][free], rtol=0, atol=0.05)
    whole = zoom(image[None], *torch.tensor([[0.3], [0.7], [1.0], [0.5]]))
    torch.testing.assert_close(whole[0], image, atol=1e-5, rtol=0)


def test_a_test_class_that_is_not_trained_is_refused(image_folder: ImageFolder) -> None:
    folder = image_folder()
    shutil.copytree(folder / "test" / "cat", folder / "test" / "cow")
    with pytest.raises(DataError, match="class 'cow' is in test but not in train"):
        load(folder)


def test_a_gpu_gets_what_does_not_fit_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which calls are made, where there is no GPU; ``test_cuda`` has the pixels."""
    cuda, labels, pixels = torch.device("cuda"), mock.MagicMock(), mock.MagicMock()
    labels.__len__.return_value = 10
    pixels.device = torch.device("cpu")
    pixels.__getitem__.return_value.numel.return_value = 3 * 32 * 32
    for free, fits in ((10 * 3 * 32 * 32, False), (10**9, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        moved = Split(pixels, labels).to(cuda)
        assert (moved.images is pixels) == (not fits)
        assert moved.labels is labels.to.return_value
    labels.device = cuda
    taken = pixels.__getitem__.return_value
    taken.device = torch.device("cpu")
    part = Split(pixels, labels).take(torch.arange(3))
    taken.pin_memory.return_value.to.assert_called_once_with(cuda, non_blocking=True)
    assert part.images is taken.pin_memory.return_value.to.return_value
