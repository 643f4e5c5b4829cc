"""What fits a screen: the line of a training, tables, and the panels of --help."""

import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.table import Table

from cartl_cli.app import COMMANDS
from cartl_cli.commands.panels import PANELS
from cartl_cli.core.trust.tiers import CHECKS
from cartl_cli.display import progress
from cartl_cli.display.progress import attack_progress, decoding_progress, fitting
from cartl_cli.display.tables import print_fitted
from cartl_cli.display.widths import widths
from tests import tiny
from tests.conftest import Command
from tests.terminals import PATIENCE, on_terminal, read_until

HEAD, SPEED, LEFT = "epoch 12/100", "12,345 images/s", "1:02:03"
NUMBERS = ["loss 1.234", "clean 56.7 %", "adversarial 34.5 %"]


@pytest.mark.parametrize(
    ("width", "numbers", "bar"),
    [
        (120, [*NUMBERS, SPEED], 20),
        (100, [*NUMBERS, SPEED], 14),
        (80, NUMBERS, 11),
        (70, NUMBERS, 0),
        (60, NUMBERS[:2], 0),
        (24, [], 0),
    ],
)
def test_a_narrow_line_keeps_what_matters(width: int, numbers: list[str], bar: int) -> None:
    assert fitting(HEAD, NUMBERS, SPEED, LEFT, width) == (numbers, bar)
    parts = [HEAD, *numbers, LEFT, *(["━" * bar] if bar else [])]
    assert len("  ".join(parts)) <= width


def test_where_no_line_is_live_each_minute_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 0.0, *[30.0, 61.0, 100.0, 122.0] * 2])  # two begin, then each report
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with attack_progress() as (report, report_check):
        for done in range(1, 5):
            report(done, 10)
        for done in range(1, 5):
            report_check(done, 8)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        *("attacking: 20 % done", "attacking: 40 % done"),
        *("checking the attack: 25 % done", "checking the attack: 50 % done"),
    ]
    seconds = iter([0.0, 30.0, 61.0, 100.0, 122.0])
    with decoding_progress(8_000) as decoded:
        for done in range(1, 5):
            decoded(1_000 * done)
    said = capsys.readouterr().err.splitlines()
    assert said == ["decoding 8,000 images", "decoding: 25 % done", "decoding: 50 % done"]


def test_the_checks_of_an_attack_are_counted(
    cartl: Command, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def counting(name: str, *_: object, **__: object) -> progress.Report:
        return lambda done, total: told.setdefault(name, []).append((done, total))

    monkeypatch.setattr(progress, "_counting", counting)
    done = cartl(*["attack", "target", "--pgd-steps", "1", "--limit", "20", "--runs-dir"], runs_dir)
    assert done.code == 0
    assert list(told) == ["attacking", "checking the attack"]
    checked = told["checking the attack"]
    assert {total for _, total in checked} == {len(CHECKS["fast"])}
    numbers = [number for number, _ in checked]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0  # told from the first pass on, not when a check is done
    assert len(numbers) > len({*numbers}) > 1


def test_a_search_shows_what_it_tries_and_the_time_that_is_spent(
    cartl: Command, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int | None]] = []

    @contextmanager
    def line(name: str) -> Iterator[progress.Show]:
        yield lambda head, done, total, numbers, speed: told.append((head, done, total))

    monkeypatch.setattr(progress, "_line", line)
    shutil.copytree(runs_dir, "runs")
    shown = ("--source", "source", "--dataset", "shapes-target", "--classes", "ring,frame")
    few = ("--methods", "natural", "--k", "1", "--budget", "1s")
    assert cartl("sweep", "tune", *shown, *few).code == 0
    heads = dict.fromkeys(head for head, _, _ in told)
    assert next(iter(heads)) == "vanilla, k 1, lr 0.02, 20 of 60 epochs"
    assert {total for _, _, total in told} == {1}
    seconds = [done for _, done, _ in told]
    assert seconds == sorted(seconds)

    told.clear()
    auto = ("--k", "auto", "--epochs", "3", "--name", "chosen")
    assert cartl("transfer", *shown, *auto).code == 0
    assert told[0] == ("vanilla, k 2, lr 0.02, 1 of 3 epochs", 0, None)


