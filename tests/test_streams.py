"""Work goes on to its end, whatever becomes of the terminal, file or pipe that it tells of it."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from cartl_cli.core.runs.reader import read_run
from cartl_cli.display.streams import Lasting
from tests import tiny
from tests.processes import Sabotage, run
from tests.terminals import PATIENCE, on_terminal, read_until, redirected

FULL = os.strerror(errno.ENOSPC)
CLOSED = os.strerror(errno.EBADF)
PRETRAIN = tiny.command("pretrain")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder beside the images."""
    tiny.make_images(tmp_path / "images")
    return tiny.scene(tmp_path / "none", tmp_path / "work")


def status(folder: Path) -> str:
    """How the run ``pretrain`` stands."""
    return read_run(folder / "runs" / "pretrain").manifest.status


@pytest.mark.parametrize("shell", ["2>/dev/full", "2>&-"], ids=["C59-full", "C61-closed"])
def test_what_stderr_refuses_is_dropped(folder: Path, shell: str) -> None:
    code, out, err = redirected([*PRETRAIN, "--json"], folder, shell)
    assert (code, err) == (0, "")
    assert json.loads(out)["run"] == "pretrain"
    assert status(folder) == "completed"


@pytest.mark.parametrize(
    ("shell", "why"), [(">/dev/full", FULL), (">&-", CLOSED)], ids=["C60-full", "C61-closed"]
)
def test_a_result_that_could_not_be_printed_is_told_once(
    folder: Path, shell: str, why: str
) -> None:
    code, out, err = redirected(PRETRAIN, folder, shell)
    assert (code, out) == (1, "")
    saved, _, lost = err.splitlines()[-3:]  # between them: what to type next
    assert saved == "saved runs/pretrain"
    assert lost == f"cartl: error: could not print the result: {why}; it is in runs/pretrain"
    assert err.count(why) == 1
    assert status(folder) == "completed"


def test_c61_without_any_stream_the_code_alone_tells(folder: Path) -> None:
    assert redirected(PRETRAIN, folder, "<&- >&- 2>&-") == (1, "", "")
    assert status(folder) == "completed"
    metrics = (folder / "runs" / "pretrain" / "metrics.jsonl").read_text()
    assert len([*map(json.loads, metrics.splitlines())]) == 2  # no stream was taken for a file


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_c60_what_is_no_run_is_told_too(folder: Path, arguments: list[str]) -> None:
    code, _, err = redirected(arguments, folder, ">/dev/full")
    assert (code, err) == (1, f"cartl: error: could not print the result: {FULL}\n")


def test_c59_a_wrong_setting_has_its_code_without_stderr(folder: Path) -> None:
    assert redirected(["pretrain", "--k", "99"], folder, "2>/dev/full") == (2, "", "")


def test_c62_a_run_goes_on_where_its_terminal_is_closed(folder: Path) -> None:
    process, terminal = on_terminal(PRETRAIN, folder)
    read_until(terminal, "run pretrain")
    os.close(terminal)
    assert process.wait(PATIENCE) == 0
    assert status(folder) == "completed"


def test_c63_a_run_whose_own_terminal_hangs_up_is_saved(folder: Path) -> None:
    arguments = [*PRETRAIN, "--epochs", "9999", "--save-every", "999m"]
    for flag in ("--epochs", "--save-every"):  # once each
        del arguments[(first := arguments.index(flag)) : first + 2]
    process, terminal = on_terminal(arguments, folder, controlled=True)
    read_until(terminal, "epoch ")  # whichever is drawn first
    os.close(terminal)
    assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    assert status(folder) == "interrupted"
    assert [*(folder / "runs" / "pretrain").glob("ckpt-*")]


def test_c63_a_terminal_hangs_up_more_than_once(folder: Path) -> None:
    """Its shell tells its jobs, and so does the system when the shell has ended."""
    stopped = run(PRETRAIN, folder, Sabotage(2, signal.SIGHUP, times=3))
    assert stopped.code == 128 + signal.SIGHUP
    assert "interrupted at step 2 of 6" in stopped.err
    assert status(folder) == "interrupted"


def test_a_page_is_not_poured_onto_a_terminal(folder: Path) -> None:
    process, terminal = on_terminal(["report", "--format", "html"], folder)
    assert "a page is no text for a terminal; add --out FOLDER" in read_until(terminal)
    os.close(terminal)
    assert process.wait(PATIENCE) == 2


def test_a_stream_knows_whether_somebody_misses_what_it_dropped() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    left = Lasting(os.fdopen(write_end, "w"))
    full = Lasting(open("/dev/full", "w"))  # noqa: SIM115
    for stream in (left, full):
        for _ in range(2):
            stream.write("line\n")
            stream.flush()
        stream.close()
    assert left.lost is None
    assert full.lost is not None
    assert full.lost.errno == errno.ENOSPC
