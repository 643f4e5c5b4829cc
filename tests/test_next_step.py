"""What each command says to type next is a command that runs as it stands."""

import json
import re
import shlex
import shutil
from pathlib import Path

from tests.conftest import TINY_PRETRAIN, TINY_TRANSFER, Command, Finished, ImageFolder

SMALL = {"transfer": TINY_TRANSFER, "attack": "--pgd-steps 1 --limit 20 --attack pgd --checks off"}
"""What makes a command small; everything else of it is as it was said."""


TINY = "--arch wrn-10-1 --k 3 --epochs 1 --pgd-steps 1"


def said(done: Finished) -> list[str]:
    """The words of the one line that says what is next, the last that is said."""
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("next")]
    assert lines == done.err.splitlines()[-1:]
    assert "next" not in done.out
    program, *words = shlex.split(re.sub(r"^next.*?: ", "", lines[0]))
    assert program == "cartl"
    return words


def follow(cartl: Command, done: Finished, expected: str) -> Finished:
    words = said(done)
    assert words[0] == expected
    return cartl(*words, *SMALL.get(expected, "").split())


def test_each_line_leads_to_the_next_command(cartl: Command, image_folder: ImageFolder) -> None:
    done = cartl("pretrain", *TINY_PRETRAIN.split())
    done = follow(cartl, done, "transfer")
    done = follow(cartl, done, "attack")
    page = follow(cartl, done, "report")
    assert page.code == 0
    assert "<h1>002-transfer</h1>" in Path("002-transfer-page/report.html").read_text()
    photos = image_folder()
    done = cartl("predict", "002-transfer", photos)
    done = follow(cartl, done, "export")
    assert Path("002-transfer.pt2").exists()
    assert follow(cartl, done, "report").code == 0
    assert said(done) == ["report"]


def test_where_the_runs_are_is_said(cartl: Command, runs_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(runs_dir / "target", tmp_path / "other runs" / "target")
    place = ("--runs-dir", "other runs")
    small = SMALL["attack"].split()
    done = follow(cartl, cartl("attack", "target", *small, *place), "report")
    assert done.code == 0
    assert Path("target-page/report.html").exists()


def test_a_run_that_is_elsewhere_is_said_by_its_path(cartl: Command, runs_dir: Path) -> None:
    done = cartl("attack", runs_dir / "target", *SMALL["attack"].split())
    assert said(done)[:2] == ["report", str(runs_dir.resolve() / "target")]


def test_what_programs_read_has_no_such_line(
    cartl: Command, runs_dir: Path, image_folder: ImageFolder
) -> None:
    photos = image_folder()
    for form in ("csv", "jsonl"):
        done = cartl("predict", runs_dir / "target", photos, "--format", form)
        assert done.code == 0
        assert "next" not in done.out + done.err
    done = cartl("attack", runs_dir / "target", *SMALL["attack"].split(), "--json")
    assert json.loads(done.out)
    assert "next" not in done.err


def test_after_a_sweep_its_report_is_next(cartl: Command) -> None:
    Path("small.toml").write_text(
        "[base.pretrain]\narch = 'wrn-10-1'\nk = 3\nepochs = 1\npgd_steps = 1\n"
        "classes = 'disk,square,bar'\n"
        "[base.attack]\npgd_steps = 1\nlimit = 20\nattack = 'pgd'\nchecks = 'off'\n"
        "[base.transfer]\nepochs = 1\nclasses = 'ring,frame,grid'\n"
    )
    done = cartl("sweep", "small.toml")
    assert said(done) == ["report", "small"]
    assert follow(cartl, done, "report").code == 0


def test_a_model_of_another_size_wants_a_folder(cartl: Command, image_folder: ImageFolder) -> None:
    photos = image_folder()
    size = ("--image-size", 28, "--dataset", photos)
    words = said(cartl("pretrain", *TINY.split(), *size))
    assert words[-2:] == ["--dataset", "IMAGES"]
    done = cartl("transfer", *words[1:-1], "shapes-target")
    assert done.code == 2
    assert "shapes-target is drawn at 32 pixels, and the model takes 28; give a folder" in done.err
