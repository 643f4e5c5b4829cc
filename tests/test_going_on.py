"""``--resume`` and ``--extend``: what is refused, what is said, and what stays as it was."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from cartl_cli.core import storage
from cartl_cli.core.config import PretrainConfig, TransferConfig
from cartl_cli.core.runs import checkpoints
from cartl_cli.core.training.training_run import attack_grown
from tests import tiny
from tests.crashes import call
from tests.processes import Sabotage, finish, run, start


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``runs`` with a source run, and a training and an attack that were interrupted."""
    root = tmp_path_factory.mktemp("going-on")
    tiny.make_images(root / "images")
    (root / "base").mkdir()
    assert call([*tiny.command("pretrain")[:-1], "source"], root / "base")[0] == 0
    for name, step in (("pretrain", 4), ("neft", 2), ("attack", 2)):
        stopped = run(tiny.command(name), root / "base", Sabotage(step, signal.SIGTERM))
        assert stopped.code == 143, stopped.err
    return root / "base" / "runs"


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return tiny.scene(template, template.parents[1] / tmp_path.name)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


Edit = Callable[[Path], object]


def edit_json(name: str, **changes: Any) -> Edit:
    def edit(runs: Path) -> None:
        content = json.loads((runs / name).read_text())
        (runs / name).write_text(json.dumps(content | changes))

    return edit


def damage(*names: str) -> Edit:
    """Cut the last bytes off some files."""

    def edit(runs: Path) -> None:
        for name in names:
            path = runs / name
            path.write_bytes(path.read_bytes()[:-7])

    return edit


def another_image(runs: Path) -> None:
    """The same data set with one image replaced."""
    target = runs.parents[1] / f"images-{runs.parent.name}" / "images"
    shutil.copytree(runs.parents[1] / "images", target)
    shutil.copy(target / "train" / "light" / "0.png", target / "train" / "dark" / "0.png")
    for name in ("pretrain", "neft"):
        path = runs / name / "manifest.json"
        content = json.loads(path.read_text())
        content["config"]["dataset"] = str(target)
        path.write_text(json.dumps(content))


