"""Nothing saved is ever lost: by refused operations, by power cuts, by missing syncs."""

import errno
from pathlib import Path

import pytest

from tests import tiny
from tests.crashes import Undisturbed, call, fault, power_cuts, sync_sites, undisturbed
from tests.disks import FAULTS, MODELS, FaultyDisk, Survives, disk

NAMES = ("pretrain", "neft", "attack", "saving")


@pytest.fixture(scope="module")
def undisturbed_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Undisturbed]:
    """The commands when nothing goes wrong, after a source run that they find."""
    root = tmp_path_factory.mktemp("crashes")
    tiny.make_images(root / "images")
    (root / "base").mkdir()
    code, said = call([*tiny.command("pretrain")[:-1], "source"], root / "base")
    assert code == 0, said
    base = root / "base" / "runs"
    before = dict.fromkeys(NAMES, base) | {"pretrain": root / "nothing"}
    return {name: undisturbed(name, before[name], root / name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("error", "lasting"), FAULTS, ids=["C38", "C40", "C39"])
def test_a_refused_operation_loses_nothing(
    undisturbed_runs: dict[str, Undisturbed], name: str, error: int, lasting: bool
) -> None:
    """Every 17th operation here; ``benchmarks.reliability`` refuses each of them."""
    run = undisturbed_runs[name]
    tried = 0
    for number in range(1 + FAULTS.index((error, lasting)), 10_000, 17):
        wrong = fault(run, run.place.with_name(f"{name}-{error}-{number}"), number, error, lasting)
        if wrong is None:
            break
        assert wrong == [], f"operation {number}"
        tried += 1
    assert tried > 3


@pytest.mark.parametrize("survives", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_a_power_cut_loses_nothing(
    undisturbed_runs: dict[str, Undisturbed], name: str, survives: Survives, tmp_path: Path
) -> None:
    cuts = list(power_cuts(undisturbed_runs[name], tmp_path, survives))
    assert len(cuts) > 50
    assert [wrong for wrong in cuts if wrong] == []


def test_each_fsync_is_needed(undisturbed_runs: dict[str, Undisturbed], tmp_path: Path) -> None:
    """Take away one fsync of the product at a time: the model of the page cache sees each."""
    run = undisturbed_runs["pretrain"]
    sites = sync_sites(run)
    assert len(sites) == 6
    for number, site in enumerate(sites):
        wrong = [
            found
            for survives in MODELS
            for found in power_cuts(run, tmp_path / f"{number}-{survives[:4]}", survives, site)
            if found
        ]
        assert wrong, f"nothing is lost without: {site}"


def test_c38_a_full_disk_is_told_with_what_is_kept(
    undisturbed_runs: dict[str, Undisturbed], tmp_path: Path
) -> None:
    run = undisturbed_runs["pretrain"]
    place = tiny.scene(run.before, run.place.with_name("full"))
    last_save = len(run.log) - 30
    with disk(FaultyDisk(last_save, errno.ENOSPC, lasting=True)):
        code, said = call(tiny.command("pretrain"), place)
    assert code == 1
    line = said.splitlines()[-1]
    assert "cartl: error: cannot save step" in line
    assert "No space left on device" in line
    assert "is kept; make room, then go on with: cartl pretrain --resume runs/pretrain" in line


def test_a_fault_during_the_recovery_loses_nothing_either(
    undisturbed_runs: dict[str, Undisturbed],
) -> None:
    run = undisturbed_runs["pretrain"]
    place = tiny.scene(run.before, run.place.with_name("twice"))
    with disk(FaultyDisk(80, errno.ENOSPC, lasting=True)):
        assert call(tiny.command("pretrain"), place)[0] == 1
    for number in (1, 5, 20, 40):
        with disk(FaultyDisk(number, errno.ENOSPC, lasting=True)):
            assert call(tiny.resume("pretrain"), place)[0] == 1
    assert call(tiny.resume("pretrain"), place)[0] == 0
    assert tiny.left(place / "runs" / "pretrain") == run.left
    assert tiny.orphans(place) == []


def test_training_here_and_there_is_the_same(undisturbed_runs: dict[str, Undisturbed]) -> None:
    """The comparisons above rest on this: a command leaves the same bytes every time."""
    run = undisturbed_runs["neft"]
    again = undisturbed("neft", run.before, run.place.with_name("again"))
    assert again.left == run.left
