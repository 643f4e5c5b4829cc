import json
import math
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cartl_cli.core.config import AttackConfig
from cartl_cli.core.runs.manifest import Manifest, Run, SourceRecord
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.runs.results import (
    Added,
    AttackResults,
    BlockMoved,
    Check,
    Diagnosis,
    EpsResults,
    Moved,
)
from cartl_cli.display.attack_plots import (
    accuracy_over_eps,
    accuracy_over_steps,
    attack_plots,
    feature_distance,
    plain,
    style,
)
from tests.conftest import Command

EVERY = ("fgsm", "pgd", "feature", "apgd-ce", "pgd-margin", "apgd-t", "square")
PICTURES = {"accuracy-over-eps", "accuracy-over-steps", "feature-distance"}
CONFUSIONS = {"confusion-clean", "confusion-attacked"}


def finished(
    model: Manifest,
    name: str = "003-attack",
    eps: tuple[float, ...] = (2 / 255, 8 / 255),
    norm: str = "linf",
    trust: tuple[Check, ...] = (),
    source: bool = True,
) -> Run:
    """A made-up attack with every attack, on a model with two blocks."""

    def at(number: int) -> EpsResults:
        added = tuple(
            Added(
                attack=attack,
                attacked=10,
                fell=number,
                alone=0.6 - 0.2 * number if attack.startswith("pgd") else None,
                robust_accuracy=0.5 - 0.25 * number,
            )
            for attack in EVERY
        )
        return EpsResults(
            eps=eps[number],
            step_size=0.01,
            robust_accuracy=0.5 - 0.25 * number,
            interval=(0.4 - 0.25 * number, 0.6 - 0.25 * number),
            final_iterate_accuracy=None,
            added=added,
        )

    blocks = tuple(
        BlockMoved(
            block=block,
            tuned=block == 2,
            target=Moved(distance=0.1 * block, growth=None if block == 0 else 0.5),
            source=Moved(distance=None if block == 1 else 0.3, growth=None) if source else None,
        )
        for block in range(3)
    )
    results = AttackResults(
        n=20,
        clean_accuracy=0.75,
        clean_interval=(0.6, 0.9),
        by_eps=tuple(at(number) for number in range(len(eps))),
        half_eps=4.5 / 255 if norm == "linf" else 0.25,
        trust=trust,
        diagnosis=Diagnosis(n=9, blocks=blocks),
        seconds=1.0,
    )
    config = AttackConfig.model_validate(
        {"attack": EVERY, "eps": eps, "norm": norm, "pgd_steps": 10, "queries": 300, "seed": 17}
    )
    record = SourceRecord(run="002-transfer", sha256="0" * 64, k=1, fdm_lambda=None)
    changed = {"kind": "attack", "config": config, "results": results, "source": record, "k": 1}
    return Run(Path("runs") / name, model.model_copy(update=changed))


def fell_at(eps: int = 2) -> dict[str, Tensor]:
    """Outcomes: pgd (place 1) has 15 images, of which two fall at iterate 3 and one at 10."""
    found = torch.full((eps, len(EVERY), 20), -2, dtype=torch.int32)
    found[:, :, :15] = -1
    found[:, 1, :3] = torch.tensor([3, 3, 10])
    found[:, 5, :4] = -2  # apgd-t on eleven that are left
    return {"fell_at": found}


