"""Exact resume: however a run was stopped, going on ends in the same bytes."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.processes import FORGET, Sabotage, finish, run, start

POINTS = {"step 1": 1, "mid-epoch": 2, "epoch end": 3, "first of epoch 2": 4, "last": tiny.STEPS}
METHODS = ("pretrain", "neft", "vanilla")
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images, and ``base/runs`` with a finished source run."""
    root = tmp_path_factory.mktemp("resume")
    tiny.make_images(root / "images")
    (root / "base").mkdir()
    arguments = [*tiny.command("pretrain")[:-1], "source"]
    done = run(arguments, root / "base")
    assert done.code == 0, done.err
    return root


@pytest.fixture(scope="module")
def straight(place: Path) -> dict[str, Any]:
    """What each command leaves when nothing stops it."""
    folder = tiny.scene(place / "base" / "runs", place / "straight")
    found = {}
    for name in tiny.COMMANDS:
        done = run(tiny.command(name), folder)
        assert done.code == 0, done.err
        found[name] = tiny.left(folder / "runs" / name)
    return found


@pytest.fixture
def folder(place: Path, tmp_path: Path) -> Path:
    """A fresh folder to run commands in."""
    return tiny.scene(place / "base" / "runs", place / tmp_path.name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", SIGNALS)
@pytest.mark.parametrize("point", POINTS)
def test_c43_c45_resume_matrix(
    folder: Path, straight: dict[str, Any], method: str, stop: str, point: str
) -> None:
    sabotage = Sabotage(POINTS[point], SIGNALS[stop])
    stopped = run(tiny.command(method), folder, sabotage)
    assert stopped.code == {"SIGTERM": 143, "SIGKILL": -9}[stop]
    manifest = json.loads((folder / "runs" / method / "manifest.json").read_text())
    assert manifest["status"] == {"SIGTERM": "interrupted", "SIGKILL": "running"}[stop]
    if stop == "SIGTERM":
        last = stopped.err.splitlines()[-1]
        assert f"interrupted at step {POINTS[point]} of {tiny.STEPS}; go on with: cartl " in last
        assert f"--resume runs/{method}" in last
        assert "stopping after this step" in stopped.err
    went_on = run(tiny.resume(method), folder)
    assert went_on.code == 0, went_on.err
    assert {"SIGTERM": "interrupted", "SIGKILL": "crashed"}[stop] in went_on.err
    assert tiny.left(folder / "runs" / method) == straight[method]


@pytest.mark.parametrize(
    ("method", "step"), [("free", 1), ("free", 4), ("fast", 2), ("fast", tiny.STEPS)]
)
def test_what_a_method_carries_goes_on(
    folder: Path, straight: dict[str, Any], method: str, step: int
) -> None:
    run(tiny.command(method), folder, Sabotage(step, signal.SIGKILL))
    went_on = run(tiny.resume(method), folder)
    assert went_on.code == 0, went_on.err
    assert tiny.left(folder / "runs" / method) == straight[method]


def test_a_switch_to_pgd_goes_on(folder: Path, straight: dict[str, Any]) -> None:
    """It is made after the first epoch; what resumes the run knows of it by the state alone."""
    collapse = Sabotage(collapse=True)
    whole = tiny.scene(folder / "runs", folder.with_name(f"{folder.name}-whole"))
    done = run(tiny.command("fast"), whole, collapse)
    assert "catastrophic overfitting after epoch 1: of 12 training images" in done.err
    assert "steps that follow train with PGD-2" in done.err
    switched = tiny.left(whole / "runs" / "fast")
    assert switched["results"]["collapsed_after"] == 1
    assert straight["fast"]["results"]["collapsed_after"] is None
    assert switched["model.safetensors"] != straight["fast"]["model.safetensors"]

    run(tiny.command("fast"), folder, Sabotage(4, signal.SIGKILL, collapse=True))
    went_on = run(tiny.resume("fast"), folder)
    assert went_on.code == 0, went_on.err
    assert "catastrophic" not in went_on.err
    assert tiny.left(folder / "runs" / "fast") == switched


@pytest.mark.parametrize("stop", SIGNALS)
@pytest.mark.parametrize("batch", range(1, tiny.BATCHES + 1))
@pytest.mark.parametrize("name", ["attack", "saving"])
def test_a28_an_attack_goes_on_with_the_same_outcome(
    folder: Path, straight: dict[str, Any], name: str, stop: str, batch: int
) -> None:
    stopped = run(tiny.command(name), folder, Sabotage(batch, SIGNALS[stop]))
    assert stopped.code == {"SIGTERM": 143, "SIGKILL": -9}[stop]
    went_on = run(tiny.resume(name), folder)
    assert went_on.code == 0, went_on.err
    assert f"going on after batch {batch}" in went_on.err
    assert tiny.left(folder / "runs" / name) == straight[name]


@pytest.mark.parametrize(
    ("forget", "method"),
    [
        ("order", "pretrain"),
        ("counters", "pretrain"),
        ("schedule", "vanilla"),
        ("batch norm", "vanilla"),
        ("spectral", "neft"),
        ("carried", "free"),
        ("carried", "fast"),
    ],
)
def test_forgetting_any_part_of_the_state_is_seen(
    folder: Path, straight: dict[str, Any], forget: str, method: str
) -> None:
    """Negative controls: were this part of the state lost, the comparison would tell."""
    step = 3 if forget == "counters" else 2
    run(tiny.command(method), folder, Sabotage(step, signal.SIGKILL))
    went_on = run(tiny.resume(method), folder, Sabotage(step, forget=forget))
    assert went_on.code == 0, went_on.err
    left = tiny.left(folder / "runs" / method)
    assert left["model.safetensors"] != straight[method]["model.safetensors"]
    assert left.keys() == straight[method].keys()


def test_every_control_is_tried() -> None:
    tried = {"order", "counters", "schedule", "batch norm", "spectral", "carried"}
    assert tried == set(FORGET)


@pytest.mark.parametrize("name", ["pretrain", "neft", "attack"])
def test_kill_at_a_random_moment(folder: Path, straight: dict[str, Any], name: str) -> None:
    draws = random.Random(f"kill {name}")
    began = time.monotonic()
    run(tiny.command(name), tiny.scene(folder / "runs", folder.with_name(f"timed-{name}")))
    whole = time.monotonic() - began
    for number in range(4):
        at = tiny.scene(folder / "runs", folder.with_name(f"kill-{name}-{number}"))
        child = start(tiny.command(name), at)
        time.sleep(draws.uniform(0.2, 1) * whole)
        child.kill()
        assert finish(child, at).code in (-9, 0)
        again = tiny.resume(name) if (at / "runs" / name).exists() else tiny.command(name)
        went_on = run(again, at)
        assert went_on.code == 0, went_on.err
        assert tiny.left(at / "runs" / name) == straight[name]
        assert tiny.orphans(at) == []
