import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cartl_cli import __version__
from cartl_cli.core.config import AttackConfig, PretrainConfig, TransferConfig
from cartl_cli.core.config.configure import is_positional
from cartl_cli.core.runs.reader import read_run
from tests.conftest import TINY_PRETRAIN, TINY_TRANSFER, Command, ImageFolder


def test_the_three_commands_work_one_after_another(cartl: Command) -> None:
    first = cartl("pretrain", "--fdm-lambda", "0.005", *TINY_PRETRAIN.split())
    assert first.code == 0
    assert "001-pretrain" in first.out
    assert "PGD-20" in first.out
    second = cartl(
        "transfer", "--neft-beta", "0.4", "--freeze-bn", "affine", *TINY_TRANSFER.split()
    )
    assert second.code == 0
    assert "source: runs/001-pretrain (the newest finished source run)" in second.err
    assert "frozen: stem, blocks 1–2; tuned: blocks 3–5" in second.out
    assert "\nσ of 4 layers: 0.400 to 0.400, β 0.4 (each: --json, manifest.json)\n" in second.out
    assert second.out.count("0.400") == 2
    third = cartl("attack", "--pgd-steps", "2")
    assert third.code == 0
    assert "run: runs/002-transfer (the newest finished run)" in third.err
    for row in ("none (clean)", "pgd ", "pgd-margin", "apgd-t", "worst of all"):
        assert row in third.out
    assert "n = 150 test images of shapes-target" in " ".join(third.out.split())
    assert all(len(line) <= 100 for line in (first.out + second.out + third.out).splitlines())


def test_json_prints_one_object_with_the_promised_keys(cartl: Command, runs_dir: Path) -> None:
    where = ("--runs-dir", runs_dir)
    done = cartl("attack", "target", "--pgd-steps", "2", "--limit", "30", "--json", *where)
    attacked = json.loads(done.out)
    assert attacked.keys() >= {
        *("run", "n", "eps", "steps", "restarts", "clean_accuracy", "robust_accuracy", "interval"),
        *("robust_accuracy_ce", "robust_accuracy_margin", "final_iterate_accuracy", "seconds"),
    }
    assert attacked["n"] == 30
    assert 0 <= attacked["robust_accuracy"] <= attacked["clean_accuracy"] <= 1
    assert attacked["robust_accuracy"] <= min(
        attacked["robust_accuracy_ce"], attacked["robust_accuracy_margin"]
    )
    assert attacked["interval"][0] <= attacked["robust_accuracy"] <= attacked["interval"][1]
    stored = read_run(Path(attacked["folder"]))
    assert stored.attack_results.by_eps[0].robust_accuracy == attacked["robust_accuracy"]
    assert (attacked["run"], attacked["attack"]) == ("target", stored.name)
    assert stored.manifest.config.model_dump()["limit"] == 30
    outcomes = load_file(stored.folder / "outcomes.safetensors")
    fell = (outcomes["fell_at"] >= 0)[0, 0]
    assert (outcomes["clean"] & ~fell).float().mean().item() == pytest.approx(
        attacked["robust_accuracy_ce"]
    )
    assert len(outcomes["indices"].unique()) == 30

    done = cartl("pretrain", "--json", *TINY_PRETRAIN.split())
    pretrained = json.loads(done.out)
    assert pretrained.keys() >= {"run", "arch", "k", "clean_accuracy", "robust_accuracy", "seconds"}
    done = cartl("transfer", "--json", *TINY_TRANSFER.split())
    transferred = json.loads(done.out)
    assert transferred.keys() >= {
        "run",
        "source",
        "k",
        "neft_beta",
        "freeze_bn",
        "clean_accuracy",
        "spectral_norms",
        "seconds",
    }
    norms = read_run(Path(transferred["folder"])).results.spectral_norms
    assert transferred["spectral_norms"] == norms
    plain = cartl("transfer", "--resume", transferred["folder"]).out
    assert "frozen: " in plain
    assert "σ" not in plain  # says nothing where no NEFT made it β
    assert (transferred["neft_beta"], transferred["freeze_bn"]) == (None, "all")


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_one_attack_alone_leaves_the_other_out(cartl: Command, runs_dir: Path, loss: str) -> None:
    attack = {"ce": "pgd", "margin": "pgd-margin"}[loss]
    where = ("--json", "--runs-dir", runs_dir)
    done = cartl("attack", "target", "--pgd-steps", 1, "--attack", attack, *where)
    found = json.loads(done.out)
    other = {"ce": "margin", "margin": "ce"}[loss]
    assert found[f"robust_accuracy_{loss}"] == found["robust_accuracy"]
    assert found[f"robust_accuracy_{other}"] is None


def test_a_curve_that_begins_at_eps_zero_begins_at_clean_accuracy(
    cartl: Command, runs_dir: Path
) -> None:
    done = cartl(
        *("attack", "source", "--eps", "0,8/255", "--pgd-steps", 2, "--final-iterate", "--json"),
        *("--runs-dir", runs_dir),
    )
    found = json.loads(done.out)
    first = found["by_eps"][0]
    assert first["eps"] == 0
    clean = found["clean_accuracy"]
    assert first["robust_accuracy"] == first["final_iterate_accuracy"] == clean


