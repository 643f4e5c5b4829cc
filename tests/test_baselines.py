"""What a transfer and its attack say beside plain fine-tuning of the same source."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cartl_cli.core.evaluation import comparison
from cartl_cli.core.runs.baselines import baselines
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.reader import attacks_on, read_run
from tests.conftest import TINY_TRANSFER, Command, ImageFolder

ATTACK = ["--attack", "pgd", "--pgd-steps", "2", "--limit", "60", "--checks", "off"]


@pytest.fixture
def runs(runs_dir: Path, tmp_path: Path) -> Path:
    """A copy of the shared runs, where a test may add its own, in the folder of ``cartl``."""
    shutil.copytree(runs_dir, tmp_path / "runs")
    return tmp_path / "runs"


def transfer(cartl: Command, name: str, *flags: object, how: str = TINY_TRANSFER) -> str:
    done = cartl("transfer", "--source", "source", *how.split(), "--name", name, *flags)
    assert done.code == 0, done.err
    return done.err


def test_a_transfer_and_its_attack_stand_beside_vanilla_and_the_classifier_alone(
    runs: Path, cartl: Command
) -> None:
    transfer(cartl, "head", "--k", 1)
    transfer(cartl, "other-images", "--k", 1, how="--epochs 2 --classes ring,tee,grid")
    assert "vanilla transfer" not in transfer(cartl, "vanilla", "--k", 3)
    told = transfer(cartl, "neft", "--k", 3, "--neft-beta", 0.4)
    for name in ("head", "vanilla", "other-images"):
        cartl("attack", name, *ATTACK)
    said = cartl("attack", "neft", *ATTACK).err
    accuracies = {
        name: (run.results.clean_accuracy, _robust(run))
        for name in ("head", "vanilla", "neft")
        for run in [read_run(runs / name)]
    }
    for what, name in (
        ("vanilla transfer at the same k", "vanilla"),
        ("the classifier alone", "head"),
    ):
        (clean, robust), ours = accuracies[name], accuracies["neft"]
        assert f"beside {name}, {what}: {100 * ours[0]:.1f} % clean here, " in told
        assert f"% clean here, {100 * clean:.1f} % there" in told
        assert (
            f"beside {name}, {what}, under the same attack: {100 * ours[1]:.1f} % robust here, "
            f"{100 * robust:.1f} % there: {100 * (ours[1] - robust):+.1f} points, "
        ) in said
    assert "under the same attack" not in cartl("attack", "neft", *ATTACK, "--eps", "4/255").err
    for attack in attacks_on(read_run(runs / "head")):
        (attack.folder / "outcomes.safetensors").unlink()
    damaged = cartl("attack", "neft", *ATTACK, "--force")
    assert damaged.code == 0, damaged.err
    assert "beside vanilla, " in damaged.err
    assert "beside head, " not in damaged.err
    assert baselines(read_run(runs / "head")) == {}
    assert baselines(read_run(runs / "source")) == {}


def test_few_images_held_out_are_told_with_the_flag_that_holds_out_more(
    runs: Path, cartl: Command, image_folder: ImageFolder
) -> None:
    pictures = image_folder(test=0)
    done = cartl("transfer", "--source", "source", "--dataset", pictures, "--epochs", 1)
    assert (
        "warning: with n = 2 the 95 % interval is 97 points wide; hold out more with " in done.err
    )
    with_test = image_folder(name="tested")
    done = cartl("transfer", "--source", "source", "--dataset", with_test, "--epochs", 1)
    assert "points wide; hold out more" not in done.err
    assert "warning: with n = 4 " in done.err


def _robust(run: Run) -> float:
    (attack,) = (one for one in attacks_on(run) if one.attack.eps == (8 / 255,))
    return attack.attack_results.by_eps[-1].robust_accuracy


@pytest.mark.parametrize(("fallen", "warned"), [(60, True), (0, False)])
def test_less_robust_than_the_classifier_alone_by_more_than_chance_is_a_warning(
    runs: Path, cartl: Command, monkeypatch: pytest.MonkeyPatch, fallen: int, warned: bool
) -> None:
    transfer(cartl, "head", "--k", 1)
    for name in ("head", "target"):
        cartl("attack", name, *ATTACK, "--name", f"attack-on-{name}")

    def outcomes(run: Run) -> dict[str, Tensor]:
        fell = torch.full((1, 1, 60), -1, dtype=torch.int32)
        fell[..., : fallen if run.name == "attack-on-target" else 0] = 1
        clean = torch.ones(60, dtype=torch.bool)
        return {"clean": clean, "fell_at": fell, "indices": torch.arange(60)}

    monkeypatch.setattr(comparison, "read_outcomes", outcomes)
    attack, attacked = read_run(runs / "attack-on-target"), read_run(runs / "target")
    (note,) = comparison.beside_baselines(attack, attacked)
    assert note.startswith("warning: beside head, the classifier alone") == warned
    assert ("points, more than chance" in note) == warned
    assert note.endswith("; try --method fast, or a smaller --k") == warned
