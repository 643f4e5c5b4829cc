"""The source model that comes with the package."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cartl_cli.core.config.values import PACKAGED
from cartl_cli.core.exports.card import model_card
from cartl_cli.core.exports.subject import read_subject
from cartl_cli.core.imports.published import SOURCES
from cartl_cli.core.runs.reader import list_runs
from cartl_cli.core.runs.weights import read_model
from tests.conftest import Command

HERE = SOURCES / PACKAGED
FOLDER = os.environ.get("CARTL_TEST_DATA", "")
SMALL = ("--dataset", "shapes-target", "--epochs", 1, "--fraction", 0.1, "--batch-size", 16)


def test_it_is_small_and_described_by_what_lies_beside_it() -> None:
    weights, config = HERE / "model.safetensors", json.loads((HERE / "config.json").read_text())
    assert weights.stat().st_size < 6e6
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == config["sha256"]


def test_without_a_source_it_is_named(cartl: Command) -> None:
    said = f"run cartl pretrain first, or give --source {PACKAGED}, which comes with cartl"
    for words, expected in (
        ((), said),
        (("--source", "cifar10-robst"), f"'runs': none; {PACKAGED} comes with cartl"),
        (("--source", "cifar10-robst"), f"(did you mean {PACKAGED!r}?)"),
    ):
        done = cartl("transfer", *words)
        assert done.code == 2
        assert expected in done.err
    assert PACKAGED not in cartl("attack").err


def test_what_is_attacked_unasked_has_images(cartl: Command) -> None:
    made = cartl("pretrain", *SMALL[:4], "--arch", "wrn-10-1", "--k", 3, "--name", "mine")
    assert made.code == 0, made.err
    assert cartl("import", PACKAGED, "--name", "theirs").code == 0
    done = cartl("attack", "--limit", 4, "--pgd-steps", 1, "--checks", "off")
    assert done.code == 0, done.err
    assert "run: runs/mine (the newest finished run)" in done.err


def test_a_transfer_takes_it_by_name_and_imports_it_once(cartl: Command) -> None:
    first = cartl("transfer", "--source", PACKAGED, *SMALL, "--k", 1)
    assert first.code == 0, first.err
    assert "its maker measured 77.6 % clean, 44.3 % under pgd-20 at eps 8/255" in first.err
    second = cartl("transfer", "--source", PACKAGED, *SMALL, "--k", 1, "--method", "latent")
    assert second.code == 0, second.err
    assert "imported" not in second.err
    runs = list_runs(Path("runs"))
    assert [run.manifest.kind for run in runs] == ["import", "transfer", "transfer"]
    moved = json.loads((HERE / "config.json").read_text())["moved"]
    assert len(moved) == 9  # the image, and what leaves each of the 8 blocks of a WRN-16-4
    assert runs[2].manifest.radius == pytest.approx(moved[8 - 1] / 12)
    config = runs[0].manifest.config.model_dump()
    assert (config["licence"], config["threat"]) == ("MIT", "linf 8/255")
    card = model_card(read_subject(runs[1]))
    assert "Its maker measured 77.6 % clean, 44.3 % under pgd-20 at eps 8/255" in card
    assert "claimed to resist linf 8/255" in card
    assert "\nlicense: mit\n" not in card  # the new model is not ours to license
    assert "Its source model has the licence MIT: see" in card
    assert "\nlicense: mit\n" in model_card(read_subject(runs[0]))
    stored, taken = load_file(HERE / "model.safetensors"), read_model(runs[0]).state_dict()
    assert stored.keys() == taken.keys()
    for name, tensor in taken.items():
        assert torch.equal(tensor, stored[name].to(tensor.dtype))


@pytest.mark.real_data
@pytest.mark.skipif(not FOLDER, reason="CARTL_TEST_DATA names no folder of real images")
def test_it_is_as_accurate_and_robust_as_it_says(cartl: Command) -> None:
    """Clean 77.6 % and 44.3 % under PGD-20 of 10,000: of 60 images in wide intervals around it."""
    found = cartl(
        "import", PACKAGED, "--dataset", Path(FOLDER) / "cifar10.zip", "--limit", 60, "--json"
    )
    assert found.code == 0, found.err
    results = json.loads(found.out)
    assert 0.6 < results["clean_accuracy"] < 0.93
    assert 0.25 < results["robust_accuracy"] < 0.64
