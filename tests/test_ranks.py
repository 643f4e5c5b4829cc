"""Many processes train and attack as one does."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.data.batches import epoch_batches, part_of_batch
from cartl_cli.core.data.split import DataSet
from cartl_cli.core.errors import UsageError
from cartl_cli.core.models.blocks import BlockModel
from cartl_cli.core.runtime.devices import resolve_device
from cartl_cli.core.runtime.randomness import generator, uniform_noise
from cartl_cli.core.runtime.ranks import ALONE, EVERYTHING, Ranks
from cartl_cli.core.training.source_model import adversarial_training, growing
from cartl_cli.core.training.training_run import check_division
from tests import ranked, tiny
from tests.conftest import Command
from tests.processes import Sabotage, finish, run

TWO = [Ranks(rank, 2, rank) for rank in range(2)]
FOUR = [Ranks(rank, 4, rank) for rank in range(4)]


# What needs no process


def test_parts_of_a_batch_differ_by_one_and_weigh_what_they_are() -> None:
    for size in (2, 3, 4, 8):
        for count in range(2, 70):
            parts = [part_of_batch(count, Ranks(rank, size)) for rank in range(size)]
            rows = [list(range(count))[part.rows] for part in parts]
            assert sum(part.weight for part in parts) == pytest.approx(1)
            assert all(len(r) == round(count * p.share) for r, p in zip(rows, parts, strict=True))
            assert all(len(taken) >= 2 for taken in rows)
            if count >= 2 * size:
                assert [row for taken in rows for row in taken] == list(range(count))
                assert max(map(len, rows)) - min(map(len, rows)) <= 1
            else:
                assert rows == [list(range(count))] * size
    assert part_of_batch(7, ALONE) is EVERYTHING


def test_parts_of_an_epoch_are_its_images_with_the_same_augmentation(data: DataSet) -> None:
    def batches(ranks: Ranks) -> list[tuple[Tensor, Tensor]]:
        augment = ("crop", "flip", "rotate")
        return list(epoch_batches(data.train, 9, augment, 0, 1, 1, ranks))

    for whole, *parts in zip(batches(ALONE), *map(batches, FOUR), strict=True):
        if len(whole[1]) < 8:
            parts = parts[:1]
        assert torch.equal(torch.cat([images for images, _ in parts]), whole[0])
        assert torch.equal(torch.cat([labels for _, labels in parts]), whole[1])


def test_starts_of_a_part_are_those_of_the_whole_batch(images: Tensor) -> None:
    def start(chosen: Tensor, first: int) -> Tensor:
        return uniform_noise(chosen, generator(0, "training attack", 3), first)

    whole = start(images, 0)
    for size in (1, 3, 5):
        for first in range(0, 8, size):
            rows = slice(first, first + size)
            assert torch.equal(start(images[rows], first), whole[rows])


@pytest.mark.parametrize("count", [8, 6])  # divided, and taken whole by all
def test_weighted_losses_of_the_parts_are_the_loss_of_the_batch(
    model: BlockModel, images: Tensor, labels: Tensor, count: int
) -> None:
    """Loss and gradient of Eq. 4 + Eq. 10, of which one is a mean and the other a sum."""
    given = {"arch": "wrn-10-1", "k": 3, "fdm_lambda": 0.1, "pgd_steps": 1, "eps_warmup": 0}
    config = configure(PretrainConfig, given)
    images, labels = images[:count], labels[:count]
    model.eval()

    def gradient(ranks: Ranks) -> tuple[float, Tensor]:
        part = part_of_batch(count, ranks)
        objective = adversarial_training(model, config, growing(config, 10))
        weighted = part.weight * objective(images[part.rows], labels[part.rows], 4, part).loss
        (found,) = torch.autograd.grad(weighted, model.head.weight)
        return weighted.item(), found

    whole, parts = gradient(ALONE), [gradient(ranks) for ranks in FOUR]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole[0], rel=1e-5)
    assert torch.allclose(sum(found for _, found in parts), whole[1], rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu", TWO[1]) == torch.device("cpu")
    with pytest.raises(UsageError, match="'cuda:1' is one device for many processes"):
        resolve_device("cuda:1", TWO[1])
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    found = [resolve_device(name, FOUR[1]) for name in ("auto", "cuda")]
    assert found == chosen == [torch.device("cuda:1")] * 2
    with pytest.raises(UsageError, match=r"more processes than the 2 CUDA devices here; .*-node 2"):
        resolve_device("cuda", FOUR[2])


def test_synchronised_batch_norm_keeps_names_flags_and_parameters(model: BlockModel) -> None:
    model.blocks[1].eval()
    before = dict(model.named_parameters())
    flags = {name: module.training for name, module in model.named_modules()}
    names = list(model.state_dict())
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert list(model.state_dict()) == names
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(p is before[name] for name, p in model.named_parameters())


def test_synchronised_batch_norm_is_refused_on_a_cpu(cartl: Command) -> None:
    ended = cartl("pretrain", "--sync-bn", "--device", "cpu")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "cartl: error: --sync-bn: works on CUDA devices alone, not on cpu; drop it\n"
    )


# Losses of the first steps


@pytest.fixture(scope="module", params=[2, 4])
def processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The losses as each of several processes has them."""
    size, folder = request.param, tmp_path_factory.mktemp("losses")
    with ranked.together(size, ranked.write_losses, str(folder)) as children:
        assert [finish(child, folder).code for child in children] == [0] * size
    return [json.loads((folder / f"losses-{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize("method", ranked.METHODS)
def test_losses_are_those_of_one_process(processes: Any, method: str) -> None:
    alone = ranked.losses(method)
    assert len(alone) == ranked.STEPS
    assert max(alone) - min(alone) > 0.01  # something is learnt
    for found in processes:
        assert found[method] == pytest.approx(alone, abs=1e-5)


# Commands


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images, and ``runs`` of one process: ``source`` and an attack on it."""
    root = tmp_path_factory.mktemp("ranks")
    tiny.make_images(root / "images")
    (root / "work").mkdir()
    for arguments in ([*tiny.command("pretrain")[:-1], "source"], tiny.command("saving")):
        assert run(arguments, root / "work").code == 0
    return root / "work"


def errors(ended: list[Any]) -> list[str]:
    """What all processes together have to say at their end."""
    return [line for one in ended for line in one.err.splitlines() if line.startswith("cartl: ")]


def status(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())["status"]


def test_an_attack_finds_what_one_process_finds(place: Path) -> None:
    arguments = [*tiny.command("saving")[:-1], "shared", "--force"]
    ended = ranked.command(2, arguments, place)
    assert [one.code for one in ended] == [0, 0], errors(ended)
    assert (ended[1].out, ended[1].err) == ("", "")
    assert tiny.left(place / "runs" / "shared") == tiny.left(place / "runs" / "saving")
    manifest = json.loads((place / "runs" / "shared" / "manifest.json").read_text())
    assert manifest["versions"]["processes"] == "2"


def test_a_signal_to_one_saves_once_and_all_go_on_together(place: Path) -> None:
    arguments = tiny.command("pretrain")
    straight = ranked.command(2, [*arguments[:-1], "straight"], place)
    assert [one.code for one in straight] == [0, 0], errors(straight)
    stopped = ranked.command(2, arguments, place, {1: Sabotage(3, signal.SIGTERM)})
    assert [one.code for one in stopped] == [143, 143]
    said = "cartl: interrupted at step 3 of 6; go on with: cartl pretrain --resume runs/pretrain"
    assert errors(stopped) == [said]
    assert status(place / "runs" / "pretrain") == "interrupted"
    kept = sorted(path.name for path in (place / "runs" / "pretrain").glob("ckpt-*"))
    assert kept == ["ckpt-000002", "ckpt-000003"]
    resumed = ranked.command(2, tiny.resume("pretrain"), place)
    assert [one.code for one in resumed] == [0, 0], errors(resumed)
    assert tiny.left(place / "runs" / "pretrain") == tiny.left(place / "runs" / "straight")
    assert tiny.orphans(place) == []


def test_an_attack_goes_on_with_another_number_of_processes(place: Path) -> None:
    arguments = [*tiny.command("saving")[:-1], "stopped", "--force"]
    stopped = ranked.command(2, arguments, place, {0: Sabotage(1, signal.SIGTERM)})
    assert [one.code for one in stopped] == [143, 143]
    assert len(errors(stopped)) == 1
    resumed = run(["attack", "--resume", "stopped"], place)
    assert resumed.code == 0, resumed.err
    assert "not bit-exact here: processes 2 → 1" in resumed.err
    assert tiny.left(place / "runs" / "stopped") == tiny.left(place / "runs" / "saving")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_failure_ends_all_with_one_message(place: Path, rank: int) -> None:
    arguments = [*tiny.command("neft")[:-1], f"failing-{rank}"]
    ended = ranked.command(2, arguments, place, {rank: ValueError("a fault of one")})
    assert [one.code for one in ended] == [1, 1]
    said = "cartl: error: ValueError: a fault of one; run again with --debug to see where"
    assert errors(ended) == [said]
    assert "Traceback" not in "".join(one.err for one in ended)
    assert status(place / "runs" / f"failing-{rank}") == "failed"


def test_one_killed_process_ends_all_with_one_message(place: Path) -> None:
    arguments = [*tiny.command("neft")[:-1], "killed"]
    ended = ranked.command(2, arguments, place, {1: "killed"})
    assert [one.code for one in ended] == [1, -9]
    go_on = "go on with: cartl transfer --resume runs/killed"
    assert errors(ended) == [f"cartl: error: one of 2 processes has ended; {go_on}"]


def test_wrong_usage_is_said_once(place: Path) -> None:
    for arguments, said in {
        "sweep table-2": "sweep: is one process; start it without torchrun",
        "pretrain --epochs 0": "--epochs: must be >= 1, got '0'",
        "pretrain --dataset ../images --device cpu --batch-size 3": (
            "--batch-size: 3 images cannot be divided over 2 processes; use 4 or more"
        ),
    }.items():
        ended = ranked.command(2, arguments.split(), place)
        assert [one.code for one in ended] == [2, 2]
        assert errors(ended) == [f"cartl: error: {said}"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"method": "fast"}, "--method fast: one process alone; use at, trades or natural"),
        ({"method": "free"}, "--method free: one process alone"),
        ({"awp_gamma": 0.005}, "--awp-gamma: one process alone; drop it"),
    ],
)
def test_what_cannot_be_divided_is_refused(setting: dict[str, object], said: str) -> None:
    config, cpu = configure(PretrainConfig, setting), torch.device("cpu")
    check_division(config, ALONE, cpu)
    with pytest.raises(UsageError, match=said):
        check_division(config, Ranks(1, 2, 1), cpu)


GROUP_ENDS = """
import weakref
from torch import distributed
from cartl_cli.core.runtime.ranks import joined
with joined():
    import torchvision
    group = weakref.ref(distributed.group.WORLD)
    assert group() is not None
assert group() is None
"""


def test_nothing_keeps_the_group_and_its_threads_after_its_end() -> None:
    """A thread of it that ends with the interpreter can abort the process."""
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "PATH": "/usr/bin:/bin"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    root = Path(__file__).parent.parent
    script = [sys.executable, "-c", GROUP_ENDS]
    done = subprocess.run(script, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torchrun_itself(place: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    arguments = [*tiny.command("attack")[:-1], "by-torchrun", "--force", "--json"]
    root = str(Path(__file__).parent.parent)
    environment = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    environment["XDG_CACHE_HOME"] = str(place.parent / "cache")
    done = subprocess.run(
        [*torchrun, "cartl_cli", *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["attack"] == "by-torchrun"
    outcomes = [
        place / "runs" / name / "outcomes.safetensors" for name in ("by-torchrun", "saving")
    ]
    assert outcomes[0].read_bytes() == outcomes[1].read_bytes()
