"""The executor ``ray``: what a real cluster of two nodes ends in, and what is refused before."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cartl_cli.core import storage
from cartl_cli.core.errors import CartlError, UsageError
from cartl_cli.core.sweeps import ray_executor
from cartl_cli.core.sweeps.grid import plan
from cartl_cli.core.sweeps.ray_executor import Node, Sight, Task, carry_out, judge, with_room
from cartl_cli.core.sweeps.spec import parse_spec
from tests import tiny
from tests.clusters import ROOT, Cluster, cluster
from tests.conftest import Command
from tests.processes import finish, start
from tests.test_sweep_runs import PATIENCE, SPEC, SWEEP, points, scene, wait_for

ray = pytest.importorskip("ray")

CHAIN = SPEC[: SPEC.index("[methods.vanilla")]
LONG = CHAIN.replace("epochs = 2", "epochs = 60", 1).replace('"1"', '"20"', 1)


def begun(nodes: Cluster, *names: str) -> tuple[str, int]:
    """Wait for a run of the only chain under way on a node: the node and the process."""

    def found() -> Iterator[tuple[str, int]]:
        for name in names:
            for number, words in nodes.processes(name).items():
                if "cartl_cli.tethered" in words:
                    yield name, number

    wait_for(lambda: next(found(), None))
    return next(found())


def told(folder: Path, run: str) -> dict[str, Any]:
    """The manifest but for what is of its time: identity, number, dates, seconds, and its seal."""
    manifest = json.loads((folder / "runs" / run / "manifest.json").read_text())
    for name in ("id", "number", "created", "seal"):
        del manifest[name]
    del manifest["results"]["seconds"]
    return dict(manifest)


def kept(run: Path) -> dict[str, str]:
    """What a run leaves, without the checkpoint before the last: where it stopped is by chance."""
    found = tiny.left(run)
    checkpoints = sorted({path.split("/")[0] for path in found if path.startswith("ckpt-")})
    return {
        path: what for path, what in found.items() if path.split("/")[0] not in checkpoints[:-1]
    }


def test_s18_s27_a_sweep_that_is_stopped_and_loses_a_node_ends_as_local(tmp_path: Path) -> None:
    tiny.make_images(tmp_path / "images")
    here, there = scene(tmp_path, "local", LONG), scene(tmp_path, "ray", LONG)
    alone = start([*SWEEP[:2], "--json"], here)
    with cluster("a", "b") as nodes:
        command = [*SWEEP[:2], "--json", "--executor", "ray", "--ray-address", nodes.address]
        stopped = nodes.run(command, there)
        begun(nodes, "a", "b")
        wait_for(lambda: list(there.glob("runs/pretrain-*/ckpt-*")))
        (folder,) = there.glob("runs/pretrain-*")
        log = there / "runs" / "sweeps" / "mine" / f"{folder.name}.log"
        stopped.send_signal(signal.SIGINT)
        out, err = stopped.communicate(timeout=PATIENCE)
        assert stopped.returncode == 128 + signal.SIGINT, err
        assert "stopped: 0 of 3 runs done, what ran is saved; the same command goes on" in err
        assert json.loads((folder / "manifest.json").read_text())["status"] == "interrupted"
        assert not storage.is_locked(folder)
        assert log.read_text().count("stopping after this step") == 1

        went_on = nodes.run(command, there)
        doomed, _ = begun(nodes, "a", "b")
        wait_for(lambda: "was interrupted; going on" in log.read_text())
        wait_for(lambda: '"running"' in (folder / "manifest.json").read_text())
        nodes.kill(doomed)
        out, err = went_on.communicate(timeout=PATIENCE)
    assert nodes.processes() == {}
    local = finish(alone, here, PATIENCE)
    assert went_on.returncode == local.code == 0, err + local.err
    assert json.loads(out)["done"] == 3
    assert f"{folder.name}: lost, going on elsewhere (try 2 of 4): Task failed because" in err
    assert "was crashed; going on" in log.read_text()
    for point in points(here).values():
        assert told(there, point.run) == told(here, point.run)
        assert kept(there / "runs" / point.run) == kept(here / "runs" / point.run)
    assert tiny.orphans(there) == []


# Refused before anything is run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--executor rya", "--executor"),
        ("--cpus 2", "--cpus: goes with --executor ray"),
        ("--ray-address auto", "--ray-address: goes with --executor ray"),
        ("--executor ray --cpus 0", "--cpus: must be >= 1"),
        ("--executor ray --gpus 2", "--gpus: must be <= 1"),
        ("--executor ray --jobs 0", "--jobs: must be >= 1"),
        ("--executor ray --ray-address ray://head:10001", "must be auto, local or HOST:PORT"),
    ],
)
def test_flags_that_make_no_sense_are_refused(cartl: Command, flags: str, message: str) -> None:
    done = cartl("sweep", "table2-shapes", *flags.split())
    assert done.code == 2
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not Path("runs").exists()


def test_without_the_package_the_extra_is_named(
    cartl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = cartl("sweep", "table2-shapes", "--executor", "ray")
    assert done.code == 2
    assert done.err == (
        "cartl: error: --executor: ray needs the package ray; pip install 'cartl[ray]'\n"
    )


def test_an_address_where_nobody_answers_is_told_at_once(cartl: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "127.0.0.1:99999", "no-such-host.invalid:6379"):
        done = cartl("sweep", "table2-shapes", "--executor", "ray", "--ray-address", address)
        assert done.code == 1
        assert f"--ray-address: no answer from '{address}'" in done.err
        assert len(done.err.splitlines()) == 1
    assert not Path("runs").exists()


def test_no_cluster_here_is_told(cartl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(ray, "init", none)
    done = cartl("sweep", "table2-shapes", "--executor", "ray")
    assert done.code == 1
    assert "no Ray cluster at 'auto' (Could not find" in done.err
    assert "start one with: ray start --head, or give --ray-address local" in done.err
    assert not Path("runs").exists()


NODES = [Node("1", "head", 0, 0), Node("2", "small", 4, 0), Node("3", "large", 64, 8)]


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"),
    [
        (1, 0, {"small": 4, "large": 64}),
        (3, 0, {"small": 1, "large": 21}),
        (8, 1, {"large": 8}),
        (16, 1, {"large": 4}),
        (1, 0.5, {"large": 16}),
        (1, 0.3, {"large": 24}),
    ],
)
def test_nodes_take_as_many_runs_as_they_have_room_for(
    cpus: int, gpus: float, room: dict[str, int]
) -> None:
    assert {node.name: n for node, n in with_room(NODES, cpus, gpus).items()} == room


@pytest.mark.parametrize(("nodes", "cpus", "gpus"), [(NODES, 65, 0), (NODES[:2], 1, 1), ([], 1, 0)])
def test_more_than_any_node_has_is_refused(nodes: list[Node], cpus: int, gpus: float) -> None:
    with pytest.raises(UsageError, match=f"--cpus {cpus} --gpus {gpus}: no node of the cluster"):
        with_room(nodes, cpus, gpus)


def test_s29_other_versions_on_a_node_are_told_and_a_folder_of_its_own_is_refused() -> None:
    here = ray_executor._versions()
    assert {"cartl", "torch", "torchvision"} == here.keys()
    same, other = Sight("token", here), Sight("token", here | {"torch": "2.10.0"})
    assert judge({NODES[1]: same}, "token", Path("runs")) == []
    (warning,) = judge({NODES[1]: same, NODES[2]: other}, "token", Path("runs"))
    assert f"node large has torch 2.10.0, here is {here['torch']}" in warning
    with pytest.raises(CartlError, match="node small does not see 'runs' as it is here; give a"):
        judge({NODES[1]: Sight("old", here)}, "token", Path("runs"))


def test_a_node_says_what_it_sees(tmp_path: Path) -> None:
    assert ray_executor.look(tmp_path / "none").token == ""
    (tmp_path / "shared").write_text("abc")
    assert ray_executor.look(tmp_path / "shared") == Sight("abc", ray_executor._versions())


# A job on the cluster, with answers of Ray that are not Ray's


class Answers:
    """What becomes of one task after another: an exit code, or an error of Ray."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: int | Exception) -> None:
        self.answers, self.submitted, self.cancelled = list(answers), 0, 0
        self.notes: list[str] = []
        monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
        monkeypatch.setattr(ray, "get", self.get)
        monkeypatch.setattr(ray, "cancel", self.cancel)
        self.task = Task(self.submit, self.notes.append, self.submit())

    def submit(self) -> int:
        self.submitted += 1
        return self.submitted

    def get(self, reference: int) -> int:
        answer = self.answers[reference - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def cancel(self, reference: int) -> None:
        self.cancelled += 1


CRASHED = ray.exceptions.WorkerCrashedError()


def test_a_lost_run_is_begun_again_and_a_failed_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Answers(monkeypatch, CRASHED, 128 + signal.SIGTERM, 0)
    assert [lost.task.poll() for _ in range(3)] == [None, None, 0]
    assert lost.notes == [
        "lost, going on elsewhere (try 2 of 4): The worker died unexpectedly while executing this "
        "task",
        "lost, going on elsewhere (try 3 of 4): its worker was told to end",
    ]
    for code in (1, 2, -signal.SIGKILL):
        failed = Answers(monkeypatch, code)
        assert failed.task.poll() == code
        assert failed.submitted == 1


def test_s17_a_run_that_is_lost_again_and_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = ray.exceptions.OutOfMemoryError("Task was killed: memory low.\nMore of it")
    lost = Answers(monkeypatch, CRASHED, memory, CRASHED, CRASHED)
    assert [lost.task.poll() for _ in range(4)] == [None, None, None, 1]
    assert lost.submitted == 4
    assert lost.notes[-1].startswith("gave up after 4 tries: The worker died unexpectedly")
    assert lost.notes[-1].endswith("; Task was killed: memory low.")


def test_a_run_that_is_told_to_end_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, code in (
        (CRASHED, 143),
        (143, 143),
        (0, 0),
        (ray.exceptions.TaskCancelledError(), 143),
    ):
        job = Answers(monkeypatch, answer)
        job.task.terminate()
        assert job.task.poll() == code
        assert (job.submitted, job.cancelled) == (1, 1)


def test_what_goes_wrong_on_a_node_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ray.exceptions.RayTaskError("carry_out", "Traceback\nOSError: no room", OSError())
    job = Answers(monkeypatch, error)
    assert job.task.poll() == 1
    assert job.notes == ["could not be started: OSError: no room"]


class Ended:
    """A command that has ended."""

    def poll(self) -> int:
        return 7


def test_on_a_node_a_run_begins_once_the_lost_one_lets_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = plan("mine", parse_spec(b"", "mine"), "now", lambda config: config, Path("runs"))[0]
    point = spec.points[0]
    (tmp_path / point.run).mkdir()
    seen: list[dict[str, str]] = []

    def begin(*how: Any) -> Ended:
        seen.append(how[4])
        return Ended()

    monkeypatch.setattr(ray_executor, "begin", begin)
    held = iter([True, True, False])
    monkeypatch.setattr(storage, "is_locked", lambda folder: next(held))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert carry_out(point, tmp_path, tmp_path, [], 2, True) == 7
    assert next(held, None) is None
    monkeypatch.setattr(storage, "is_locked", lambda folder: False)
    assert carry_out(point, tmp_path, tmp_path, [], 1, False) == 7
    assert [e["OMP_NUM_THREADS"] for e in seen] == ["2", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in seen] == ["3", ""]


def test_a_tethered_process_is_told_when_the_one_above_it_dies(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time; from pathlib import Path; from cartl_cli.tethered import tie; "
        "signal.signal(signal.SIGTERM, lambda *_: (Path('told').touch(), sys.exit())); tie(); "
        "Path('tied').touch(); time.sleep(300)"
    )
    parent = subprocess.Popen(
        [
            *(sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])"),
            *(sys.executable, "-c", child),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    wait_for((tmp_path / "tied").exists)
    assert not (tmp_path / "told").exists()
    parent.kill()
    parent.wait()
    wait_for((tmp_path / "told").exists)
