"""An executor runs the points: each once, after what it needs; a failure stays where it is."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cartl_cli.core import storage
from cartl_cli.core.config import PretrainConfig
from cartl_cli.core.runs.reader import read_run
from cartl_cli.core.sweeps.executor import (
    State,
    ended_state,
    execute,
    local,
    log_path,
    stored_state,
)
from cartl_cli.core.sweeps.grid import plan
from cartl_cli.core.sweeps.points import Point, Sweep, point_id, read_sweep
from cartl_cli.core.sweeps.spec import parse_spec
from tests import tiny
from tests.processes import Ended, finish, run, start
from tests.reported import Runs
from tests.terminals import on_terminal, read_until

TRAINED = """
dataset = "../images"
batch_size = 4
epochs = 2
lr = 0.05
save_every = "1"
device = "cpu"
"""
SPEC = f"""
[base.pretrain]{TRAINED}
image_size = 8
arch = "wrn-10-1"
k = 3
pgd_steps = 2
fdm_lambda = 0.01

[base.transfer]{TRAINED}

[base.attack]
attack = ["pgd", "pgd-margin"]
pgd_steps = 2
batch_size = 4
eps = "2/255"
save_every = "1"
checks = "off"
device = "cpu"

[methods.neft.transfer]
neft_beta = 0.4
freeze_bn = "affine"

[methods.vanilla.transfer]
freeze_bn = "none"
"""
PATIENCE = 400  # seconds for a sweep of a few processes, on a busy machine
SWEEP = ["sweep", "mine.toml", "--jobs", "2", "--json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images, and ``done/`` with a finished sweep."""
    root = tmp_path_factory.mktemp("sweep")
    tiny.make_images(root / "images")
    folder = scene(root, "done")
    done = swept(folder)
    assert done.code == 0, done.err
    assert json.loads(done.out)["done"] == 5
    return root


@pytest.fixture
def folder(place: Path, tmp_path: Path) -> Path:
    """A copy of the finished sweep, to be spoiled."""
    return Path(shutil.copytree(place / "done", place / tmp_path.name))


def scene(root: Path, name: str, spec: str = SPEC) -> Path:
    folder = root / name
    folder.mkdir()
    (folder / "mine.toml").write_text(spec)
    return folder


def swept(folder: Path, arguments: list[str] = SWEEP) -> Ended:
    return finish(start(arguments, folder), folder, PATIENCE)


def points(folder: Path) -> dict[str, Point]:
    """The points of the stored sweep by kind and method."""
    sweep = read_sweep(folder / "runs" / "sweeps" / "mine.json")
    return {f"{point.kind} {point.labels['method']}": point for point in sweep.points}


def changed_runs(before: dict[str, Any], folder: Path) -> set[str]:
    now = stamps(folder)
    return {name for name in now if before.get(name) != now[name]}


def stamps(folder: Path) -> dict[str, Any]:
    return {
        path.parent.name: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in (folder / "runs").glob("*/manifest.json")
    }


def edit(folder: Path, point: Point, **changes: object) -> None:
    path = folder / "runs" / point.run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Real runs


def test_a_sweep_gives_what_single_commands_give(place: Path) -> None:
    single = scene(place, "single")
    source = [*tiny.command("pretrain")[:-1], "source"]
    attack = [word if word != "source" else "neft" for word in tiny.command("attack")]
    for arguments in (source, tiny.command("neft"), tiny.command("vanilla"), attack):
        done = run(arguments, single)
        assert done.code == 0, done.err
    found = points(place / "done")
    for name, alone in (
        ("pretrain at+fdm", "source"),
        ("transfer cartl", "neft"),
        ("transfer vanilla", "vanilla"),
        ("attack cartl", "attack"),
    ):
        swept = tiny.left(place / "done" / "runs" / found[name].run)
        assert swept == tiny.left(single / "runs" / alone)
    assert tiny.orphans(place / "done") == []


