"""``--fraction``: a part of the training images, and the same data to whoever asks later."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

from cartl_cli.core.config.preprocessing import Preprocessing
from cartl_cli.core.data.data_sets import DataChoice, load_data_set
from cartl_cli.core.data.split import DataSet, Split, fraction_of
from cartl_cli.core.errors import UsageError
from cartl_cli.core.runs.manifest import Position
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.training.loop import Step, Take, Training, fit
from tests import tiny
from tests.conftest import TINY_TRANSFER, Command
from tests.crashes import call


def numbered(*counts: int) -> DataSet:
    """Classes of so many training images; each image has its own number in its pixels."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).to(torch.uint8)
    names = tuple(f"class {number}" for number in range(len(counts)))
    return DataSet("numbered", names, Split(images, labels), Split(images[:1], labels[:1]), "test")


def numbers(split: Split) -> list[int]:
    found: list[int] = torch.cat([*split.batches(64)]).flatten().tolist()
    return found


@pytest.mark.parametrize("counts", [(60, 60, 60), (100, 40, 3), (10, 90)])
def test_a_smaller_part_lies_within_a_larger_one(counts: tuple[int, ...]) -> None:
    data = numbered(*counts)
    parts = [numbers(fraction_of(data, f, seed=0)) for f in (0.1, 0.2, 0.35, 0.5, 1.0)]
    assert [len(part) for part in parts] == [
        round(f * sum(counts)) for f in (0.1, 0.2, 0.35, 0.5, 1)
    ]
    for smaller, larger in itertools.pairwise(parts):
        assert set(smaller) < set(larger)
        assert smaller == sorted(set(smaller))
    assert parts[-1] == numbers(data.train)


def test_labels_stay_with_their_images_and_classes_get_the_same_number() -> None:
    data = numbered(60, 60, 60, 60)
    part = fraction_of(data, 0.25, seed=3)
    assert part.labels.bincount().tolist() == [15, 15, 15, 15]
    assert torch.equal(part.labels, data.train.labels[numbers(part)])
    rare = fraction_of(numbered(100, 5, 45), 0.2, seed=3)
    assert rare.labels.bincount().tolist() in ([13, 5, 12], [12, 5, 13])


def test_the_seed_chooses_the_images() -> None:
    data = numbered(50, 50)
    drawn = [numbers(fraction_of(data, 0.2, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_no_class_is_left_empty() -> None:
    data = numbered(20, 20, 20)
    with pytest.raises(
        UsageError, match=r"of 60 training images leaves class .* use at least 3/60"
    ):
        fraction_of(data, 2 / 60, seed=0)
    assert fraction_of(data, 3 / 60, seed=0).labels.tolist() == [0, 1, 2]


TRANSFER = ("transfer", *TINY_TRANSFER.split(), "--batch-size", 16)


def test_a_run_is_trained_on_its_part_and_attacked_on_the_same_data(
    cartl: Command, runs_dir: Path
) -> None:
    # augmented, since else the features of a frozen extractor are trained on
    where = ("--source", runs_dir / "source", "--val-fraction", "0.2", "--augment", "flip")
    seen: dict[str, Split] = {}

    def spy(training: Training, begun: Position, take: Take) -> Iterator[Step]:
        seen[str(len(seen))] = training.split
        return fit(training, begun, take)

    with mock.patch("cartl_cli.core.training.training_run.fit", spy):
        whole = cartl(*TRANSFER, *where, "--name", "whole", "--json")
        half = cartl(*TRANSFER, *where, "--fraction", "0.5", "--name", "half")
    assert (whole.code, half.code) == (0, 0), half.err
    data = load_data_set(
        DataChoice("shapes-target", ("ring", "frame", "grid"), 0.2), Preprocessing(image_size=32)
    )
    expected = fraction_of(data, 0.5, seed=0)
    for number, split in (("0", data.train), ("1", expected)):
        assert torch.equal(*(torch.cat([*s.batches(64)]) for s in (seen[number], split)))
    assert torch.equal(seen["1"].labels, expected.labels)

    count = len(data.train)
    assert f"from source, {count // 2} training images" in half.err
    assert f"trained on {count // 2} images, fraction 0.5" in " ".join(half.out.split())
    assert json.loads(whole.out)["train_images"] == count
    first, second = (read_run(Path("runs") / name).manifest.data for name in ("whole", "half"))
    assert (first.train_images, second.train_images) == (count, count // 2)
    assert first.measured_images == second.measured_images == len(data.evaluation)
    assert first.fingerprint == second.fingerprint == data.fingerprint()

    attack = ("attack", "--pgd-steps", 1, "--attack", "pgd")
    assert cartl(*attack, "whole", "--checks", "off", "--name", "a").code == 0
    done = cartl(*attack, "half", "--checks", "fast", "--name", "b", "--compare", "a", "--json")
    assert done.code == 0, done.err
    checks = {check["id"]: check["verdict"] for check in json.loads(done.out)["trust"]}
    assert checks["V10"] == "pass"


def test_another_clean_accuracy_of_such_a_run_is_noticed(cartl: Command, runs_dir: Path) -> None:
    given = ("--source", runs_dir / "source", "--fraction", "0.5", "--name", "half")
    assert cartl(*TRANSFER, *given).code == 0
    manifest = Path("runs/half/manifest.json")
    content = json.loads(manifest.read_text())
    content["results"]["clean_accuracy"] = abs(content["results"]["clean_accuracy"] - 0.3)
    manifest.write_text(json.dumps(content))
    done = cartl("attack", "half", "--pgd-steps", 1, "--checks", "off")
    assert done.code == 1
    assert "clean accuracy: expected" in done.err


def test_a_run_goes_on_with_its_own_part_only(tmp_path: Path) -> None:
    tiny.make_images(tmp_path / "images")
    place = tiny.scene(tmp_path / "none", tmp_path / "place")
    assert call([*tiny.command("pretrain")[:-1], "source"], place)[0] == 0
    code, said = call([*tiny.command("vanilla"), "--fraction", "0.5"], place)
    assert code == 0, said
    assert "6 training images" in said
    code, said = call(["transfer", "--resume", "vanilla", "--fraction", "0.7"], place)
    assert code == 2
    assert "differs from the run: --fraction 0.5 -> 0.7" in said
