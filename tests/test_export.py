"""What ``cartl export`` writes answers as the model does, without cartl, and says what is known."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import ExifTags, Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor

from cartl_cli import load_model
from cartl_cli.app import main
from cartl_cli.core.data.decoding import decode_image
from cartl_cli.core.errors import CartlError
from cartl_cli.core.evaluation.confusion import confusions
from cartl_cli.core.exports import graphs
from cartl_cli.core.exports.card import model_card
from cartl_cli.core.exports.subject import Subject, read_subject
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs.reader import read_run
from tests.conftest import TINY_TRANSFER, Command

huggingface_hub = pytest.importorskip("huggingface_hub")  # comes with timm
onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[1]
TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6  # to be shown turned by a quarter
FORMATS = {"torch": ".pt2", "onnx": ".onnx", "hub": "-hub"}
EXPORTS = [
    ("source", "torch"),
    *(("target", form) for form in FORMATS),
    ("natural", "onnx"),
    ("imported", "hub"),
]
ATTACK = "attack target --attack pgd,square --pgd-steps 2 --queries 5 --limit 30 --eps 2/255,8/255"
IMPORT = (
    "import runs/source/model.safetensors --arch wrn-10-1 --classes disk,square,bar --name imported"
)


@pytest.fixture(scope="module")
def place(runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs source, target (NEFT), natural (a target without it), imported and
    attacked, and ``EXPORTS`` of them.
    """
    folder = tmp_path_factory.mktemp("exported")
    for name in ("source", "target"):  # and no attack of other tests
        shutil.copytree(runs_dir / name, folder / "runs" / name)
    lines = [
        [*IMPORT.split(), "--origin", "a | friend", "--licence", "CC 4: ask", "--threat", "l2"],
        [*ATTACK.split(), "--checks", "fast", "--name", "attacked"],
        ["transfer", "--source", "source", *TINY_TRANSFER.split(), "--name", "natural"],
        *(["export", run, "--format", form] for run, form in EXPORTS),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for line in lines:
            patch.setattr(sys, "argv", ["cartl", *line])
            with pytest.raises(SystemExit) as exit_:
                main()
            assert exit_.value.code == 0
    return folder


def answers(path: Path) -> Callable[[Tensor], Tensor]:
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path)
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    program = torch.export.load(path / "model.pt2" if path.is_dir() else path)
    module: Callable[[Tensor], Tensor] = program.module()
    return module


def metadata(path: Path) -> Any:
    """What a file says of itself."""
    if path.suffix == ".onnx":
        properties = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        return {name: json.loads(text) for name, text in properties.items()}
    if path.is_dir():
        return json.loads((path / "config.json").read_text())
    extra = {"cartl.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["cartl.json"])


@pytest.mark.parametrize(("run", "form"), EXPORTS)
def test_every_form_gives_the_logits_of_the_model(place: Path, run: str, form: str) -> None:
    model, exported = load_model(place / "runs" / run), answers(place / (run + FORMATS[form]))
    for count in (1, 2, 5):
        images = torch.rand(count, 3, 32, 32)
        logits = exported(images)
        assert logits.shape == (count, 3)
        torch.testing.assert_close(logits, model(images).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("run", "form"), EXPORTS)
def test_what_a_file_says_of_itself_is_what_the_run_knows(place: Path, run: str, form: str) -> None:
    found = metadata(place / (run + FORMATS[form]))
    manifest = json.loads((place / "runs" / run / "manifest.json").read_text())
    weights = load_file(place / "runs" / run / "model.safetensors")
    assert found["run"] == run
    assert found["sha256"] == manifest["weights"]["sha256"]
    assert found["architecture"] == "wrn-10-1"
    assert found["classes"] == manifest["model"]["classes"]
    assert found["input"]["shape"] == ["batch", 3, 32, 32]
    assert found["preprocessing"].items() >= manifest["model"]["preprocessing"].items()
    assert len(found["preprocessing"]["steps"]) == 6
    assert found["normalization"]["mean"] == weights["normalize.mean"].flatten().tolist()
    assert found["normalization"]["std"] == weights["normalize.std"].flatten().tolist()
    results = manifest["results"]
    if run == "imported":
        assert found["measured"] is None
    else:
        names = ("n", "clean_accuracy", *(("robust_accuracy",) if run == "source" else ()))
        assert {name: found["measured"][name] for name in names} == {n: results[n] for n in names}
    if run == "source":
        assert found["measured"]["eps"] == 8 / 255
    if run != "target":
        assert found["attack"] is None
        return
    attack = json.loads((place / "runs" / "attacked" / "manifest.json").read_text())["results"]
    assert found["attack"]["attacks"] == ["pgd", "square"]
    assert found["attack"]["norm"] == "linf"
    assert (found["attack"]["n"], found["attack"]["part"]) == (30, True)
    for line, measured in zip(found["attack"]["by_eps"], attack["by_eps"], strict=True):
        assert line == {name: measured[name] for name in ("eps", "robust_accuracy", "interval")}


def test_the_batch_of_a_graph_has_its_name(place: Path) -> None:
    session = onnxruntime.InferenceSession(place / "target.onnx")
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, 32, 32])
    assert (logits.name, logits.shape) == ("logits", ["batch", 3])


