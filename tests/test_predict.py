"""Answers for photographs: what the model says of each, in every form, and what is left out."""

import csv
import io
import json
import math
import shutil
import sys
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from cartl_cli import load_model
from cartl_cli.core.config import PredictConfig
from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.decoding import decode_image, pixels_of
from cartl_cli.core.errors import DataError
from cartl_cli.core.evaluation.confusion import Confusion
from cartl_cli.core.method.pgd import Budget
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.predictions.answers import Answer, Asking, answers
from cartl_cli.core.predictions.images import Bad, Found, named_images
from cartl_cli.core.runs.manifest import ModelSpec, Run
from cartl_cli.core.runs.reader import read_run
from tests.conftest import Command, Finished, ImageFolder

CLASSES = ("disk", "square", "bar")
FOLDERS = (*CLASSES, "holiday")


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Blotches of colour, so that small models answer in different ways."""
    draws = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (4, 4, 3), generator=draws, dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images in each of the folders ``disk``, ``square``, ``bar`` and ``holiday``."""
    root = tmp_path / "photos"
    for place, folder in enumerate(FOLDERS):
        (root / folder).mkdir(parents=True)
        for number in range(3):
            picture(10 * place + number).save(root / folder / f"{number}.png")
    return root


@pytest.fixture
def runs(runs_dir: Path, tmp_path: Path) -> Path:
    """The tiny source run alone, in the folder of the commands."""
    shutil.copytree(runs_dir / "source", tmp_path / "runs" / "source")
    return tmp_path / "runs"


@pytest.fixture
def source(runs: Path) -> Run:
    return read_run(runs / "source")


def lines(done: Finished) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


def logits_of(run: Run, path: Path) -> Tensor:
    """What the loaded model says of a file, as it is decoded."""
    spec = run.manifest.model
    pixels, _ = decode_image(path.read_bytes(), path.name, spec.preprocessing)
    with torch.no_grad():
        logits: Tensor = load_model(run.folder)(pixels[None].float() / 255)
    return logits[0]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png"))


# Answers


def test_answers_are_those_of_the_loaded_model(cartl: Command, source: Run, photos: Path) -> None:
    done = cartl("predict", "source", "photos", "--format", "jsonl", "--top", 3)
    assert done.code == 0
    found = lines(done)
    assert [one["file"] for one in found] == [
        str(path.relative_to(photos.parent)) for path in files(photos)
    ]
    classes = source.manifest.model.classes
    for one, path in zip(found, files(photos), strict=True):
        logits = logits_of(source, path)
        expected = logits.softmax(0)
        assert one["answer"] == classes[int(logits.argmax())]
        assert one["probability"] == pytest.approx(float(expected.max()), abs=1e-5)
        for ranked in one["top"]:
            share = float(expected[classes.index(ranked["class"])])
            assert ranked["probability"] == pytest.approx(share, abs=1e-5)
    assert len({one["answer"] for one in found}) > 1


@pytest.mark.parametrize("top", [1, 2, 3])
def test_the_likeliest_classes_come_sorted(
    cartl: Command, runs: Path, photos: Path, top: int
) -> None:
    for one in lines(cartl("predict", "photos", "--format", "jsonl", "--top", top)):
        shares = [ranked["probability"] for ranked in one["top"]]
        assert len(shares) == top == len({ranked["class"] for ranked in one["top"]})
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1 + 1e-12
        assert one["top"][0] == {"class": one["answer"], "probability": one["probability"]}


def test_csv_has_what_json_lines_have(cartl: Command, runs: Path, photos: Path) -> None:
    options = ("--top", 2, "--attack", "pgd", "--pgd-steps", 2, "--eps", "2/255")
    table = [
        *csv.DictReader(io.StringIO(cartl("predict", photos, "--format", "csv", *options).out))
    ]
    objects = lines(cartl("predict", photos, "--format", "jsonl", *options))
    assert len(table) == len(objects) == 12
    for row, one in zip(table, objects, strict=True):
        second = one["top"][1]
        assert row == {
            "file": one["file"],
            "label": one["label"] or "",
            "answer": one["answer"],
            "probability": str(one["probability"]),
            "answer_2": second["class"],
            "probability_2": str(second["probability"]),
            "survives": str(one["survives"]).lower(),
            "attack": "pgd",
            "eps": str(2 / 255),
            "steps": "2",
        }


