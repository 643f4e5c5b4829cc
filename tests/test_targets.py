"""``--split``: which images are attacked, and that their numbers are never mixed up."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cartl_cli.core.data.split import DataSet
from cartl_cli.core.errors import UsageError
from cartl_cli.core.evaluation.targets import measured_on
from cartl_cli.core.runs.reader import read_run
from tests import tiny
from tests.conftest import Command, Finished
from tests.crashes import call

QUICK = ("--attack", "pgd", "--pgd-steps", 1, "--checks", "fast", "--device", "cpu")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that measured on a test split, on a held-out part, and without a test split."""
    root = tmp_path_factory.mktemp("targets") / "here"
    root.mkdir()
    tiny.make_images(root / "images")
    shutil.copytree(root / "images" / "train", root / "untested" / "train")
    small = [text for text in tiny.command("pretrain")[:-2] if text != "../images"]
    small.remove("--dataset")
    for name, more in (
        ("tested", "--dataset images"),
        ("held", "--dataset images --val-fraction 0.5"),
        ("untested", "--dataset untested"),
    ):
        code, said = call([*small, *more.split(), "--name", name], root)
        assert code == 0, said
    return root / "runs"


@pytest.fixture
def attack(cartl: Command, template: Path) -> Command:
    """Attack those runs."""
    shutil.copytree(template, "runs")

    def run(*arguments: object) -> Finished:
        return cartl("attack", *arguments, *QUICK)

    return run


@pytest.mark.parametrize(
    ("run", "split", "measured", "n"),
    [
        ("tested", None, "test", 8),
        ("tested", "test", "test", 8),
        ("tested", "train", "train", 12),
        ("held", None, "held-out", 6),
        ("held", "val", "held-out", 6),
        ("held", "train", "train", 6),
        ("held", "test", "test", 8),
        ("untested", "val", "held-out", 2),
    ],
)
def test_a26_the_split_that_was_attacked_is_named(
    attack: Command, run: str, split: str | None, measured: str, n: int
) -> None:
    flags = () if split is None else ("--split", split)
    done = attack(run, *flags, "--name", "a")
    assert done.code == 0, done.err
    assert f"n = {n} {measured} images" in " ".join(done.out.split())
    found = read_run(Path("runs/a")).manifest
    assert (found.data.measured, found.data.measured_images) == (measured, n)
    assert load_file("runs/a/outcomes.safetensors")["indices"].tolist() == list(range(n))
    checks = {check.id for check in read_run(Path("runs/a")).attack_results.trust}
    own = read_run(Path("runs", run)).manifest.data.measured
    assert ("V10" in checks) == (own == measured)
    again = json.loads(attack("--resume", "a", "--json").out)
    assert (again["measured"], again["n"]) == (measured, n)


@pytest.mark.parametrize(
    ("run", "split", "said"),
    [
        ("tested", "val", "has no val split, and the run held nothing out; choose test"),
        ("untested", "test", "--split: 'untested' has no test split; choose val or train"),
        ("tested", "valid", "'valid' is not one of 'test', 'val', 'train'"),
    ],
)
def test_a_split_that_is_not_there_is_refused(
    attack: Command, run: str, split: str, said: str
) -> None:
    before = sorted(Path("runs").iterdir())
    done = attack(run, "--split", split)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.splitlines()) <= 2
    assert sorted(Path("runs").iterdir()) == before


def test_a26_results_on_different_splits_are_kept_apart(attack: Command) -> None:
    assert attack("tested", "--name", "on-test").code == 0
    done = attack("tested", "--split", "train", "--name", "on-train", "--compare", "on-test")
    assert done.code == 2
    assert "'on-test' was measured on test images, here on train images" in done.err
    assert not (Path("runs") / "on-train").exists()
    done = attack("tested", "--split", "train", "--name", "on-train")
    assert done.code == 0, done.err  # another attack, no repeat
    done = attack("tested", "--split", "train")
    assert (done.code, "already there" in done.err) == (2, True)
    done = attack("--resume", "on-train", "--split", "test")
    assert (done.code, "--split train -> test" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("--restarts 2", "has restarts 1, here 2; attack both alike"),
        ("--eps 4/255,16/255", "has eps 8/255, here 4/255,16/255; attack both alike"),
        ("--step-size 1/255", "has step size 2/255 at eps 8/255, here 1/255; attack both alike"),
        ("--norm l2 --eps 0.5", "has norm linf, here l2; attack both alike"),
        ("--limit 4", "was measured on other images"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_the_attack(
    attack: Command, other: str, said: str
) -> None:
    assert attack("tested", "--name", "plain").code == 0
    done = attack("tested", *other.split(), "--name", "never", "--compare", "plain")
    assert (done.code, done.err) == (2, f"cartl: error: --compare: 'plain' {said}\n")
    assert not (Path("runs") / "never").exists()


def test_runs_that_held_out_other_parts_meet_on_the_test_split(attack: Command) -> None:
    for name in ("tested", "held"):
        assert attack(name, "--split", "test", "--name", f"on-{name}").code == 0
    done = attack("--resume", "on-held", "--compare", "on-tested")
    assert done.code == 0, done.err
    assert "image by image" in done.out


def test_an_interrupted_attack_on_training_images_goes_on(tmp_path: Path) -> None:
    tiny.make_images(tmp_path / "images")
    folder = tiny.scene(tmp_path / "nothing", tmp_path / "here")
    assert call([*tiny.command("pretrain")[:-1], "source"], folder)[0] == 0
    code, said = call([*tiny.command("attack"), "--split", "train"], folder)
    assert code == 0, said
    path = folder / "runs" / "attack" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"status": "interrupted", "results": None}))
    before = (folder / "runs" / "attack" / "outcomes.safetensors").read_bytes()
    code, said = call(tiny.resume("attack"), folder)
    assert code == 0, said
    assert (folder / "runs" / "attack" / "outcomes.safetensors").read_bytes() == before


def test_the_images_are_those_of_the_split(data: DataSet) -> None:
    train = measured_on(data, "train")
    assert torch.equal(train.evaluation.images, data.train.images)
    assert train.fingerprint() != data.fingerprint()
    assert measured_on(data, None) is measured_on(data, "test") is data
    with pytest.raises(UsageError, match="choose test or train"):
        measured_on(data, "val")


def test_images_that_are_others_than_when_the_run_was_made_are_told(attack: Command) -> None:
    """What was held out can then be among the images that the model was trained on."""
    done = attack("untested", "--force", "--limit", "2")
    assert done.code == 0, done.err
    assert "has changed since" not in done.err
    images = Path(read_run(Path("runs/untested")).training.dataset).expanduser()
    first = sorted(images.rglob("*.png"))[0]
    last = first.rename(first.with_name("zz.png"))
    try:
        done = attack("untested", "--force", "--limit", "2")
    finally:
        last.rename(first)
    assert done.code == 0, done.err
    assert "has changed since run 'untested' was made; held-out images may be" in done.err