def texts(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def points(figure: Figure, label: str) -> list[float]:
    """x, y, x, y, … of the line whose label begins so."""
    lines = [line for line in figure.axes[0].lines if str(line.get_label()).startswith(label)]
    assert len(lines) == 1
    return np.asarray(lines[0].get_xydata()).flatten().tolist()


@pytest.fixture
def manifest(source: Run) -> Manifest:
    return source.manifest


def test_each_picture_is_there_twice_and_says_what_it_shows(manifest: Manifest) -> None:
    found = attack_plots(finished(manifest), fell_at())
    assert found.keys() == {f"{name}.{ending}" for name in PICTURES for ending in ("png", "svg")}
    for name in PICTURES:
        assert found[f"{name}.png"].startswith(b"\x89PNG\r\n")
        title = " ".join(texts(found[f"{name}.svg"]))
        for said in ("003-attack: attack on 002-transfer", "8/255", "ℓ∞", "10 steps", "seed 17"):
            assert said in title
        assert ("n = 9" if name == "feature-distance" else "n = 20") in title
    eps = texts(found["accuracy-over-eps.svg"])
    assert {"pgd alone", "pgd-margin alone", "worst of all", "half have fallen: 4.5/255"} < {*eps}
    assert "apgd-t alone" not in eps
    steps = texts(found["accuracy-over-steps.svg"])
    assert {"pgd (run on 15)", "apgd-t (run on 11, iterates towards one class)"} < {*steps}
    blocks = texts(found["feature-distance.svg"])
    assert {"stem", "1", "logits", "L−k = 1: frozen | tuned in transfer"} < {*blocks}


def test_lines_go_through_the_numbers(manifest: Manifest) -> None:
    run = finished(manifest)
    with style():
        eps = accuracy_over_eps(run)
        steps = accuracy_over_steps(run, fell_at())
        blocks = feature_distance(run)
    assert points(eps, "worst") == pytest.approx([0, 75, 2, 50, 8, 25])
    assert points(eps, "pgd alone") == pytest.approx([0, 75, 2, 60, 8, 40])
    assert points(eps, "half")[0] == pytest.approx(4.5)
    (band,) = eps.axes[0].collections
    corners = {tuple(corner) for corner in np.asarray(band.get_paths()[0].vertices).round(6)}
    assert corners == {(0, 60), (0, 90), (2, 40), (2, 60), (8, 15), (8, 35)}
    assert points(steps, "pgd (") == pytest.approx([0, 75, 3, 65, 10, 60, 10, 60])
    assert points(steps, "fgsm")[-2:] == pytest.approx([1, 75])
    assert points(steps, "square")[-2:] == pytest.approx([300, 75])
    assert points(steps, "apgd-t")[:2] == pytest.approx([0, 55])
    assert points(blocks, "target") == pytest.approx([0, 0, 1, 0.1, 2, 0.2])
    assert points(blocks, "source") == pytest.approx([0, 0.3, 1, math.nan, 2, 0.3], nan_ok=True)
    assert points(blocks, "L−k")[0] == 1.5


def test_the_l2_ball_is_in_pixels_as_they_are(manifest: Manifest) -> None:
    with style():
        figure = accuracy_over_eps(finished(manifest, eps=(0.1, 0.5), norm="l2"))
    assert points(figure, "worst")[::2] == pytest.approx([0, 0.1, 0.5])
    assert points(figure, "half have fallen: 0.25")[0] == pytest.approx(0.25)
    assert "ℓ₂" in figure.axes[0].get_title()


def test_what_there_is_too_little_of_is_not_drawn(manifest: Manifest) -> None:
    run = finished(manifest, eps=(8 / 255,), source=False)
    results = run.attack_results.model_copy(update={"diagnosis": None})
    bare = Run(run.folder, run.manifest.model_copy(update={"results": results}))
    assert attack_plots(bare, fell_at(1)).keys() == {
        "accuracy-over-steps.png",
        "accuracy-over-steps.svg",
    }
    blocks = attack_plots(run, fell_at(1))["feature-distance.svg"]
    assert "source model" not in texts(blocks)


def test_an_attack_that_did_not_work_says_so_in_every_title(manifest: Manifest) -> None:
    failed = Check(id="K1", verdict="fail", value=None, text="")
    for name, data in attack_plots(finished(manifest, trust=(failed,)), fell_at()).items():
        if name.endswith("svg"):
            assert "upper bound, attack incomplete" in texts(data)


def test_the_bytes_depend_on_nothing_but_the_results(manifest: Manifest) -> None:
    first = attack_plots(finished(manifest), fell_at())
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        before = dict(mpl.rcParams)
        assert attack_plots(finished(manifest), fell_at()) == first
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$x_1$", "$x_1$"),
        ("a$\\frac{$b", "a$\\frac{$b"),
        ("mädchen-日本-🦊", "m\\xe4dchen-\\u65e5\\u672c-\\U0001f98a"),
        ("red\x1b[31m\n<b>&amp;", "red\\x1b[31m\\n<b>&amp;"),
        ("0123456789" * 25, "0123456789" * 3 + "01234…"),
    ],
)
def test_odd_names_are_shown_as_they_are(manifest: Manifest, name: str, shown: str) -> None:
    assert plain(name) == shown
    found = attack_plots(finished(manifest, name), fell_at())
    for picture in PICTURES:
        assert f"{shown}: attack on 002-transfer" in texts(found[f"{picture}.svg"])