def foreign_checkpoints(runs: Path) -> None:
    for path in (runs / "pretrain").glob("ckpt-*/checkpoint.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"run": "ab12ab12ab12"}))


NEWEST, OLDER = "pretrain/ckpt-000004", "pretrain/ckpt-000003"
PRETRAIN = ["pretrain", "--resume", "pretrain"]
NEFT = ["transfer", "--resume", "neft"]
ATTACK = ["attack", "--resume", "attack"]


def nothing(runs: Path) -> None:
    """The interrupted run as it is."""


REFUSED: list[Any] = [
    ("T23", ["pretrain", "--resume", "nothing"], nothing, 2, "--resume: no such run: 'nothing'"),
    (
        "T23-kind",
        ["transfer", "--resume", "pretrain"],
        nothing,
        2,
        "is a pretrain run, not transfer",
    ),
    ("T25-lr", [*PRETRAIN, "--lr", "0.01"], nothing, 2, "differs from the run: --lr 0.05 -> 0.01"),
    (
        "T25-two",
        [*PRETRAIN, "--k", "2", "--fdm-lambda", "1"],
        nothing,
        2,
        "--fdm-lambda 0.01 -> 1.0, --k 3 -> 2; drop it",
    ),
    ("T25-batch", [*NEFT, "--batch-size", "6"], nothing, 2, "--batch-size 4 -> 6"),
    ("T25-preset", [*PRETRAIN, "--preset", "paper"], nothing, 2, "differs from the run"),
    ("T25-name", [*PRETRAIN, "--name", "x"], nothing, 2, "drop --name or --resume"),
    ("T26", [*PRETRAIN, "--epochs", "3"], nothing, 2, "the run has 2, you gave 3; add --extend"),
    ("T26-less", [*PRETRAIN, "--epochs", "1"], nothing, 2, "--epochs 2 -> 1"),
    ("T26-alone", ["pretrain", "--extend"], nothing, 2, "--extend: goes with --resume"),
    (
        "T30",
        PRETRAIN,
        damage(f"{NEWEST}/model.safetensors", f"{OLDER}/checkpoint.json"),
        1,
        "no usable checkpoint",
    ),
    ("T31", PRETRAIN, foreign_checkpoints, 1, "checkpoint belongs to run ab12ab12ab12, not"),
    ("T32", PRETRAIN, another_image, 1, "the data changed since run 'pretrain' began"),
    ("T32-transfer", NEFT, another_image, 1, "the data changed since run 'neft' began"),
    ("T13", PRETRAIN, edit_json("pretrain/manifest.json", status="diverged"), 1, "would again"),
    ("X26", [*NEFT, "--source", "other"], nothing, 2, "--source source -> other"),
    ("A27-eps", [*ATTACK, "--eps", "3/255"], nothing, 2, "differs from the run: --eps (0.0078"),
    ("A27-n", [*ATTACK, "--limit", "4"], nothing, 2, "--limit None -> 4"),
    (
        "A27-attack",
        [*ATTACK, "--attack", "pgd"],
        nothing,
        2,
        "--attack ('pgd', 'pgd-margin') -> ('pgd',)",
    ),
    ("A27-run", ["attack", "other", "--resume", "attack"], nothing, 2, "source -> other"),
]


@pytest.mark.parametrize(
    ("arguments", "edit", "code", "says"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED]
)
def test_refused(folder: Path, arguments: list[str], edit: Edit, code: int, says: str) -> None:
    shutil.copytree(folder / "runs" / "source", folder / "runs" / "other")
    edit(folder / "runs")
    before = contents(folder / "runs")
    found, said = call(arguments, folder)
    assert (found, said.count("cartl: error: ")) == (code, 1), said
    assert says in said
    after = contents(folder / "runs")
    status = {name for name in before if name.endswith("manifest.json")}
    assert {n: d for n, d in after.items() if n not in status} == {
        n: d for n, d in before.items() if n not in status
    }


def test_t29_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(
    folder: Path, template: Path
) -> None:
    straight = tiny.scene(template, folder.with_name("straight"))
    assert run(PRETRAIN, straight).code == 0
    for number, name in enumerate(("model.safetensors", "train.safetensors", "checkpoint.json")):
        at = tiny.scene(template, folder.with_name(f"damaged-{number}"))
        damage(f"{NEWEST}/{name}")(at / "runs")
        ended = run(PRETRAIN, at)
        assert ended.code == 0, ended.err
        assert "ckpt-000004 is damaged (" in ended.err
        assert "going on from step 3" in ended.err
        assert tiny.left(at / "runs" / "pretrain") == tiny.left(straight / "runs" / "pretrain")


def test_t24_a_completed_run_stays_as_it_is(folder: Path) -> None:
    before = contents(folder / "runs")
    code, said = call(["pretrain", "--resume", "source"], folder)
    assert code == 0
    assert "run source is already complete" in said
    assert contents(folder / "runs") == before


def test_t26_extend_trains_longer_and_shows_the_schedule(folder: Path) -> None:
    before = contents(folder / "runs" / "source")
    code, said = call(["pretrain", "--resume", "source", "--epochs", "4", "--extend"], folder)
    assert code == 0, said
    assert "the model after epoch 2 stays: runs/source/epochs-2" in said
    kept = contents(folder / "runs" / "source" / "epochs-2")
    assert kept.keys() == {"manifest.json", "metrics.jsonl", "model.safetensors"}
    assert kept.items() <= before.items()
    assert "going on after step 6 of 12, learning rate 0.0" in said
    manifest = json.loads((folder / "runs" / "source" / "manifest.json").read_text())
    assert (manifest["status"], manifest["config"]["epochs"]) == ("completed", 4)
    lines = (folder / "runs" / "source" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    code, said = call(["attack", "runs/source/epochs-2", "--pgd-steps", "1"], folder)
    assert code == 0, said
    longer = ["pretrain", "--resume", "runs/source/epochs-2", "--epochs", "4", "--extend"]
    code, said = call(longer, folder)
    assert (code, "run 'epochs-2' has no state to go on from" in said) == (1, True), said


def test_t27_t28_other_versions_are_said(folder: Path) -> None:
    edit_json(
        "pretrain/manifest.json",
        versions={"cartl": "0.0.9", "torch": "2.10.0", "device": "cuda:0", "threads": "64"},
    )(folder / "runs")
    code, said = call(PRETRAIN, folder)
    assert code == 0
    assert "note: not bit-exact here: cartl 0.0.9 → " in said
    assert "device cuda:0 → cpu" in said
    assert "threads 64 → " in said


@pytest.mark.parametrize("every", ["0", "0m", "-1", "10s", "1e3"])
def test_t33_an_interval_is_minutes_or_steps(folder: Path, every: str) -> None:
    code, said = call(["pretrain", f"--save-every={every}"], folder)
    assert code == 2
    assert "--save-every: must be" in said


def test_save_every_may_change_and_is_obeyed(folder: Path) -> None:
    code, said = call([*NEFT, "--save-every", "5m"], folder)
    assert code == 0, said
    seen: list[int] = []
    real = checkpoints.save

    def save(run_: Any, position: Any, tensors: Any) -> None:
        seen.append(position.step)
        real(run_, position, tensors)

    arguments = ["4" if word == "1" else word for word in tiny.command("vanilla")]
    with mock.patch.object(checkpoints, "save", save):
        assert call(arguments, folder)[0] == 0
    assert seen == [4, 6]  # and after the last step


def test_an_unfinished_run_with_the_same_settings_is_pointed_out(folder: Path) -> None:
    code, said = call([*tiny.command("pretrain")[:-1], "again"], folder)
    assert code == 0
    assert "note: run pretrain has the same settings; interrupted; go on with: " in said
    code, said = call(tiny.command("pretrain"), folder)
    assert code == 2
    assert "already holds a run, interrupted; go on with: cartl pretrain --resume runs/pret" in said


def test_c19_a_killed_run_is_told_and_goes_on(folder: Path) -> None:
    assert run(tiny.command("vanilla"), folder, Sabotage(2, signal.SIGKILL)).code == -9
    went_on = run(["transfer", "--resume", "vanilla"], folder)
    assert went_on.code == 0
    assert "run vanilla was crashed; going on" in went_on.err
    assert "going on after step 2 of 6" in went_on.err


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["C41", "C43", "C44"],
)
def test_a_signal_stops_after_the_step(folder: Path, sent: int, code: int) -> None:
    stopped = run(tiny.command("vanilla"), folder, Sabotage(2, sent))
    assert stopped.code == code
    assert stopped.err.splitlines()[-1].startswith("cartl: interrupted at step 2 of 6; go on with")
    assert stopped.out == ""
    manifest = json.loads((folder / "runs" / "vanilla" / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"


def test_a_signal_saves_however_long_the_interval_is(folder: Path) -> None:
    arguments = tiny.command("vanilla")
    arguments[arguments.index("--save-every") + 1] = "999m"
    assert run(arguments, folder, Sabotage(2, signal.SIGTERM)).code == 143
    went_on = run(["transfer", "--resume", "vanilla"], folder)
    assert went_on.code == 0
    assert "going on after step 2 of 6" in went_on.err


def test_c42_the_second_signal_ends_at_once(folder: Path) -> None:
    stopped = run(tiny.command("vanilla"), folder, Sabotage(4, signal.SIGINT, times=2))
    assert stopped.code == 130
    assert "interrupted at step" not in stopped.err
    checkpoints = sorted(path.name for path in (folder / "runs" / "vanilla").glob("ckpt-*"))
    assert checkpoints == ["ckpt-000002", "ckpt-000003"]
    assert run(["transfer", "--resume", "vanilla"], folder).code == 0


def test_two_starts_at_once_one_run(folder: Path) -> None:
    children = [start(PRETRAIN, folder) for _ in range(3)]
    ended = [finish(child, folder) for child in children]
    codes = sorted(end.code for end in ended)
    assert codes[0] == 0
    for end in ended:
        assert end.code == 0 or "in use by another cartl process" in end.err
    assert json.loads((folder / "runs/pretrain/manifest.json").read_text())["status"] == "completed"


def test_a30_two_attacks_at_once_have_folders_of_their_own(folder: Path) -> None:
    arguments = tiny.command("attack")[:-2]
    children = [start([*arguments, "--seed", str(seed)], folder) for seed in (1, 2, 3)]
    ended = [finish(child, folder) for child in children]
    assert [end.code for end in ended] == [0, 0, 0], ended
    found = sorted(path.parent.name for path in folder.glob("runs/*-attack/outcomes.safetensors"))
    assert len(found) == 3


def test_c37_a_disk_too_small_is_refused_before_the_work(folder: Path) -> None:
    shutil.rmtree(folder / "runs" / "vanilla", ignore_errors=True)
    usage = mock.Mock(return_value=mock.Mock(free=300_000))
    with mock.patch("cartl_cli.core.storage.shutil.disk_usage", usage):
        code, said = call(tiny.command("vanilla"), folder)
    assert code == 1
    assert "not enough disk space in 'runs': need about 2 MB, 1 MB free" in said
    assert not (folder / "runs" / "vanilla").exists()


def test_c39_a_limit_of_file_size_is_told(folder: Path) -> None:
    """RLIMIT_FSIZE gives EFBIG, as a quota would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with mock.patch.object(storage, "PAUSES", (0,)):
            code, said = call(tiny.command("vanilla"), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert "cannot save step 1: cannot write " in said
    assert "File too large; nothing was saved before" in said
    assert tiny.orphans(folder) == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("x"), "out of memory at batch size 4; start a new run with --ba"),
        (
            torch.AcceleratorError("CUDA error: gone"),
            "device failed after step 0 (CUDA error: gone)",
        ),
    ],
    ids=["C18", "C20"],
)
def test_a_device_that_fails_is_told(folder: Path, error: Exception, says: str) -> None:
    with mock.patch("cartl_cli.core.training.loop.epoch_batches", side_effect=error):
        code, said = call(tiny.command("vanilla"), folder)
    assert code == 1
    assert says in said
    manifest = json.loads((folder / "runs" / "vanilla" / "manifest.json").read_text())
    assert manifest["status"] == "failed"


def test_c50_checkpoints_go_by_step_never_by_date(folder: Path) -> None:
    runs = folder / "runs"
    for number, path in enumerate(sorted((runs / "pretrain").glob("ckpt-*"), reverse=True)):
        os.utime(path, (4e9 + number, 4e9 + number))  # the older, the further in the future
    (runs / NEWEST).rename(runs / "pretrain" / "ckpt-000001")
    code, said = call(PRETRAIN, folder)
    assert code == 0
    assert "going on after step 4 of 6" in said


def test_r41_leftovers_are_ignored_and_swept(folder: Path) -> None:
    left = folder / "runs" / "pretrain" / "ckpt-000009.tmp-77-0123abcd"
    shutil.copytree(folder / "runs" / NEWEST, left)
    assert call(PRETRAIN, folder)[0] == 0
    assert not left.exists()


def test_an_old_checkpoint_stays_until_the_new_one_reads_back(folder: Path) -> None:
    real = storage.commit_folder

    def corrupting(path: Path, contents: dict[str, bytes]) -> None:
        spoiled = {name: data[:-1] + b"!" for name, data in contents.items() if "safe" in name}
        real(path, {**contents, **spoiled})

    before = {path.name for path in (folder / "runs" / "pretrain").glob("ckpt-*")}
    with mock.patch.object(storage, "commit_folder", corrupting):
        code, said = call(PRETRAIN, folder)
    assert code == 1
    assert "sha256 differs" in said.splitlines()[-1]
    assert before <= {path.name for path in (folder / "runs" / "pretrain").glob("ckpt-*")}
    assert call(PRETRAIN, folder)[0] == 0


def test_what_the_attack_has_grown_to_is_that_of_the_longer_training() -> None:
    trained = PretrainConfig(eps_warmup=0.5)
    assert attack_grown(trained, 6, 12) == 1
    assert attack_grown(trained, 6, 24) == pytest.approx(7 / 12)
    assert attack_grown(trained.model_copy(update={"method": "natural"}), 0, 24) == 1
    for method, part in (("natural", 1), ("latent", 7 / 12), ("fast", 7 / 12)):
        tuned = TransferConfig.model_construct(method=method, eps_warmup=0.5)
        assert attack_grown(tuned, 6, 24) == pytest.approx(part)