def test_a_sweep_starts_from_the_run_that_its_spec_names(place: Path) -> None:
    """The source run is in another folder; the sweep makes what one with its own source makes."""
    own = points(place / "done")
    spec = SPEC[SPEC.index("[base.transfer]") : SPEC.index("[methods.vanilla")]
    source = f"../done/runs/{own['pretrain at+fdm'].run}"
    folder = scene(place, "named", spec.replace("epochs", f'source = "{source}"\nepochs', 1))
    done = swept(folder)
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert shown["runs"] == {"pretrain": 0, "transfer": 1, "attack": 1}
    assert shown["points"][0]["needs"] is None
    found = points(folder)
    for name, point in found.items():
        made = tiny.left(folder / "runs" / point.run)
        assert made == tiny.left(place / "done" / "runs" / own[name].run)
    before = stamps(folder)
    again = swept(folder)
    assert json.loads(again.out)["done"] == 2
    assert changed_runs(before, folder) == set()
    report = run(["report", "mine", "--runs-dir", "named/runs", "--json"], place)
    (row,) = json.loads(report.out)["results"]
    assert row["source_data"] == str(place / "images")
    transfer = found["transfer cartl"]
    recorded = read_run(folder / "runs" / transfer.run).source.model_dump()
    edit(folder, transfer, source=recorded | {"sha256": "0" * 64})
    state = stored_state(transfer, folder / "runs")
    assert "holds a run with other settings" in state.reason


def test_s18_a_finished_sweep_repeats_nothing(folder: Path) -> None:
    before = stamps(folder)
    done = swept(folder)
    assert done.code == 0, done.err
    assert "5 done" in done.err
    assert changed_runs(before, folder) == set()
    shown = json.loads(done.out)
    assert [point["status"] for point in shown["points"]] == ["done"] * 5
    assert all(point["clean_accuracy"] is not None for point in shown["points"])


def test_s18_s30_s40_s41_a_sweep_goes_on_where_it_was_cut(folder: Path, place: Path) -> None:
    """Moved elsewhere, with a crashed transfer, a lost attack and a damaged plan."""
    found = points(folder)
    transfer, attack = found["transfer cartl"], found["attack vanilla"]
    edit(folder, transfer, status="running", weights=None, results=None)
    shutil.rmtree(folder / "runs" / attack.run)
    (folder / "runs" / "sweeps" / "mine.json").write_text("{")
    moved = folder.with_name(folder.name + "-moved")
    folder.rename(moved)
    before = stamps(moved)
    done = swept(moved)
    assert done.code == 0, done.err
    assert changed_runs(before, moved) == {transfer.run, attack.run}
    assert points(moved) == found
    log = (moved / "runs" / "sweeps" / "mine" / f"{transfer.run}.log").read_text()
    assert "was crashed; going on" in log
    for name, point in found.items():
        straight = tiny.left(place / "done" / "runs" / point.run)
        assert tiny.left(moved / "runs" / point.run) == straight, name


def test_s14_s32_a_failure_is_that_of_its_dependents_alone(folder: Path) -> None:
    found = points(folder)
    broken = found["transfer cartl"]
    for name in ("transfer cartl", "attack cartl", "transfer vanilla", "attack vanilla"):
        shutil.rmtree(folder / "runs" / found[name].run)
    (folder / "runs" / broken.run).mkdir()  # a name that is taken
    done = swept(folder, SWEEP[:-1])
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert "1 of 5 runs failed, 1 skipped behind them" in last
    assert f"{broken.run}: " in last
    assert "see why in runs/sweeps/mine/" in last
    assert f"{found['attack cartl'].run}: skipped: what it needs, {broken.run}, failed" in done.err
    assert all(point.run in done.out for point in found.values())
    assert (folder / "runs" / found["attack vanilla"].run / "outcomes.safetensors").exists()