def test_more_restarts_never_raise_robust_accuracy(cartl: Command, runs_dir: Path) -> None:
    accuracies = []
    for restarts in (1, 3):
        done = cartl(
            *("attack", "source", "--eps", "4/255", "--pgd-steps", 2, "--restarts", restarts),
            *("--json", "--runs-dir", runs_dir),
        )
        accuracies.append(json.loads(done.out)["robust_accuracy"])
    assert accuracies[1] <= accuracies[0]


def test_settings_without_effect_are_told(cartl: Command, runs_dir: Path) -> None:
    place = ("--runs-dir", runs_dir, "--limit", 20, "--checks", "off")
    done = cartl("attack", "source", "--attack", "fgsm", "--pgd-steps", 3, "--queries", 5, *place)
    for flag in ("--pgd-steps", "--queries"):
        assert f"note: {flag} has no effect with --attack fgsm" in done.err
    told = " ".join(done.out.split())
    assert "3 steps" not in told
    assert "restarts" not in told
    queried = ("attack", "source", "--attack", "pgd,square", "--pgd-steps", 2, "--queries", 5)
    assert "has no effect" not in cartl(*queried, *place).err
    done = cartl("transfer", "--runs-dir", runs_dir, *TINY_TRANSFER.split(), "--milestones", 1)
    assert "note: --milestones has no effect with --schedule onecycle" in done.err


def test_own_images_go_the_whole_way(cartl: Command, image_folder: ImageFolder) -> None:
    folder = image_folder(("a", "b"), train=8, test=4, mode="L", size=(28, 28))
    tiny = ("--epochs", 1, "--batch-size", 8)
    done = cartl(
        *("pretrain", "--dataset", folder, "--arch", "wrn-10-1", "--k", 2, "--pgd-steps", 1, *tiny)
    )
    assert done.code == 0
    assert "24 of 24 images were grayscale, made RGB" in done.err
    assert "24 of 24 images were resized to 32x32" in done.err
    assert "n = 8 test images of images" in " ".join(done.out.split())
    done = cartl("transfer", "--dataset", folder, *tiny)
    assert done.code == 0
    assert "source and target use the same data set" in done.err
    done = cartl("attack", "--pgd-steps", 1)
    assert done.code == 0


def test_natural_training_and_another_k_are_said(cartl: Command, runs_dir: Path) -> None:
    done = cartl("pretrain", *TINY_PRETRAIN.split(), "--method", "natural", "--json")
    assert done.code == 0
    where = ("--source", runs_dir / "source")
    done = cartl("transfer", *where, "--k", 4, *TINY_TRANSFER.split())
    assert "its feature distance was minimised for k=3, you use k=4" in done.err
    done = cartl("transfer", *where, "--k", 5, *TINY_TRANSFER.split())
    assert "no robust block is kept" in done.err


def test_describe_shows_the_blocks(cartl: Command) -> None:
    done = cartl("pretrain", "--describe", "--arch", "wrn-34-10")
    assert done.code == 0
    assert "wrn-34-10: L = 17 blocks" in done.out
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("command", "config"),
    [("pretrain", PretrainConfig), ("transfer", TransferConfig), ("attack", AttackConfig)],
)
def test_every_setting_is_a_flag_with_its_description(
    cartl: Command, monkeypatch: pytest.MonkeyPatch, command: str, config: type[PretrainConfig]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = " ".join(cartl(command, "--help").out.split())
    for name, field in config.model_fields.items():
        assert (f"--{name.replace('_', '-')} " in shown) != is_positional(field)
        assert str(field.description) in shown


def test_help_and_version_load_no_torch() -> None:
    code = (
        "import sys, cartl_cli.app as a\n"
        "sys.argv = ['cartl', sys.argv[1]]\n"
        "try: a.main()\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "assert 'torch' not in sys.modules"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", code, flag], capture_output=True, text=True, check=True
        )
        assert "cartl" in done.stdout


def test_an_attack_loads_little_beside_torch(runs_dir: Path) -> None:
    code = (
        "import sys, torch, cartl_cli.app as a\n"
        "torchs = set(sys.modules)\n"
        "sys.argv = ['cartl', *sys.argv[1:]]\n"
        "try: a.main()\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "print('LOADED', *sorted(set(sys.modules) - torchs))"
    )
    wanted = "attack target --attack fgsm --limit 8 --checks off --force --runs-dir"
    command = [sys.executable, "-c", code, *wanted.split(), str(runs_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = done.stdout.split("LOADED ")[1].split()
    assert "cartl_cli.core.attacks.judged_pgd" in loaded
    assert not {"torchvision", "torch._dynamo", "torch.export", "sympy", "matplotlib"} & {*loaded}


def test_version_and_module_entry() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cartl_cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cartl {__version__}\n"


def test_output_without_a_terminal_has_no_escapes(cartl: Command, runs_dir: Path) -> None:
    done = cartl("attack", "target", "--pgd-steps", 1, "--runs-dir", runs_dir)
    assert "\x1b" not in done.out + done.err


def test_debug_shows_the_traceback(cartl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from cartl_cli.app import main
    from cartl_cli.core.errors import UsageError

    assert "Traceback" not in cartl("pretrain", "--k", "99").err
    monkeypatch.setattr(sys, "argv", ["cartl", "pretrain", "--k", "99", "--debug"])
    with pytest.raises(UsageError):
        main()


def test_augmentations_are_given_as_a_list(cartl: Command) -> None:
    done = cartl("pretrain", "--describe", "--augment", "crop,flap")
    assert done.code == 2
    assert "got 'flap'" in done.err
