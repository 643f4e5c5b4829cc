"""A Ray cluster of several nodes on one machine, each a ``ray start`` that can be killed whole."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = "CARTL_TEST_NODE"
"""Says in the environment of every process of a node, and of all that they start, whose it is."""


class Cluster:
    """Nodes by name; ``address`` is what a sweep is given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.id = folder, uuid.uuid4().hex
        self.started: list[subprocess.Popen[Any]] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    def environment(self, name: str) -> dict[str, str]:
        """That of a node, or of a sweep that runs on the cluster."""
        return os.environ | {
            MARK: f"{name}-{self.id}",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.id,
            "RAY_USAGE_STATS_ENABLED": "0",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def run(self, arguments: Sequence[str], folder: Path) -> "subprocess.Popen[str]":
        """A ``cartl`` command in a folder, with what it prints."""
        command = subprocess.Popen(
            [sys.executable, "-m", "cartl_cli", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment("controller"),
        )
        self.started.append(command)
        return command

    def start(self, name: str, *arguments: str) -> None:
        """Begin a node and wait until it has joined. The first is the head."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            node = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment(name),
                start_new_session=True,
            )
        self.started.append(node)
        until = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)

    def processes(self, name: str = "") -> dict[int, list[str]]:
        """The commands of a node's living processes, or of all nodes', by process id."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is not ours
                lines = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                mark = next((line for line in lines if line.startswith(f"{MARK}={name}")), "")
                if mark.endswith(self.id):
                    words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    found[int(path.name)] = words
        return found

    def kill(self, name: str = "") -> None:
        """End a node, or all, as a power cut does: every process at once, none is told."""
        while found := self.processes(name):
            for number in found:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.05)


@contextmanager
def cluster(*nodes: str) -> Iterator[Cluster]:
    """A head that leads and takes no run, and nodes of one CPU each.

    Whatever happens, none of their processes is left behind.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets must be short
    made = Cluster(folder)
    leads = ("--head", f"--port={made.port}", f"--temp-dir={folder}", "--include-dashboard=false")
    memory = "--object-store-memory=80000000"
    try:
        made.start("head", *leads, "--num-cpus=0", memory)
        for name in nodes:
            made.start(name, f"--address={made.address}", "--num-cpus=1", memory)
        yield made
    finally:
        made.kill()
        for process in made.started:
            process.communicate()
        shutil.rmtree(folder, ignore_errors=True)
