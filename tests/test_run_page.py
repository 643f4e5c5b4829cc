"""``cartl report RUN --format html``: the page of one model, and what a browser makes of it."""

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cartl_cli.core.config.values import PACKAGED
from cartl_cli.core.runs.command_line import command_of
from cartl_cli.core.runs.reader import read_run
from tests.conftest import Command
from tests.crashes import call
from tests.pages import HOSTILE, parsed
from tests.reported import Runs

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
ATTACK = "--attack pgd,pgd-margin --pgd-steps 2 --eps 2/255,8/255 --checks fast --save-adversarial"
SECTIONS = ["What it is", "Accuracy", "Training", "Attacks", "Commands"]
PARTS = [
    "What each attack added",
    "Accuracy over eps",
    "Class by class at eps 8/255",
    "Adversarial images",
    "Checks",
]


@pytest.fixture(scope="module")
def place(runs_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose ``runs`` are a source, a target and an attack on it, and its ``page.html``."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("source", "target"):
        shutil.copytree(runs_dir / name, folder / "runs" / name)
    for arguments in (
        f"attack target {ATTACK} --name attack",
        "report target --format html --out page",
    ):
        code, said = call(arguments.split(), folder)
        assert code == 0, said
    return folder


@pytest.fixture(scope="module")
def page(place: Path) -> str:
    return (place / "page" / "report.html").read_text()


def titles(page: str, level: int) -> list[str]:
    return [html.unescape(title) for title in re.findall(f"<h{level}>(.*?)</h{level}>", page)]


def rows(page: str, title: str) -> list[list[str]]:
    """The cells of the table under a title, without small print."""
    table = re.split(rf"<h\d>{re.escape(title)}</h\d>", page)[1].split("</table>")[0]
    lines = table.split("<tbody>")[1].split("</tr>")[:-1]
    return [[html.unescape(c) for c in re.findall(r"<td[^>]*>([^<]*)", line)] for line in lines]


def test_every_section_is_there(page: str) -> None:
    assert parsed(page).open == []
    assert titles(page, 1) == ["target"]
    assert titles(page, 2) == SECTIONS
    assert titles(page, 3) == ["attack"]
    assert titles(page, 4) == PARTS


def test_it_needs_nothing_from_elsewhere(page: str) -> None:
    found = parsed(page)
    assert "default-src 'none'" in page
    assert all(re.match(r"data:image/(png|svg\+xml);base64,", one) for one in found.addresses)
    assert not {"link", "iframe", "object", "form", "base"} & set(found.tags)
    assert found.tags.count("script") == 1
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|http", style)


def test_what_it_says_is_what_the_runs_say(page: str, place: Path) -> None:
    source, target, attack = (read_run(place / "runs" / n) for n in ("source", "target", "attack"))
    text = html.unescape(page)
    results, manifest = attack.attack_results, target.manifest
    assert manifest.weights is not None
    for fact in (
        f"sha256 {manifest.weights.sha256}",
        "the last 3 blocks of a source model fine-tuned",
        "wrn-10-1, 3 classes",
        "ring, frame, grid",
        "32 pixels, squash, bilinear",
        "Divide the pixels by 255",
    ):
        assert fact in text
    for run in (source, target, attack):
        assert command_of(run) in text
    accuracies = [
        ("clean", "–", target.results.clean_accuracy, "when it was made"),
        ("clean", "–", results.clean_accuracy, "attack"),
        *(
            ("pgd + pgd-margin, ℓ∞", eps, found.robust_accuracy, "attack")
            for eps, found in zip(("2/255", "8/255"), results.by_eps, strict=True)
        ),
    ]
    shown = rows(page, "Accuracy")
    assert [(line[0], line[1], line[2], line[5]) for line in shown] == [
        (name, eps, f"{'' if eps == '–' else '≤ '}{100 * accuracy:.1f}", by)
        for name, eps, accuracy, by in accuracies
    ]
    checks = {check.id: check.verdict for check in results.trust}
    assert {line[0]: line[1] for line in rows(page, "Checks")} == checks
    order = [line[1] for line in rows(page, "Checks")]
    assert order == sorted(order, key=["fail", "warn", "pass"].index)


def test_each_class_is_counted_from_the_verdicts(page: str, place: Path) -> None:
    held = load_file(place / "runs" / "attack" / "outcomes.safetensors")
    stands = held["clean"] & ~(held["fell_at"] >= 0).any(1).any(0)
    labels = load_file(place / "runs" / "attack" / "adversarial.safetensors")["labels"]
    found = rows(page, "Class by class at eps 8/255")
    assert [line[0] for line in found] == ["ring", "frame", "grid"]
    for label, (_, n, clean, left, *_) in enumerate(found):
        ours = labels == label
        assert int(n) == int(ours.sum())
        for shown, verdicts in ((clean, held["clean"]), (left, stands)):
            assert shown == f"{100 * verdicts[ours].float().mean().item():.1f}"


def test_the_grid_shows_images_as_they_were_saved(page: str, place: Path) -> None:
    held = load_file(place / "runs" / "attack" / "adversarial.safetensors")
    number = {int(index): row for row, index in enumerate(held["indices"])}
    shown = re.findall(r'alt="image (\d+), adversarial" src="data:image/png;base64,([^"]+)"', page)
    assert len(shown) == 8
    for index, content in shown:
        image = np.array(Image.open(io.BytesIO(base64.b64decode(content))))
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        wanted = (255 * held["adversarial"][number[int(index)]]).round()
        assert torch.equal(pixels.float(), wanted)
    assert len(re.findall('class="(?:held|fell)"', page)) == 16


def test_a_model_that_was_not_attacked_says_so(cartl: Command, place: Path) -> None:
    shutil.copytree(place / "runs" / "source", "runs/alone")
    page = cartl("report", "alone", "--format", "html").out
    assert titles(page, 2) == SECTIONS
    assert "nobody knows how robust" in page
    assert "cartl attack alone" in page
    assert len(parsed(page).addresses) == 1  # the curves of its training


def test_an_imported_model_has_a_page(cartl: Command) -> None:
    shutil.copytree(ROOT / "tests" / "data" / "schema-5", "runs")
    page = cartl("report", "imported", "--format", "html").out
    assert titles(page, 2) == SECTIONS
    assert "It was trained elsewhere" in page
    page = cartl("report", "target", "--format", "html").out
    assert titles(page, 3) == ["attacked"]
    assert "did not keep its answers" in page


def test_the_page_of_what_was_imported_without_images_keeps_apart_what_is_claimed(
    cartl: Command,
) -> None:
    assert cartl("import", PACKAGED, "--name", "theirs").code == 0
    page = html.unescape(cartl("report", "theirs", "--format", "html").out)
    assert "77.6 % clean, 44.3 % under pgd-20" in page
    assert "Nothing was measured here." in page
    assert "what their maker found was not checked" in page
    assert "nobody knows" not in page
    assert "cartl attack theirs --dataset FOLDER" in page


def test_images_that_cannot_be_shown_are_told(cartl: Command, place: Path) -> None:
    shutil.copytree(place / "runs", "runs")
    Path("runs/attack/adversarial.safetensors").unlink()
    done = cartl("report", "target", "--format", "html")
    assert done.code == 0
    assert "They cannot be shown: " in done.out
    assert titles(done.out, 4) == PARTS


@pytest.mark.parametrize("row", HOSTILE)
def test_z16_z18_z19_z20_z21_names_are_text(cartl: Command, tmp_path: Path, row: str) -> None:
    runs, name = Runs(tmp_path / "runs"), HOSTILE[row]
    source = runs.pretrain("source", dataset=name)
    target = runs.transfer(source, "target", dataset=f"{name}!")
    runs.attack(target, name.replace("/", "-"), 900, 300, 350)
    runs.edit("target", "model", "classes", value=[name, "b", "c", "d"])
    page = cartl("report", "target", "--format", "html").out
    found = parsed(page)
    assert found.tags.count("script") == 1
    assert not {"b", "a", "em"} & set(found.tags)
    assert not {"\x1b", "\u202e", "\x07"} & set(page)
    shown = name.encode("unicode_escape").decode() if row == "z20" else name
    assert any(shown in text for text in found.texts)


def test_an_attack_that_failed_an_invariant_has_no_number(cartl: Command, tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    target = runs.transfer(runs.pretrain("source"), "target")
    runs.attack(target, "attack", 900, 300)
    runs.edit(
        "attack",
        *("results", "trust"),
        value=[{"id": "V3", "verdict": "fail", "value": None, "text": "It left the ball."}],
    )
    page = cartl("report", "target", "--format", "html").out
    assert [line[2] for line in rows(page, "Accuracy")][-1] == "INVALID"
    assert "This attack is INVALID" in page
    assert "It left the ball." in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("target", "is a model; for its page give --format html --out FOLDER"),
        ("target --format html,csv --out x", "and nothing more; tables are made of attacks"),
        ("target --format html --baseline vanilla", "those on it: attack"),
        ("target --format html --plot k --out x", "and nothing more"),
    ],
)
def test_what_does_not_go_with_a_model_is_refused(
    cartl: Command, tmp_path: Path, arguments: str, says: str
) -> None:
    runs = Runs(tmp_path / "runs")
    runs.attack(runs.transfer(runs.pretrain("source"), "target"), "attack", 900, 300)
    done = cartl("report", *arguments.split())
    assert done.code == 2
    assert says in done.err
    assert done.out == ""
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "damaged"),
        ('{"epoch": 1}', "has no epoch and loss"),
        ('{"epoch": 1, "loss": NaN}', "no number"),
    ],
)
def test_a_damaged_record_of_epochs_is_refused(
    cartl: Command, tmp_path: Path, content: str, says: str
) -> None:
    runs = Runs(tmp_path / "runs")
    (runs.pretrain("source").folder / "metrics.jsonl").write_text(content)
    done = cartl("report", "source", "--format", "html")
    assert (done.code, done.out) == (1, "")
    assert says in done.err