def test_s27_a_signal_stops_the_runs_once_and_the_same_command_goes_on(place: Path) -> None:
    spec = SPEC.replace("epochs = 2", "epochs = 100", 1)
    spec = spec.replace('save_every = "1"', 'save_every = "20"', 1)
    folder = scene(place, "stopped", spec[: spec.index("[methods.vanilla")])
    child = start(SWEEP, folder)
    wait_for(lambda: list(folder.glob("runs/pretrain-*/ckpt-*")))
    (run_folder,) = folder.glob("runs/pretrain-*")
    os.kill(child.pid, signal.SIGTERM)
    stopped = finish(child, folder, PATIENCE)
    assert stopped.code == 128 + signal.SIGTERM
    last = stopped.err.splitlines()[-1]
    assert "stopped: 0 of 3 runs done, what ran is saved; the same command goes on" in last
    manifest = json.loads((run_folder / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    assert not storage.is_locked(run_folder)
    log = (folder / "runs" / "sweeps" / "mine" / f"{run_folder.name}.log").read_text()
    assert log.count("stopping after this step") == 1
    went_on = swept(folder)
    assert went_on.code == 0, went_on.err
    log = (folder / "runs" / "sweeps" / "mine" / f"{run_folder.name}.log").read_text()
    assert "was interrupted; going on" in log
    assert json.loads(went_on.out)["done"] == 3


def test_s19_two_sweeps_do_not_run_in_one_folder(folder: Path) -> None:
    with storage.locked(folder / "runs" / "sweeps"):
        done = swept(folder)
    assert done.code == 1
    assert "another sweep is running in 'runs'; wait for it" in done.err


def test_s20_a_changed_spec_is_told_and_goes_on(folder: Path) -> None:
    (folder / "mine.toml").write_text(SPEC[: SPEC.index("[methods.vanilla")])
    before = stamps(folder)
    done = swept(folder)
    assert done.code == 0, done.err
    assert "note: sweep mine changed: 0 runs are new, 2 no longer belong to it" in done.err
    assert changed_runs(before, folder) == set()


def test_s21_an_edited_run_is_not_taken_for_another(folder: Path) -> None:
    point = points(folder)["attack cartl"]
    settings = point.config.model_dump(mode="json") | {"pgd_steps": 3}
    edit(folder, point, config=settings)
    before = stamps(folder)
    done = swept(folder)
    assert done.code == 1
    assert f"{point.run} holds a run with other settings; move it away" in done.err
    assert changed_runs(before, folder) == set()


def test_a_dry_run_says_what_is_done(folder: Path) -> None:
    shutil.rmtree(folder / "runs" / points(folder)["attack cartl"].run)
    done = swept(folder, [*SWEEP[:2], "--dry-run"])
    assert "1 source run, 2 transfers, 2 attacks (4 done, 1 waiting)" in done.out


def wait_for(seen: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < until
        time.sleep(0.05)


# The order of things, with jobs that are not processes


@dataclass
class FakeJob:
    """A job that ends with ``code`` after so many looks at it."""

    code: int
    looks: int = 2
    terminated: int = 0

    def poll(self) -> int | None:
        self.looks -= 1
        return self.code if self.looks < 0 else None

    def terminate(self) -> None:
        self.terminated += 1
        self.code, self.looks = 143, 1


@dataclass
class Fake:
    """An executor that remembers; ``codes`` are the exit codes by kind and method."""

    codes: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    most: int = 0

    def __call__(self, point: Point) -> FakeJob:
        code = self.codes.get(name_of(point), 0)
        self.jobs[name_of(point)] = FakeJob(code)
        self.most = max(self.most, sum(job.looks >= 0 for job in self.jobs.values()))
        return self.jobs[name_of(point)]


def name_of(point: Point) -> str:
    return f"{point.kind} {point.labels.get('variant') or point.labels['method']}"


def a_plan() -> Sweep:
    text = "[methods.a]\n[methods.b.transfer]\nlr = 0.3\n[methods.c.pretrain]\nfdm_lambda = 0.1"
    return plan(
        "mine", parse_spec(text.encode(), "mine"), "now", lambda config: config, Path("runs")
    )[0]


def carried_out(
    fake: Any, jobs: int, signal_now: Callable[[], int | None] = lambda: None
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The states at the end, and everything that was reported."""
    asked = mock.Mock()
    type(asked).signal = mock.PropertyMock(side_effect=signal_now)
    sweep = a_plan()
    told: list[tuple[str, str]] = []

    def state_of(point: Point, code: int) -> State:
        return State("waiting" if code == 143 else "failed" if code else "done")

    states = execute(
        sweep,
        {point.id: State("waiting") for point in sweep.points},
        state_of,
        fake,
        jobs,
        asked,
        lambda point, state: told.append((name_of(point), state.status)),
    )
    return {name_of(point): states[point.id].status for point in sweep.points}, told


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cartl_cli.core.sweeps.executor.PAUSE", 0.001)


@pytest.mark.parametrize("jobs", [1, 2, 100])
def test_every_run_is_made_once_after_what_it_needs(jobs: int) -> None:
    fake = Fake()
    states, told = carried_out(fake, jobs)
    assert set(states.values()) == {"done"}
    assert len(told) == len(set(told)) == 2 * len(states)
    assert fake.most <= jobs
    assert jobs == 1 or fake.most > 1
    for point in a_plan().points:
        needed = [name_of(other) for other in a_plan().points if other.id == point.needs]
        for name in needed:
            assert told.index((name, "done")) < told.index((name_of(point), "running"))


def test_s32_a_failed_source_run_takes_its_own_targets_along() -> None:
    states, _ = carried_out(Fake({"pretrain at": 1}), 2)
    assert states == {
        "pretrain at": "failed",
        **dict.fromkeys(("transfer a", "attack a", "transfer b", "attack b"), "skipped"),
        **dict.fromkeys(("pretrain at+fdm", "transfer c", "attack c"), "done"),
    }


def test_s27_each_job_is_told_to_stop_once() -> None:
    fake = Fake()
    looks = iter([None, None, *[signal.SIGINT] * 1000])
    states, _ = carried_out(fake, 2, lambda: next(looks))
    assert set(fake.jobs) == {"pretrain at", "pretrain at+fdm"}
    assert [job.terminated for job in fake.jobs.values()] == [1, 1]
    assert set(states.values()) == {"waiting"}


def test_what_runs_is_stopped_when_the_sweep_itself_fails() -> None:
    fake = Fake()

    def broken() -> int | None:
        if fake.jobs:
            raise RuntimeError("broken")
        return None

    with pytest.raises(RuntimeError, match="broken"):
        carried_out(fake, 2, broken)
    assert [job.terminated for job in fake.jobs.values()] == [1, 1]
    assert all(job.looks < 0 for job in fake.jobs.values())


def test_a_job_that_cannot_be_started_has_failed() -> None:
    def refusing(point: Point) -> FakeJob:
        raise OSError(24, "Too many open files")

    states, _ = carried_out(refusing, 2)
    assert states["pretrain at"] == states["pretrain at+fdm"] == "failed"
    assert states["attack c"] == "skipped"


def test_s16_a_killed_job_has_failed_and_says_so(tmp_path: Path) -> None:
    point = a_plan().points[0]
    state = ended_state(point, -signal.SIGKILL, tmp_path, tmp_path, False)
    assert state == State("failed", "killed by SIGKILL, perhaps for want of memory")
    for code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        assert ended_state(point, code, tmp_path, tmp_path, True).status == "waiting"
        assert ended_state(point, code, tmp_path, tmp_path, False).status == "failed"
    log_path(tmp_path, point).write_text("one\n\ncartl: error: out of memory; smaller\n\n")
    state = ended_state(point, 1, tmp_path, tmp_path, False)
    assert state == State("failed", "out of memory; smaller")
    assert ended_state(point, 0, tmp_path, tmp_path, False).reason == "ended without a result"


def test_s44_a_job_that_could_not_write_its_log_is_done(folder: Path) -> None:
    """Its command ends with 1: it could not print the result, which is in the run folder."""
    point = points(folder)["attack cartl"]
    before = ended_state(point, 0, folder / "runs", folder, False)
    assert before.status == "done"
    assert ended_state(point, 1, folder / "runs", folder, False) == before


def test_c62_a_sweep_goes_on_where_its_terminal_is_closed(folder: Path) -> None:
    again = points(folder)["attack cartl"]
    shutil.rmtree(folder / "runs" / again.run)
    process, terminal = on_terminal(SWEEP[:-1], folder)
    shown = read_until(terminal, "1 running")
    os.close(terminal)
    assert process.wait(PATIENCE) == 0
    assert f"running  {again.run}" in shown
    assert "-:--:-- left; 4 done, 1 running" in shown
    assert read_run(folder / "runs" / again.run).manifest.status == "completed"


def test_s31_a_run_that_another_process_writes_is_left_alone(folder: Path) -> None:
    point = points(folder)["transfer cartl"]
    edit(folder, point, status="running", weights=None, results=None)
    assert stored_state(point, folder / "runs").status == "waiting"
    with storage.locked(folder / "runs" / point.run):
        state = stored_state(point, folder / "runs")
    assert state.status == "failed"
    assert "is being written by another process; wait for it" in state.reason


def test_a_job_shares_the_cores_unless_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "cartl_cli.core.sweeps.executor.subprocess.Popen",
        lambda command, **how: seen.append((command, how)),
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    local(tmp_path, tmp_path, ["--no-download"], 3)(a_plan().points[0])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    local(tmp_path, tmp_path, [], 3)(a_plan().points[2])
    assert [how["env"]["OMP_NUM_THREADS"] for _, how in seen] == ["3", "7"]
    assert seen[0][0][-1] == "--no-download"
    assert ["--force" in command for command, _ in seen] == [False, True]
    assert all(how["process_group"] == 0 for _, how in seen)


@pytest.mark.parametrize(
    ("asked", "used", "status"), [(5000, 4000, "done"), (64, 64, "done"), (5000, 3000, "failed")]
)
def test_a_run_whose_batch_was_all_its_images_is_that_of_its_point(
    tmp_path: Path, asked: int, used: int, status: str
) -> None:
    config = PretrainConfig(batch_size=asked)
    point = Point(id=point_id("pretrain", config, None), kind="pretrain", config=config)
    run = Runs(tmp_path).pretrain(point.run, batch_size=used)
    assert run.manifest.data.train_images == 4000
    assert stored_state(point, tmp_path).status == status