def test_no_file_names_this_machine(place: Path) -> None:
    made = [place / (run + FORMATS[form]) for run, form in EXPORTS]
    files = [path for one in made for path in (one, *one.glob("*"))]
    for path in files:
        if path.is_file():
            data = path.read_bytes()
            assert not [part for part in (ROOT, place, sys.prefix) if f"{part}".encode() in data]


# Without cartl


def without_cartl(code: str, folder: Path) -> Tensor:
    """The ``logits`` that a piece of code ends with, in a process that has no cartl."""
    begin = "import sys; sys.modules['cartl_cli'] = None\n"
    end = "\ntorch_ = __import__('torch'); torch_.save(torch_.as_tensor(logits), 'logits.pt')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", begin + code + end],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    found: Tensor = torch.load(folder / "logits.pt", weights_only=True)
    return found


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_examples_of_the_page_work_without_cartl(place: Path, number: int) -> None:
    """From a photograph to logits, which are those that cartl gives."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 70, 3), generator=draws, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(place / "photo.jpg", exif=TURNED)
    reading, *examples = blocks(ROOT / "docs" / "export.md")
    assert len(examples) == 3
    found = without_cartl(reading + examples[number], place)
    run = read_run(place / "runs" / "target")
    data = (place / "photo.jpg").read_bytes()
    image, _ = decode_image(data, "photo.jpg", run.manifest.model.preprocessing)
    expected = load_model(run.folder)(image[None] / 255).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_example_of_a_card_works_without_cartl(place: Path) -> None:
    (example,) = blocks(place / "target-hub" / "README.md")
    assert without_cartl(example, place / "target-hub").shape == (1, 3)
    (place / "target-hub" / "logits.pt").unlink()


# The folder for hubs


def test_a_hub_folder_has_the_weights_of_the_run(place: Path) -> None:
    for run in ("target", "imported"):
        folder = place / f"{run}-hub"
        names = ["README.md", "config.json", "model.pt2", "model.safetensors"]
        assert sorted(path.name for path in folder.iterdir()) == names
        weights = (place / "runs" / run / "model.safetensors").read_bytes()
        assert (folder / "model.safetensors").read_bytes() == weights
    assert not [
        name for name in load_file(place / "target-hub" / "model.safetensors") if "param" in name
    ]


def percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f} %"


def test_a_card_has_the_figures_of_the_attack(place: Path) -> None:
    card = huggingface_hub.ModelCard.load(place / "target-hub" / "README.md")
    attack = json.loads((place / "runs" / "attacked" / "manifest.json").read_text())["results"]
    figures = [attack["clean_accuracy"], *(one["robust_accuracy"] for one in attack["by_eps"])]
    intervals = [attack["clean_interval"], *(one["interval"] for one in attack["by_eps"])]
    values = [result.metric_value for result in card.data.eval_results]
    assert values == pytest.approx(figures, abs=5e-5)
    assert card.data.eval_results[0].dataset_name == "shapes-target"
    rows = [
        line.strip("| ").split(" | ") for line in card.text.splitlines() if line.endswith("| 30 |")
    ]
    for row, figure, (low, high) in zip(rows, figures, intervals, strict=True):
        assert row[-3].strip("≤ ") == percent(figure).strip()
        assert row[-2:] == [f"{percent(low)} to {percent(high)}", "30"]
    assert [row[1:4] for row in rows[1:]] == [
        ["pgd + square", "ℓ∞", eps] for eps in ("2/255", "8/255")
    ]
    assert "Images: 30 test images of shapes-target, drawn from all of them." in card.text
    clean, *_, left = confusions(read_run(place / "runs" / "attacked"))
    means = [percent(one.balanced_accuracy) for one in (clean, left)]
    assert f"Mean of the classes: {means[0]} clean, ≤ {means[1]} at the largest eps." in card.text
    worst = [f"{one.worst} ({percent(one.accuracy(one.worst))})" for one in (clean, left)]
    assert f"Worst class: {worst[0]} clean, {worst[1]} at the largest eps." in card.text
    assert "(steps: 2, queries: 5, restarts: 1)" in card.text
    untried = ", ".join(name for name in EVALUATION_ATTACKS if name not in ("pgd", "square"))
    assert f"These attacks were not run: {untried}." in card.text


def test_a_card_tells_how_the_model_and_its_source_were_made(place: Path) -> None:
    text = (place / "target-hub" / "README.md").read_text()
    assert "It is the source model source, the last 3 blocks fine-tuned on clean images" in text
    assert "(method: CARTL)" in text
    assert "trained on 180 images of shapes-target" in text
    assert "### Its source model, source" in text
    assert "| fdm_lambda | 0.005 | Weight of feature distance minimization" in text
    assert "| neft_beta | 0.4 | NEFT: spectral norm of every tuned weight |" in text
    assert text.count("| seed | 0 |") == 2
    for idle in ("ema", "awp_gamma", "milestones", "warmup_epochs"):
        assert f"| {idle} |" not in text  # it was off, or of a schedule that was not taken


def test_a_card_of_an_imported_model_tells_what_is_claimed(place: Path) -> None:
    card = huggingface_hub.ModelCard.load(place / "imported-hub" / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "CC 4: ask")
    assert "It was imported from the file model.safetensors" in card.text
    assert re.search(r"\(sha256 `[0-9a-f]{64}`\)", card.text)
    assert "| setting |" not in card.text
    assert "Origin: a \\| friend." in card.text
    assert "claimed to resist l2; this is a claim, not a measurement" in card.text
    assert "**`cartl attack` was not run on this model.**" in card.text
    assert "It was not measured on clean images here either." in card.text


def test_a_card_without_an_attack_says_so(place: Path) -> None:
    card = huggingface_hub.ModelCard(card_of(place / "runs" / "source"))
    assert "**`cartl attack` was not run on this model.**" in card.text
    assert "by a quick attack that was not checked" in card.text
    results = read_run(place / "runs" / "source").results
    values = [result.metric_value for result in card.data.eval_results]
    assert values == pytest.approx([results.clean_accuracy, results.robust_accuracy], abs=5e-5)


@pytest.fixture
def scene(place: Path, tmp_path: Path) -> Path:
    """A copy of the runs, to change."""
    return Path(shutil.copytree(place / "runs", tmp_path / "runs"))


def edited(folder: Path, change: Callable[[Any], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["seal"] = None  # as in a run of an older version
    path.write_text(json.dumps(manifest))


def card_of(folder: Path) -> str:
    return model_card(read_subject(read_run(folder)))


@pytest.mark.parametrize(
    ("check", "said", "figures"),
    [
        ("K5", "**This attack failed a check: a stronger attack was found", 3),
        ("V3", "**This attack is INVALID: it failed a check that voids its figures.** Do not", 1),
    ],
)
def test_a_card_says_which_check_an_attack_failed(
    scene: Path, check: str, said: str, figures: int
) -> None:
    words = "A planted <flaw> was found."

    def fail(manifest: Any) -> None:
        manifest["results"]["trust"] = [
            {"id": check, "verdict": "fail", "value": None, "text": words},
            {"id": "K1", "verdict": "pass", "value": 1.0, "text": "Unsaid."},
        ]

    edited(scene / "attacked", fail)
    text = card_of(scene / "target")
    assert said in text
    assert f"- Check {check} failed: A planted \\<flaw\\> was found." in text
    assert "Unsaid" not in text
    data = huggingface_hub.ModelCard(text).data
    assert len(data.eval_results) == figures  # void ones are in no table of results


def test_a_card_says_that_an_attack_was_not_checked(scene: Path) -> None:
    edited(scene / "attacked", lambda manifest: manifest["results"].update(trust=[]))
    said = "**This attack was not checked (--checks off).** Nobody knows whether it worked."
    assert said in card_of(scene / "target")


def test_a_card_has_the_newest_attack_on_the_same_weights(scene: Path) -> None:
    shutil.copytree(scene / "attacked", scene / "later")
    edited(scene / "later", lambda manifest: manifest.update(number=90))
    shutil.copytree(scene / "attacked", scene / "of-others")
    edited(
        scene / "of-others",
        lambda manifest: manifest.update(
            number=91, source={**manifest["source"], "sha256": "0" * 64}
        ),
    )
    shutil.copytree(scene / "attacked", scene / "unfinished")
    edited(scene / "unfinished", lambda manifest: manifest.update(number=92, status="interrupted"))
    text = card_of(scene / "target")
    assert "The attack is the run later (" in text
    assert "One attack is shown. Others on the same weights: attacked." in text
    assert "of-others" not in text
    assert "unfinished" not in text


@pytest.mark.parametrize(
    "weaker",
    [
        {"results": {"n": 20}},
        {"data": {"measured": "train"}, "results": {"n": 180}},
        {
            "results": {
                "n": 200,
                "trust": [{"id": "K5", "verdict": "fail", "value": None, "text": "…"}],
            }
        },
    ],
    ids=["fewer images", "training images", "a failed check"],
)
def test_a_newer_attack_that_tells_less_takes_no_attacks_place(
    scene: Path, weaker: dict[str, Any]
) -> None:
    shutil.copytree(scene / "attacked", scene / "later")

    def weaken(manifest: Any) -> None:
        manifest["number"] = 90
        manifest["results"]["trust"] = []
        for part, content in weaker.items():
            manifest[part].update(content)

    edited(scene / "attacked", lambda manifest: manifest["results"].update(trust=[]))
    edited(scene / "later", weaken)
    text = card_of(scene / "target")
    assert "The attack is the run attacked (" in text
    assert "Others on the same weights: later." in text


def test_a_card_cites_no_figures_of_training_images(scene: Path) -> None:
    edited(scene / "attacked", lambda manifest: manifest["data"].update(measured="train"))
    text = card_of(scene / "target")
    target = read_run(scene / "target")
    (cited,) = huggingface_hub.ModelCard(text).data.eval_results
    assert (cited.dataset_split, cited.metric_name) == (
        target.manifest.data.measured,
        f"clean accuracy (n = {target.seen.n})",
    )
    assert "When it was made, it was measured on clean images" in text


# The command


def test_the_command_says_what_it_made_and_how_to_load_it(cartl: Command, scene: Path) -> None:
    done = cartl("export", "target", "--json")
    path = scene.parent / "target.pt2"
    assert json.loads(done.out) == {
        "run": "target",
        "format": "torch",
        "path": "target.pt2",
        "bytes": path.stat().st_size,
        "load": "model = torch.export.load('target.pt2').module()",
    }
    again = cartl("export", "target", "--out", "other.pt2")
    assert re.fullmatch(
        r"other.pt2  \d+ bytes \(0\.\d MB\)\nload it with: model = torch.export.load\('other.pt2'\)"
        r".module\(\)\n",
        again.out,
    )


def test_a_run_given_as_the_folder_one_is_in_has_its_name(
    cartl: Command, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scene / "target")
    done = cartl("export", ".", "--json")
    assert json.loads(done.out)["path"] == "target.pt2"
    assert (scene / "target" / "target.pt2").is_file()
    Path("runs").mkdir()  # as an attack from in here leaves it
    done = cartl("export", ".", "--out", "again.pt2")
    assert done.code == 0, done.err
    assert "--out ../target-page" in done.err or "next: cartl attack" in done.err


def test_what_cannot_be_exported_is_refused(cartl: Command, scene: Path) -> None:
    (scene.parent / "taken").mkdir()
    weights = scene / "source" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    edited(scene / "imported", lambda manifest: manifest.update(status="interrupted"))
    shutil.copytree(scene / "target", scene / "short")
    short = scene / "short" / "model.safetensors"
    short.write_bytes(short.read_bytes()[:-100])
    for arguments, code, line in (
        ("source", 1, "checkpoint changed since it was written (sha256 differs)"),
        ("imported", 1, "run 'imported' is not complete: interrupted"),
        ("short", 1, "checkpoint is truncated"),
        ("attacked", 2, "'attacked' is an attack result; its run is 'target'"),
        ("nothing", 2, "no such run: 'nothing'"),
        ("target --out taken", 2, "--out: 'taken' exists; give another --out"),
        ("target --out no/where.pt2", 2, "--out: no folder 'no'; make it first"),
        ("target --format tflite", 2, "--format"),
        ("target --format onnx --out a.pt2", 2, "--out: .pt2 is of --format torch; give another"),
    ):
        done = cartl("export", *arguments.split())
        assert done.code == code, arguments
        assert line in done.err
        assert done.err.count("\n") == 1
    left = sorted(path.name for path in scene.parent.iterdir())
    assert [name for name in left if name not in ("cache", "runs")] == ["taken"]


@pytest.mark.parametrize("whose", ["target", "attacked"])
def test_what_was_edited_after_it_was_finished_is_not_exported(
    cartl: Command, scene: Path, whose: str
) -> None:
    path = scene / whose / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest, sort_keys=True))  # laid out otherwise: still the same
    assert cartl("export", "target", "--out", "first.pt2").code == 0
    manifest["data"]["name"] = "much-better-data"
    path.write_text(json.dumps(manifest))
    done = cartl("export", "target", "--out", "second.pt2")
    assert done.code == 1
    assert "manifest was edited after the run had finished" in done.err
    assert whose in done.err
    assert not (scene.parent / "second.pt2").exists()


def test_a_missing_package_is_named(
    cartl: Command, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "onnxscript" else find_spec(name)
    )
    done = cartl("export", "target", "--format", "onnx")
    assert (done.code, done.out) == (2, "")
    line = "cartl: --format: onnx needs the package onnxscript; pip install 'cartl[onnx]'"
    assert done.err.replace("error: ", "") == f"{line}\n"


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_a_graph_that_answers_otherwise_is_not_written(
    cartl: Command, scene: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "WORST", -1.0)
    done = cartl("export", "target", "--format", form)
    assert done.code == 1
    assert re.search(r"not written: its logits differ from the model's by \d\.\de[+-]\d+", done.err)
    assert not list(scene.parent.glob("target*"))


def test_the_largest_difference_is_told(place: Path) -> None:
    subject: Subject = read_subject(read_run(place / "runs" / "target"))
    graphs.check(subject, lambda images: subject.model(images) * (1 + 0.5e-4))
    with pytest.raises(CartlError, match=r"by 2\.0e-04 of the largest"):
        graphs.check(subject, lambda images: subject.model(images) * (1 + 2e-4))
    with pytest.raises(CartlError, match="by inf of"):
        graphs.check(subject, lambda images: subject.model(images) * torch.nan)
    alone = subject.model
    with pytest.raises(CartlError):  # a batch of three that is taken for one
        graphs.check(subject, lambda images: alone(images[:1]).expand(len(images), -1))


@pytest.mark.parametrize("form", ["torch", "hub"])
def test_a_disk_that_refuses_leaves_nothing(
    cartl: Command, scene: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(os, "fsync", refuse)
    done = cartl("export", "target", "--format", form)
    assert done.code == 1
    assert "Read-only file system" in done.err
    assert not list(scene.parent.glob("target*"))


def test_a_network_of_ones_own_that_decides_by_its_input_is_refused(
    cartl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    subject = read_subject(read_run(place / "runs" / "target"))
    forward = type(subject.model).forward
    monkeypatch.setattr(
        type(subject.model),
        "forward",
        lambda self, x: forward(self, x) if x.sum() > 0 else forward(self, -x),
    )
    with pytest.raises(CartlError, match=r"torch\.export cannot make a graph of wrn-10-1: "):
        graphs.traced(subject)


# Real photographs

TWISTS: dict[str, Callable[[Image.Image, Path], None]] = {
    "exif": lambda image, path: image.transpose(Image.Transpose.ROTATE_90).save(
        path.with_suffix(".jpg"), exif=TURNED, quality=95
    ),
    "png": lambda image, path: image.save(path.with_suffix(".png")),
    "gray": lambda image, path: image.convert("L").save(path.with_suffix(".jpg"), quality=95),
    "double": lambda image, path: image.resize((2 * image.width, 2 * image.height)).save(
        path.with_suffix(".jpg"), quality=95
    ),
    "huge": lambda image, path: image.resize((5 * image.width, 5 * image.height)).save(
        path.with_suffix(".jpg"), quality=95
    ),
}
"""What may happen to a photograph on its way; ``exif`` is shown as the photograph is."""

ANSWERING = """
import onnxruntime, sys, torch
from pathlib import Path