def test_the_table_shows_every_answer(cartl: Command, runs: Path, photos: Path) -> None:
    found = lines(cartl("predict", "photos", "--format", "jsonl"))
    done = cartl("predict", "photos", "--top", 2)
    assert done.code == 0
    for one in found:
        (row,) = [line for line in done.out.splitlines() if one["file"] in line]
        assert one["answer"] in row
        assert f"{100 * one['probability']:.1f} %" in row
    alone = cartl("predict", "photos/holiday/0.png")
    assert alone.code == 0
    assert "source: 1 image " in alone.out
    assert "label" not in alone.out


def test_batches_change_nothing(cartl: Command, runs: Path, photos: Path) -> None:
    options = ("--attack", "pgd-margin", "--pgd-steps", 3, "--format", "jsonl")
    whole, halves, single = (
        lines(cartl("predict", photos, *options, "--batch-size", size)) for size in (64, 2, 1)
    )
    for one, two, three in zip(whole, halves, single, strict=True):
        for other in (two, three):
            assert {**other, "probability": 0, "top": 0} == {**one, "probability": 0, "top": 0}
            assert other["probability"] == pytest.approx(one["probability"], abs=1e-5)


def test_no_more_than_a_batch_is_read_ahead(source: Run, photos: Path) -> None:
    read = 0

    def data() -> bytes:
        nonlocal read
        read += 1
        return (photos / "disk" / "0.png").read_bytes()

    endless = (Found(f"{number}.png", data) for number in iter(int, 1))
    spec = source.manifest.model
    config = PredictConfig(batch_size=2)
    asked = Asking(load_model(source.folder), spec, config, None, torch.device("cpu"))  # type: ignore[arg-type]
    for count, part in zip(range(1, 4), answers(asked, endless), strict=False):
        assert len(part) == 2
        assert read == 2 * count


# Paths


def test_files_folders_zips_and_standard_input_answer_alike(
    cartl: Command, runs: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(path.relative_to(photos.parent)) for path in files(photos)]
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for name in names:
            archive.write(name, name.removeprefix("photos/"))
    options = ("--format", "jsonl", "--attack", "pgd", "--pgd-steps", 2)
    folder = lines(cartl("predict", "photos", *options))
    assert lines(cartl("predict", *names, *options)) == folder
    for one, member in zip(folder, lines(cartl("predict", "photos.zip", *options)), strict=True):
        assert member == {**one, "file": one["file"].replace("photos/", "photos.zip/")}
    given(monkeypatch, "".join(f"{name}\n" for name in names[:2]) + f"\r\n{names[2]}\r\n")
    assert lines(cartl("predict", "source", "-", *options)) == folder[:3]


def given(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let standard input be a text."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_the_order_of_answers_is_that_of_the_paths(
    cartl: Command, runs: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, "photos/disk/2.png\nphotos/disk/0.png\n")
    paths = ("photos/square/1.png", "-", "photos/bar", "photos/square/0.png")
    found = lines(cartl("predict", *paths, "--format", "jsonl", "--batch-size", 2))
    assert [one["file"].removeprefix("photos/") for one in found] == [
        *("square/1.png", "disk/2.png", "disk/0.png", "bar/0.png", "bar/1.png", "bar/2.png"),
        "square/0.png",
    ]


def test_only_images_of_a_folder_are_taken(
    cartl: Command, runs: Path, tmp_path: Path, photos: Path
) -> None:
    (photos / "notes.txt").write_text("none")
    (photos / ".hidden").mkdir()
    picture(1).save(photos / ".hidden" / "1.png")
    picture(1).save(tmp_path / "named.dat", format="png")
    done = cartl("predict", "photos", "named.dat", "--format", "jsonl")
    assert done.code == 0
    assert len(lines(done)) == 13


FORMS = ("turned", "gray", "transparent", "jpeg", "twice", "wide")