@pytest.mark.parametrize("columns", [60, 80])
def test_c64_the_line_of_a_training_is_whole(tmp_path: Path, columns: int) -> None:
    tiny.make_images(tmp_path / "images")
    folder = tiny.scene(tmp_path / "none", tmp_path / "work")
    process, terminal = on_terminal(tiny.command("pretrain"), folder, columns)
    shown = read_until(terminal)
    assert process.wait(PATIENCE) == 0
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown) if line.startswith("epoch ")]
    assert lines
    for line in lines:
        assert len(line) <= columns
        assert re.search(
            r"^epoch \d/2  .*loss \d\.\d+  clean .* %.*  (-:--:--|\d:\d\d:\d\d)$", line
        )
    bar = re.search("[━╸╺]{8}", lines[0])  # whole or half filled, by when it was drawn
    assert (bar is not None) == (columns == 80)


CELLS = {
    "attack": "apgd-t on a-run-of-a-long-name",
    "alone": "88.5 %",
    "95 %": "63.1–100.0",
    "why": "nothing that is said here may be lost",
    "accuracy left": "≤ 77.0 %",
}


def printed(columns: int) -> str:
    table = Table(title="the title", caption="the caption")
    for name, value in CELLS.items():
        table.add_column(name, justify="right" if "%" in value or "%" in name else "left")
    table.add_row(*CELLS.values())
    console = Console(width=columns, file=io.StringIO())
    print_fitted(table, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_c64_a_table_keeps_its_numbers_whole(columns: int) -> None:
    shown = printed(columns)
    assert max(map(len, shown.splitlines())) <= columns
    assert all(value in shown for value in CELLS.values() if "%" in value)
    words = {word for line in shown.splitlines() for word in re.split(r"[\s│┃]+", line)}
    assert {*CELLS["why"].split()} <= words
    assert "│" in shown


def test_a_wide_script_is_not_folded_where_there_is_room() -> None:
    assert widths([("class", False, ["停车让行标志", "🚸🚸🚸"]), ("n", True, ["1"])], 40) == [12, 1]


@pytest.mark.parametrize("columns", [24, 40])
def test_c64_a_table_without_room_is_lines_of_names_and_values(columns: int) -> None:
    shown = printed(columns)
    assert max(map(len, shown.splitlines())) <= columns
    expected = ["the title", *(f"{n}: {v}" for n, v in CELLS.items()), "the caption"]
    assert "".join("".join(expected).split()) == "".join(shown.split())


Shown = Callable[[str], str]


@pytest.fixture
def help_of(cartl: Command, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """``--help`` of a command at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda command: cartl(*command.split(), "--help").out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_panels_and_its_flags_are_whole(help_of: Shown, command: str) -> None:
    shown = help_of(command)
    panels = re.findall(r"^╭─ (\w+) ─", shown, re.M)
    known = ["Arguments", *PANELS]
    assert panels == [name for name in known if name in panels]
    assert len(panels) >= 3
    assert not re.search(r"--[\w-]*…", shown)


@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("pretrain", ["dataset", "arch", "k", "method", "fdm-lambda", "eps", "pgd-steps"]),
        ("transfer", ["source", "dataset", "k", "method", "neft-beta", "eps", "pgd-steps"]),
        ("attack", ["dataset", "attack", "eps", "pgd-steps"]),
        ("sweep tune", ["source", "dataset", "k", "methods", "budget", "want"]),
    ],
)
def test_the_few_that_matter_come_first(help_of: Shown, command: str, first: list[str]) -> None:
    assert re.findall(r"^│ --([\w-]+)", help_of(command), re.M)[: len(first)] == first


def test_every_option_has_one_panel() -> None:
    names = [name for listed in PANELS.values() for name in listed.split()]
    assert len(names) == len({*names})