paths = Path("paths.txt").read_text().splitlines()
extra = {"cartl.json": ""}
program = torch.export.load("photos.pt2", extra_files=extra).module()
session = onnxruntime.InferenceSession("photos.onnx")
hub = torch.export.load("photos-hub/model.pt2").module()
properties = session.get_modelmeta().custom_metadata_map
abouts = [
    json.loads(extra["cartl.json"]),
    {name: json.loads(text) for name, text in properties.items()},
    json.loads(Path("photos-hub/config.json").read_text()),
]
assert all(about["classes"] == ["ants", "bees"] for about in abouts)
answering = [
    lambda pixels: program(torch.from_numpy(pixels)),
    lambda pixels: torch.from_numpy(session.run(None, {"images": pixels})[0]),
    lambda pixels: hub(torch.from_numpy(pixels)),
]
with torch.no_grad():
    logits = torch.stack(
        [
            torch.cat([answer(pixels_for(path, about)) for path in paths])
            for answer, about in zip(answering, abouts, strict=True)
        ]
    )
"""


@pytest.mark.real_data
@pytest.mark.skipif("CARTL_TEST_DATA" not in os.environ, reason="needs a folder of real images")
def test_all_forms_answer_as_predict_does_on_photographs(cartl: Command, tmp_path: Path) -> None:
    """A torchvision network at 224 pixels, imported and transferred; three photographs of each
    class, and each turned by EXIF, as PNG, gray, and larger.
    """
    held_out = photographs(tmp_path)
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "random.pt")
    lines = [
        "import random.pt --arch torchvision:resnet18 --name random "
        "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
        "transfer --source random --dataset few --k 1 --epochs 1 --lr 0.01 --name photos",
        *(f"export photos --format {form}" for form in FORMATS),
    ]
    for line in lines:
        done = cartl(*line.split())
        assert done.code == 0, done.err
    for kind, twist in TWISTS.items():
        (tmp_path / kind).mkdir()
        for path in held_out:
            name = f"{path.parent.name}-{path.name}"
            with Image.open(path) as image:
                twist(ImageOps.exif_transpose(image).convert("RGB"), tmp_path / kind / name)
    done = cartl("predict", "photos", "few/val", *TWISTS, "--format", "jsonl", "--top", 2)
    assert done.code == 0, done.err
    told = [json.loads(line) for line in done.out.splitlines()]
    assert len(told) == len(held_out) * (1 + len(TWISTS))
    (tmp_path / "paths.txt").write_text("\n".join(line["file"] for line in told))
    (reading,) = blocks(ROOT / "docs" / "export.md")[:1]
    logits = without_cartl(reading + ANSWERING, tmp_path)
    classes = ("ants", "bees")
    for number, line in enumerate(told):
        expected = {one["class"]: one["probability"] for one in line["top"]}
        for form in logits:
            found = form[number].double().softmax(0).tolist()
            assert found == pytest.approx([expected[name] for name in classes], abs=1e-5), line
            assert classes[form[number].argmax()] == line["answer"]


def photographs(folder: Path) -> list[Path]:
    """A few photographs to train on and to measure, as ``few/``; the paths of the latter."""
    found = []
    with zipfile.ZipFile(Path(os.environ["CARTL_TEST_DATA"]) / "photos.zip") as archive:
        for split, count in (("train", 6), ("val", 3)):
            for name in ("ants", "bees"):
                inside = f"/{split}/{name}/"
                members = [one for one in archive.namelist() if inside in one and one[-1] != "/"]
                for member in members[:count]:
                    path = folder / "few" / split / name / Path(member).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(member))
                    found.append(path)
    return [path for path in found if path.parts[-3] == "val"]