def test_no_text_is_cut_off_and_none_lies_on_another(manifest: Manifest) -> None:
    failed = Check(id="K1", verdict="fail", value=None, text="")
    run = finished(manifest, "0123456789" * 25, trust=(failed,))
    with style():
        for figure in (
            accuracy_over_eps(run),
            accuracy_over_steps(run, fell_at()),
            feature_distance(run),
        ):
            figure.draw_without_rendering()
            axes = figure.axes[0]
            shown = [axes.title, axes.xaxis.label, axes.yaxis.label]
            shown += [text for legend in figure.legends for text in legend.get_texts()]
            for axis, place in ((axes.xaxis, 0), (axes.yaxis, 1)):
                low, high = axis.get_view_interval()
                labels = axis.get_ticklabels()
                shown += [text for text in labels if low <= text.get_position()[place] <= high]
            boxes = [text.get_window_extent() for text in shown]
            assert len(boxes) > 10
            for box in boxes:
                assert figure.bbox.x0 <= box.x0
                assert box.x1 <= figure.bbox.x1
                assert figure.bbox.y0 <= box.y0
                assert box.y1 <= figure.bbox.y1
            for place, box in enumerate(boxes):
                assert box.count_overlaps(boxes[place + 1 :]) == 0


ATTACK = "attack target --eps 2/255,8/255 --attack pgd,fgsm --pgd-steps 2 --limit 20 --checks off"


@pytest.fixture
def runs(runs_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs_dir, tmp_path / "runs"))


def test_plot_draws_into_the_run_folder(runs: Path, cartl: Command) -> None:
    done = cartl(*ATTACK.split(), "--diagnose", "--plot", "--name", "a", "--json")
    assert done.code == 0, done.err
    for ending in ("png", "svg"):
        assert {path.stem for path in (runs / "a").glob(f"*.{ending}")} == PICTURES | CONFUSIONS
    printed = json.loads(done.out)
    shown = texts((runs / "a" / "accuracy-over-steps.svg").read_bytes())
    assert f"pgd (run on {round(20 * printed['clean_accuracy'])})" in shown


def test_a_finished_attack_is_drawn_without_attacking_again(
    runs: Path, cartl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cartl(*ATTACK.split(), "--name", "a").code == 0
    before = (runs / "a" / "manifest.json").read_bytes()
    assert not list((runs / "a").glob("*.png"))
    monkeypatch.setattr("cartl_cli.core.evaluation.attack_run.robustness", None)
    monkeypatch.setattr("cartl_cli.core.runs.weights.read_model", None)
    assert cartl("attack", "--resume", "a", "--plot").code == 0
    assert (runs / "a" / "manifest.json").read_bytes() == before
    drawn = {path.name: path.read_bytes() for path in (runs / "a").glob("*.[ps][nv]g")}
    accuracies = {"accuracy-over-eps", "accuracy-over-steps"}
    assert {Path(name).stem for name in drawn} == accuracies | CONFUSIONS
    assert cartl("attack", "--resume", "a", "--plot").code == 0
    assert {name: (runs / "a" / name).read_bytes() for name in drawn} == drawn


def test_plot_without_matplotlib_is_refused_before_the_work(
    runs: Path, cartl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = cartl(*ATTACK.split(), "--plot", "--name", "a")
    assert done.code == 2
    assert "pip install 'cartl[plot]'" in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (runs / "a").exists()
    assert cartl(*ATTACK.split(), "--name", "a").code == 0  # only plots need it


def test_a_link_in_the_place_of_a_picture_is_not_followed(runs: Path, cartl: Command) -> None:
    assert cartl(*ATTACK.split(), "--name", "a").code == 0
    target = runs / "precious"
    target.write_text("mine")
    (runs / "a" / "accuracy-over-eps.png").symlink_to(target)
    done = cartl("attack", "--resume", "a", "--plot")
    assert done.code == 1
    assert "refusing to follow the link" in done.err
    assert "worst of all" in done.out  # the result is shown all the same
    assert target.read_text() == "mine"
    assert read_run(runs / "a").manifest.status == "completed"
