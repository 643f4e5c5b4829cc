"""The whole way on real images, small: traffic signs, and grayscale digits."""

import json
import os
from pathlib import Path

import pytest

from tests.conftest import Command

FOLDER = os.environ.get("CARTL_TEST_DATA", "")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not FOLDER, reason="CARTL_TEST_DATA names no folder of real images"),
]
SIGNS = Path(FOLDER) / "gtsrb.zip"
DIGITS = Path(FOLDER) / "mnist.zip"
PHOTOS = Path(FOLDER) / "photos.zip"
EVEN, ODD = "00000,00002,00004,00014", "00001,00013,00017"


def test_traffic_signs_go_the_whole_way(cartl: Command) -> None:
    done = cartl(
        *("pretrain", "--dataset", SIGNS, "--classes", EVEN, "--arch", "wrn-10-1", "--k", 3),
        *("--method", "at", "--fdm-lambda", 0.005, "--epochs", 4, "--pgd-steps", 2, "--json"),
    )
    assert done.code == 0, done.err
    source = json.loads(done.out)
    assert source["clean_accuracy"] > 0.5  # chance: 0.25
    done = cartl(
        *("transfer", "--dataset", SIGNS, "--classes", ODD, "--neft-beta", 0.4, "--epochs", 20),
        *("--lr", 0.1, "--json"),
    )
    assert done.code == 0, done.err
    target = json.loads(done.out)
    assert target["clean_accuracy"] > 0.6  # chance: 0.33
    done = cartl("attack", "--pgd-steps", 5, "--eps", "4/255", "--json")
    assert done.code == 0, done.err
    attacked = json.loads(done.out)
    assert attacked["n"] == 180
    assert attacked["clean_accuracy"] == target["clean_accuracy"]
    assert attacked["robust_accuracy"] < attacked["clean_accuracy"]


def test_grayscale_digits_are_converted_and_learned(cartl: Command) -> None:
    done = cartl(
        *("pretrain", "--dataset", DIGITS, "--classes", "0,1,7", "--arch", "wrn-10-1", "--k", 2),
        *("--method", "natural", "--epochs", 4, "--json"),
    )
    assert done.code == 0, done.err
    assert "2,100 of 2,100 images were grayscale, made RGB" in done.err
    assert "2,100 of 2,100 images were resized to 32x32" in done.err
    assert json.loads(done.out)["clean_accuracy"] > 0.9


def test_photographs_with_train_and_val_go_the_whole_way(cartl: Command) -> None:
    """The commonest layout, and no option that says so; ``val`` is what measures."""
    small = ("--arch", "wrn-10-1", "--k", 2, "--epochs", 1, "--pgd-steps", 1)
    done = cartl("pretrain", "--dataset", PHOTOS, *small)
    assert done.code == 0, done.err
    assert "2 classes (images in train + val): ants 122 + 70, bees 121 + 83" in done.err
    done = cartl("transfer", "--dataset", PHOTOS, "--epochs", 1, "--json")
    assert done.code == 0, done.err
    done = cartl("attack", "--pgd-steps", 1, "--checks", "off", "--json")
    assert done.code == 0, done.err
    attacked = json.loads(done.out)
    assert (attacked["n"], attacked["measured"]) == (153, "val")