@pytest.mark.parametrize("preprocessing", ["squash", "crop"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_is_answered_as_it_is_decoded(
    cartl: Command, source: Run, tmp_path: Path, form: str, preprocessing: str
) -> None:
    manifest = source.manifest.model_dump(mode="json")
    changed = Preprocessing(image_size=32, resize=preprocessing)
    manifest["model"]["preprocessing"] = changed.model_dump(mode="json")
    (source.folder / "manifest.json").write_text(json.dumps(manifest))
    run = read_run(source.folder)
    image = picture(3, {"twice": (64, 64), "wide": (90, 40)}.get(form, (32, 32)))
    path = tmp_path / ("a.jpg" if form in ("jpeg", "turned") else "a.png")
    exif = Image.Exif()
    if form == "turned":
        exif[ExifTags.Base.Orientation] = 6
    if form == "gray":
        image = image.convert("L")
    if form == "transparent":
        image.putalpha(100)
    image.save(path, exif=exif)
    (one,) = lines(cartl("predict", path, "--format", "jsonl"))
    logits = logits_of(run, path)
    assert one["answer"] == run.manifest.model.classes[int(logits.argmax())]
    assert one["probability"] == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
    model = load_model(source.folder)
    with torch.no_grad():
        pair = torch.stack([model.preprocess(path), model.preprocess(Image.open(path))])
        assert torch.allclose(model(pair), logits.expand(2, -1), atol=1e-5)


# Files that are left out


def test_bad_files_are_named_and_the_others_answered(
    cartl: Command, runs: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "bar" / "bad.png").write_bytes(b"no picture")
    (photos / "bar" / "cut.png").write_bytes((photos / "bar" / "0.png").read_bytes()[:60])
    (photos / "bar" / "phone.heic").write_bytes(b"ftypheic")
    picture(0).save(photos / "bar" / "raw.nef", format="tiff")  # most raw files open as TIFFs
    given(monkeypatch, "photos/none.png\nphotos/bar/1.png\n")
    for kind in ("jsonl", "csv", "table"):
        done = cartl("predict", "photos", "-", "--format", kind, "--batch-size", 2)
        given(monkeypatch, "photos/none.png\nphotos/bar/1.png\n")
        assert done.code == 1
        said = done.err.splitlines()
        assert sum(line.startswith("left out: ") for line in said) == 5
        for name in ("bad.png", "cut.png", "phone.heic", "raw.nef", "none.png"):
            assert any(name in line for line in said), name
        assert said[-1] == "cartl: error: 5 of 18 files have no answer; each is named above"
        assert sum(".png" in line for line in done.out.splitlines()) == 13


def test_a_link_that_leads_nowhere_is_left_out(cartl: Command, runs: Path, photos: Path) -> None:
    (photos.parent / "lost.png").symlink_to("nowhere.png")
    done = cartl("predict", "lost.png", "photos/bar/1.png", "--format", "csv")
    assert done.code == 1
    assert "left out: image 'lost.png' is missing" in done.err
    assert done.err.splitlines()[-1] == (
        "cartl: error: 1 of 2 files has no answer; each is named above"
    )
    assert done.out.count("photos/bar/1.png") == 1


def test_only_what_is_decoded_counts_against_the_largest_size(tmp_path: Path) -> None:
    """A JPEG is decoded at a fraction of its size."""
    preprocessing = Preprocessing(image_size=32)
    large = Image.new("RGB", (8_000, 6_500), (200, 30, 60))
    large.save(tmp_path / "large.jpg")
    large.save(tmp_path / "large.png")
    taken = pixels_of(preprocessing, tmp_path / "large.jpg")
    expected = torch.tensor([200, 30, 60]).view(3, 1, 1) / 255
    torch.testing.assert_close(taken, expected.expand(3, 32, 32), atol=3 / 255, rtol=0)
    with pytest.raises(DataError, match="8000x6500 pixels; make it smaller, at most 50 million"):
        pixels_of(preprocessing, tmp_path / "large.png")


def test_a_picture_that_makes_no_finite_numbers_has_no_answer(source: Run) -> None:
    model = load_model(source.folder)
    with torch.no_grad():
        model.blocks[-1].linear.bias[0] = math.nan  # type: ignore[index,union-attr]
    content = io.BytesIO()
    picture(0).save(content, format="png")
    config, spec = PredictConfig(), source.manifest.model
    asked = Asking(model, spec, config, None, torch.device("cpu"))  # type: ignore[arg-type]
    (part,) = answers(asked, [Found("a.png", content.getvalue)])
    assert part == [Bad("a.png", "the model's logits are no finite numbers: 'a.png'")]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "PATHS: give image files, folders or .zips of them, or - for names"),
        (["source"], 2, "PATHS: give image files, folders or .zips of them, or - for names"),
        (["empty"], 1, "no images in 'empty'"),
        (["texts"], 1, "no images in 'texts'"),
        (["empty.zip"], 1, "no images in 'empty.zip'"),
        (["photos", "nowhere"], 2, "no such file or folder: 'nowhere'"),
        (["nowhere"], 2, "no such file or folder: 'nowhere'"),
        (["photos/none.jpg"], 2, "no such file or folder: 'photos/none.jpg'"),
        (["-"], 1, "no images: standard input named none"),
        (["nowhere", "photos"], 2, "RUN: no such run: 'nowhere'; runs in 'runs': source"),
        (["7", "photos"], 2, "RUN: no such run: '7'"),
        (["unfinished", "photos"], 1, "run 'unfinished' is not complete: interrupted"),
        (["photos", "--runs-dir", "empty"], 2, "run in 'empty'; run cartl pretrain first"),
        (
            ["photos", "--runs-dir", "nix"],
            2,
            "run in 'nix', which is no folder; run cartl pretrain",
        ),
        (["photos", "--top", "4"], 2, "--top: run 'source' has 3 classes, got 4"),
        (["photos", "--top", "0"], 2, "--top: must be >= 1"),
        (["photos", "--eps", "2/255"], 2, "--eps: goes with --attack pgd"),
        (["photos", "--pgd-steps", "2"], 2, "--pgd-steps: goes with --attack pgd"),
        (["photos", "--attack", "pgd", "--eps", "8"], 2, "did you mean 8/255?"),
        (["photos", "--attack", "fgsm"], 2, "'fgsm' is not one of 'pgd', 'pgd-margin'"),
        (["photos", "--format", "xml"], 2, "'xml' is not one of 'table', 'csv', 'jsonl'"),
        (["photos", "--plot"], 2, "--plot: confusion.png is there; --force writes over it"),
        (["photos/holiday", "--plot", "--force"], 1, "--plot: no image is in a folder named like"),
    ],
)
def test_refusals_are_one_line(
    cartl: Command,
    runs: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    given(monkeypatch, "\n")
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/a.txt").touch()
    Path("confusion.png").touch()
    zipfile.ZipFile("empty.zip", "w").close()
    shutil.copytree("runs/source", "runs/unfinished")
    manifest = json.loads(Path("runs/source/manifest.json").read_text())
    manifest |= {"status": "interrupted", "weights": None, "results": None}
    Path("runs/unfinished/manifest.json").write_text(json.dumps(manifest))
    done = cartl("predict", *arguments)
    assert done.code == code
    errors = [line for line in done.err.splitlines() if line.startswith("cartl: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.err


def test_a_run_goes_before_a_folder_of_its_name(cartl: Command, runs: Path, photos: Path) -> None:
    photos.rename("source")
    assert len(lines(cartl("predict", "source", "./source/bar", "--format", "jsonl"))) == 3
    assert len(lines(cartl("predict", "runs/source", "./source", "--format", "jsonl"))) == 12
    assert "PATHS: give image files" in cartl("predict", "source").err


# Labels


def test_folders_named_like_classes_give_the_accuracy(
    cartl: Command, runs: Path, photos: Path
) -> None:
    found = lines(done := cartl("predict", "photos", "--format", "jsonl"))
    assert {one["label"] for one in found} == {*CLASSES, None}
    labelled = [one for one in found if one["label"]]
    right = Counter(one["label"] for one in labelled if one["label"] == one["answer"])
    shares = [right[name] / 3 for name in CLASSES]
    table = cartl("predict", "photos").out
    for shown in (done.err, table):
        rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
        assert f"{100 * right.total() / 9:.1f} %" in rows["all"]
        assert f"{100 * sum(shares) / 3:.1f} %" in rows["balanced: mean of the classes"]
        for name, share in zip(CLASSES, shares, strict=True):
            assert f"{100 * share:.1f} %" in rows[name]
        assert "n = 9 images" in shown
        for place, name in enumerate(CLASSES, start=1):
            counts = [
                sum((one["label"], one["answer"]) == (name, answer) for one in labelled)
                for answer in CLASSES
            ]
            cells = [text.strip() for text in rows[str(place)].split("│")[2:-1]]
            assert cells == [name, *map(str, counts)]


def test_a_confusion_matrix_against_numbers_by_hand() -> None:
    confusion = Confusion(("a", "b", "c", "d"))
    for label, answer, count in (
        *(("a", "a", 6), ("a", "b", 2), ("a", "c", 2)),  # 60 %
        *(("b", "b", 1), ("b", "c", 3)),  # 25 %
        ("c", "c", 2),  # 100 %
        (None, "d", 5),
    ):
        for _ in range(count):
            confusion.add(label, answer)
    assert (confusion.n, confusion.right) == (16, 9)
    assert confusion.overall_accuracy == 9 / 16
    assert confusion.balanced_accuracy == pytest.approx((0.6 + 0.25 + 1) / 3)
    assert [confusion.accuracy(name) for name in "abc"] == [0.6, 0.25, 1.0]
    assert confusion.worst == "b"
    assert confusion.labels == confusion.met == ["a", "b", "c"]
    assert [confusion.mistaken_for(name) for name in "abc"] == [("b", 2), ("c", 3), None]


@pytest.mark.parametrize("count", [1, 3, 40, 120])
def test_the_picture_has_room_for_every_class(count: int) -> None:
    plot = pytest.importorskip("cartl_cli.display.confusion_plot")
    classes = tuple(f"class $_{place}" for place in range(count))
    counts = Counter({(a, b): 1 for a in classes for b in classes[:7]})
    first, second = (plot.confusion_plot("run", Confusion(classes, counts)) for _ in range(2))
    assert first == second
    with Image.open(io.BytesIO(first)) as drawn:
        assert max(drawn.size) < 4000


def test_plot_draws_the_confusion_matrix(cartl: Command, runs: Path, photos: Path) -> None:
    pytest.importorskip("matplotlib")
    done = cartl("predict", "photos", "--plot")
    assert done.code == 0
    assert "drawn confusion.png" in done.err
    with Image.open("confusion.png") as drawn:
        assert drawn.format == "PNG"
    assert cartl("predict", "photos", "--plot").code == 2
    assert cartl("predict", "photos", "--plot", "--force").code == 0


# Attacks


def linear_asked(config: PredictConfig, budget: Budget, weights: Tensor) -> Asking:
    """A linear model of two classes on images of 8 pixels a side."""
    linear = nn.Linear(192, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weights)
    head = nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=linear))
    preprocessing = Preprocessing(image_size=8)
    spec = ModelSpec(arch="linear", classes=("a", "b"), preprocessing=preprocessing)
    return Asking(BlockModel(nn.Identity(), [head]), spec, config, budget, torch.device("cpu"))


@pytest.mark.parametrize("attack", ["pgd", "pgd-margin"])
def test_an_answer_of_a_linear_model_survives_up_to_its_distance(attack: Any) -> None:
    """|z_a − z_b| / ‖w_a − w_b‖₁ is the ℓ∞ distance to the other class, away from 0 and 1."""
    draws = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 192, generator=draws)
    found, pictures = [], []
    for number in range(6):
        pixels = torch.randint(100, 156, (8, 8, 3), generator=draws, dtype=torch.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(content, format="png")
        found.append(Found(f"{number}.png", content.getvalue))
        pictures.append(pixels.permute(2, 0, 1).flatten() / 255)
    margins = (torch.stack(pictures) @ (weights[0] - weights[1])).abs()
    distances = (margins / (weights[0] - weights[1]).abs().sum()).tolist()
    assert max(distances) < 0.3
    config = PredictConfig(attack=attack, pgd_steps=20)
    for place, distance in enumerate(distances):
        for factor, survives in ((0.9, True), (1.1, False)):
            budget = Budget(factor * distance, factor * distance / 4, 20)
            asked = linear_asked(config, budget, weights)
            (part,) = answers(asked, found[place : place + 1])
            assert isinstance(part[0], Answer)
            assert part[0].survives is survives
    tiny, large = (
        [one.survives for one in next(answers(linear_asked(config, b, weights), found))]  # type: ignore[union-attr]
        for b in (Budget(1e-6, 1e-6 / 4, 20), Budget(0.5, 0.125, 20))
    )
    assert all(tiny)
    assert not any(large)


def test_an_attack_says_its_conditions_and_is_repeated_exactly(
    cartl: Command, runs: Path, photos: Path
) -> None:
    options = ("--attack", "pgd", "--format", "jsonl")
    first = cartl("predict", "photos", *options)
    assert first.out == cartl("predict", "photos", *options).out
    found = lines(first)
    assert {(one["attack"], one["eps"], one["steps"]) for one in found} == {("pgd", 8 / 255, 20)}
    survived = sum(one["survives"] for one in found)
    said = f"{survived} of 12 answers survive pgd (ℓ∞, eps 8/255, 20 steps)"
    assert said in first.err
    table = cartl("predict", "photos", "--attack", "pgd")
    assert said in " ".join(table.out.split())
    backwards = cartl("predict", *reversed(files(photos)), *options)
    alone = {Path(one["file"]).relative_to(photos): one["survives"] for one in lines(backwards)}
    assert alone == {Path(one["file"]).relative_to("photos"): one["survives"] for one in found}
    nothing = lines(cartl("predict", "photos", *options, "--eps", 1e-9))
    assert all(one["survives"] for one in nothing)


# Streams


def test_a_reader_who_leaves_ends_the_work(
    cartl: Command, runs: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def counting(*_: Any) -> Any:
        nonlocal asked
        out: Any = sys.stdout
        while asked < 5:
            asked += 1
            out.dropped = True
            yield [Answer("a.png", None, (("disk", 1.0),), None)]

    monkeypatch.setattr("cartl_cli.core.predictions.answers.answers", counting)
    assert cartl("predict", "photos", "--format", "csv").code == 0
    assert asked == 1


def test_how_many_is_known_unless_standard_input_tells(photos: Path) -> None:
    with named_images([str(photos)], []) as (total, images):
        assert total == 12 == len([*images])
    with named_images([str(photos / "bar"), "-"], [f"{photos}/disk/0.png"]) as (total, images):
        assert total is None
        assert len([*images]) == 4


def test_mistakes_alone_are_shown_and_all_are_counted(
    cartl: Command, runs: Path, photos: Path
) -> None:
    everything = lines(cartl("predict", "photos", "--format", "jsonl"))
    wrong = [one for one in everything if one["label"] not in (None, one["answer"])]
    assert 0 < len(wrong) < len(everything)
    shown = cartl("predict", "photos", "--format", "jsonl", "--mistakes")
    assert lines(shown) == wrong
    assert "n = 9 images" in " ".join(shown.err.split())
    assert f"source: {len(wrong)} mistakes" in cartl("predict", "photos", "--mistakes").out


def test_mistakes_that_nobody_can_know_of_are_refused(
    cartl: Command, runs: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "disk", tmp_path / "unsorted")
    done = cartl("predict", "unsorted", "--mistakes")
    assert (done.code, done.out) == (1, "")
    assert "--mistakes: no image is in a folder named like a class of the run" in done.err


def test_a_folder_within_that_of_a_class_belongs_to_it(
    cartl: Command, runs: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "disk", tmp_path / "bar" / "disk" / "night")
    within = {one["label"] for one in lines(cartl("predict", "bar", "--format", "jsonl"))}
    assert within == {"disk"}  # the innermost that is a class
    named = cartl("predict", "bar/disk/night", "--format", "jsonl")
    assert {one["label"] for one in lines(named)} == {None}  # nothing above what was named


def test_an_accuracy_on_training_images_is_told(
    cartl: Command, runs: Path, image_folder: ImageFolder, tmp_path: Path
) -> None:
    own = image_folder(name="own")
    cartl("transfer", "--source", "source", "--dataset", own, "--epochs", 1, "--name", "mine")
    warned = "of these images lie where run mine found its training images"
    assert f"warning: 8 {warned}" in cartl("predict", "mine", own).err
    assert f"warning: 8 {warned}" in cartl("predict", "mine", own / "train").err
    assert "training images" not in cartl("predict", "mine", own / "test").err
    shutil.copytree(own / "train", tmp_path / "copy")
    assert "training images" not in cartl("predict", "mine", "copy").err
