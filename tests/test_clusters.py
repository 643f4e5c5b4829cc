"""The executor ``ray``: what a real cluster of two nodes ends in, and what is refused before."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.clusters import Cluster, cluster
from tests.processes import finish, start
from tests.test_sweep_runs import PATIENCE, SPEC, SWEEP, points, scene, wait_for

pytest.importorskip("ray")

def long_transfers() -> str:
    """The tiny sweep, whose two transfers take some seconds each."""
    source, _, rest = SPEC.partition("[base.transfer]")
    transfers, _, rest = rest.partition("[base.attack]")
    transfers = transfers.replace("epochs = 2", "epochs = 60")
    transfers = transfers.replace('save_every = "1"', 'save_every = "20"')
    return f"{source}[base.transfer]{transfers}[base.attack]{rest}"


def on(nodes: Cluster) -> list[str]:
    return [*SWEEP[:2], "--json", "--executor", "ray", "--ray-address", nodes.address]


def begun(nodes: Cluster, name: str, runs: Path) -> str:
    """Wait for an unfinished run with a checkpoint on a node."""

    def found() -> Iterator[str]:
        for words in nodes.processes(name).values():
            if "cartl_cli.tethered" in words and "--name" in words:
                run = words[words.index("--name") + 1]
                if list((runs / run).glob("ckpt-*")):
                    yield run

    wait_for(lambda: next(found(), None))
    return next(found())


def told(folder: Path, run: str) -> dict[str, Any]:
    """The manifest but for what is of its time: identity, number, dates, seconds."""
    manifest = json.loads((folder / "runs" / run / "manifest.json").read_text())
    for name in ("id", "number", "created"):
        del manifest[name]
    del manifest["results"]["seconds"]
    return dict(manifest)


def test_a_sweep_whose_node_is_killed_ends_as_on_one_machine(tmp_path: Path) -> None:
    tiny.make_images(tmp_path / "images")
    alone = start(SWEEP, here := scene(tmp_path, "local", long_transfers()))
    try:
        with cluster() as nodes:
            nodes.start("head")
            nodes.start("doomed")
            there = scene(tmp_path, "ray", long_transfers())
            sweep = nodes.run(on(nodes), there)
            lost = begun(nodes, "doomed", there / "runs")
            nodes.kill("doomed")
            out, err = sweep.communicate(timeout=PATIENCE)
        assert nodes.processes() == {}
    finally:
        local = finish(alone, here, PATIENCE)
    print(err)
    assert sweep.returncode == local.code == 0, err + local.err
    assert json.loads(out)["done"] == 5
    assert f"{lost}: lost, going on elsewhere (try 2 of 4)" in err
    log = (there / "runs" / "sweeps" / "mine" / f"{lost}.log").read_text()
    assert "was crashed; going on" in log
    for point in points(here).values():
        assert told(there, point.run) == told(here, point.run)
        left = tiny.left(there / "runs" / point.run)
        assert left == tiny.left(here / "runs" / point.run)
    assert tiny.orphans(there) == []