def test_an_unfinished_run_has_no_page(cartl: Command, tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    runs.pretrain("source")
    runs.edit("source", "status", value="interrupted")
    done = cartl("report", "source", "--format", "html")
    assert done.code == 1
    assert "go on with: cartl pretrain --resume" in done.err


def test_without_saved_images_no_torch_is_loaded(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    runs.attack(
        runs.transfer(runs.pretrain("source"), "target"),
        "attack",
        900,
        (500, 300),
        eps=[2 / 255, 8 / 255],
    )
    code = (
        "import sys\nsys.argv = ['cartl', 'report', 'target', '--format', 'html']\n"
        "from cartl_cli.app import main\ntry:\n    main()\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert titles(done.stdout, 2) == SECTIONS


def test_without_matplotlib_there_are_numbers(
    cartl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(tmp_path / "runs")
    line = {"epoch": 1, "step": 9, "loss": 2.5, "clean_accuracy": 0.125}
    (runs.pretrain("source").folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for name in ("run_plots", "attack_plots"):
        monkeypatch.delitem(sys.modules, f"cartl_cli.display.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = cartl("report", "source", "--format", "html").out
    assert "No curves without matplotlib" in page
    assert "12.5 %" in page
    assert parsed(page).addresses == []


# In a browser

PROBE = """<script>
for (const one of document.querySelectorAll("details")) one.open = true;
const inside = one => one.closest(".wide") !== null && !one.matches(".wide");
const sorted = [...document.querySelectorAll("table")].map(table => {
  const button = table.querySelector("th.right button") ?? table.querySelector("th button");
  const place = button.parentNode.cellIndex;
  const column = () => [...table.tBodies[0].rows].map(row => row.cells[place]).map(
    cell => cell.dataset.value ?? cell.textContent);
  button.click(); const up = column(); button.click(); return [up, column()];
});
onload = () => {
  const wide = [...document.querySelectorAll("body *")].filter(
    one => !inside(one) && one.getBoundingClientRect().right > innerWidth + 0.5);
  const found = {
    width: innerWidth, scrolls: document.documentElement.scrollWidth, sorted,
    wide: wide.map(one => one.outerHTML.slice(0, 200)),
    blank: [...document.images].filter(one => !one.naturalWidth).length,
    fetched: performance.getEntriesByType("resource").map(one => one.name).filter(
      name => !name.startsWith("data:")),
  };
  parent.postMessage(JSON.stringify(found), "*");
};
</script>"""
WINDOW = """<iframe src="looked-at.html" width="{width}" height="900" style="border: 0"></iframe>
<script>onmessage = event => {{
  document.body.append(Object.assign(document.createElement("pre"), {{
    id: "found", textContent: event.data}}));
}};</script>"""
"""No window of a browser is as narrow as a phone; a frame in one may be."""


def looked_at(page: str, width: int, folder: Path) -> dict[str, Any]:
    """What a headless Chromium finds of a page that is so many pixels wide."""
    assert CHROMIUM is not None
    (folder / "looked-at.html").write_text(page.replace("</body>", f"{PROBE}</body>"))
    (window := folder / "window.html").write_text(WINDOW.format(width=width))
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(
                f"--user-data-dir={folder / 'profile'}",
                "--window-size=1400,1000",
                "--virtual-time-budget=20000",
            ),
            window.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    shown: dict[str, Any] = json.loads(html.unescape(found[1]))
    return shown


def numbers(values: list[str]) -> list[float] | list[str]:
    """As numbers if all of them are."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return values


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_it_fits_sorts_and_fetches_nothing(
    page: str, tmp_path: Path, width: int
) -> None:
    found = looked_at(page, width, tmp_path)
    assert found["width"] == width
    assert found["scrolls"] <= width
    assert found["wide"] == []
    assert found["blank"] == 0
    assert found["fetched"] == []
    assert len(found["sorted"]) >= 6
    for up, down in found["sorted"]:
        assert numbers(up) == sorted(numbers(up))
        assert numbers(down) == sorted(numbers(up), reverse=True)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_in_a_browser_tables_alone_fit_too(cartl: Command, place: Path, tmp_path: Path) -> None:
    page = cartl("report", "--runs-dir", place / "runs", "--format", "html").out
    for width in (1280, 390):
        found = looked_at(page, width, tmp_path)
        assert found["scrolls"] <= found["width"] == width
        assert (found["wide"], found["blank"], found["fetched"]) == ([], 0, [])


def test_an_attack_in_another_folder_is_on_the_page(cartl: Command, runs_dir: Path) -> None:
    quick = ("--attack", "fgsm", "--limit", 8, "--checks", "off", "--name", "from-elsewhere")
    assert cartl("attack", runs_dir / "source", *quick).code == 0
    assert cartl("report", runs_dir / "source", "--format", "html", "--out", "page").code == 0
    assert "from-elsewhere" in Path("page/report.html").read_text()
