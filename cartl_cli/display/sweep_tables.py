"""A sweep as people look at it: its plan as a tree, its runs as they go, what they ended in."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from cartl_cli.core.config import Kind
from cartl_cli.core.sweeps.grid import counts
from cartl_cli.core.sweeps.points import Label, Point, Sweep
from cartl_cli.core.sweeps.spec import KINDS, Hours
from cartl_cli.display.tables import cell, percent
from cartl_cli.display.terminal import say, stderr

if TYPE_CHECKING:
    from cartl_cli.core.sweeps.executor import State, States, Status

NAMES: dict[Kind, str] = {"pretrain": "source runs", "transfer": "transfers", "attack": "attacks"}
COLOURS: "dict[Status, str]" = {
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "skipped": "yellow",
}
FIRST: "tuple[Status, ...]" = ("failed", "running", "done", "skipped", "waiting")
"""What a small screen shows first."""
WIDE = 200  # columns of a tree that goes to a file
MARGIN = 6  # lines of a screen that the table's rows leave free


def in_numbers(runs: dict[Kind, int]) -> str:
    """``6 source runs, 18 transfers, 18 attacks``."""
    return ", ".join(
        f"{runs[kind]} {NAMES[kind].removesuffix('s') if runs[kind] == 1 else NAMES[kind]}"
        for kind in KINDS
    )


def standing(states: "Iterable[State]") -> str:
    """``3 done, 2 running, 37 waiting``."""
    found = Counter(state.status for state in states)
    ordered: tuple[Status, ...] = ("done", "running", "failed", "skipped", "waiting")
    return ", ".join(f"{found[status]} {status}" for status in ordered if found[status])


def tree(sweep: Sweep, states: "States") -> Tree:
    """What a sweep runs, each run below the one whose model it takes."""
    told = _told(sweep)
    head = f"sweep {sweep.name}: {in_numbers(counts(sweep.points))}"
    root = Tree(cell(f"{head} ({standing(states.values())})"))
    nodes: dict[str | None, Tree] = {None: root}
    for point in sweep.points:
        state, above = states[point.id], told.get(point.needs or "", {})
        new = [f"{n} {v}" for n, v in told[point.id].items() if above.get(n) != v]
        line = cell("  ".join([point.run, ", ".join(new)]).strip())
        if state.status != "waiting":
            line.append(f"  {state.status}", style=COLOURS[state.status])
        if state.reason:
            line.append_text(cell(f": {state.reason}"))
        nodes[point.id] = nodes[point.needs].add(line)
    return root


def show_tree(sweep: Sweep, states: "States") -> None:
    """Print the plan on stdout."""
    width = None if sys.stdout.isatty() else WIDE
    Console(file=sys.stdout, highlight=False, width=width).print(tree(sweep, states))


def wording(sweep: Sweep) -> dict[str, str]:
    """What distinguishes each point from the others of its kind, in words."""
    return {
        name: ", ".join(f"{label} {value}" for label, value in told.items())
        for name, told in _told(sweep).items()
    }


def _told(sweep: Sweep) -> dict[str, dict[str, str]]:
    """Of each point the labels that not all points of its kind share; its method, if there is none.

    The result is keyed by the point's id.
    """
    told = {}
    for kind in KINDS:
        points = [point for point in sweep.points if point.kind == kind]
        values: dict[str, set[Label]] = {}
        for point in points:
            for name, value in point.labels.items():
                values.setdefault(name, set()).add(value)
        for point in points:
            own = {name: v for name, v in point.labels.items() if len(values[name]) > 1}
            own = own or {"method": point.labels.get("method")}
            told[point.id] = {
                name: f"{v:g}" if isinstance(v, float) else str(v)
                for name, v in own.items()
                if v is not None
            }
    return told


def table(sweep: Sweep, states: "States", rows: int | None = None) -> Table:
    """One row a run; where only some fit, those that are most worth looking at."""
    words = wording(sweep)
    shown = list(sweep.points)
    if rows is not None and len(shown) > rows:
        shown.sort(key=lambda point: FIRST.index(states[point.id].status))
        shown = shown[: max(1, rows)]
    hidden = len(sweep.points) - len(shown)
    more = f"; {hidden} more rows" if hidden else ""
    caption = cell(f"{standing(states.values())}{more}")
    made = Table(title=cell(f"sweep {sweep.name}"), caption=caption)
    for heading in ("run", "what", "state", "clean", "robust"):
        made.add_column(heading, justify="right" if heading in ("clean", "robust") else "left")
    for point in shown:
        state = states[point.id]
        made.add_row(
            cell(point.run),
            cell(words[point.id]),
            Text(state.status, style=COLOURS.get(state.status, "")),
            _percent(state.clean_accuracy),
            _percent(state.robust_accuracy),
        )
    return made


@contextmanager
def sweep_progress(sweep: Sweep, states: "States") -> Iterator["Callable[[Point, State], None]"]:
    """A reporter of runs as they begin and end: a live table on a terminal, else a line each."""
    current, words = dict(states), wording(sweep)
    live = None
    if stderr().is_terminal and not stderr().is_dumb_terminal:
        rows = stderr().height - MARGIN
        live = Live(table(sweep, current, rows), console=stderr(), transient=True)

    def report(point: Point, state: "State") -> None:
        current[point.id] = state
        if live:
            live.update(table(sweep, current, stderr().height - MARGIN))
        if not live or state.status in ("failed", "skipped"):
            say(_line(point, state, words[point.id]))

    if live is None:
        yield report
    else:
        with live:
            yield report


def list_table(rows: Iterable[tuple[str, str, dict[Kind, int], Hours | None]]) -> Table:
    """The built-in sweeps: name, what each repeats, its runs, about how long they take."""
    made = Table(
        title="built-in sweeps",
        caption="runs: source runs + transfers + attacks; hours: a rough estimate, one run at a "
        "time",
    )
    made.add_column("name", no_wrap=True)
    made.add_column("what")
    made.add_column("runs", no_wrap=True, justify="right")
    made.add_column("hours", no_wrap=True)
    for name, about, runs, hours in rows:
        spent = sum(runs[kind] * getattr(hours, kind) for kind in KINDS) if hours else 0
        shown = f"{spent:.0f}" if spent >= 10 else f"{spent:.1f}"
        made.add_row(
            cell(name),
            cell(about),
            " + ".join(str(runs[kind]) for kind in KINDS),
            cell(f"{shown} on {hours.on}" if hours else ""),
        )
    return made


def _line(point: Point, state: "State", words: str) -> str:
    if state.status == "done":
        numbers = {"clean": state.clean_accuracy, "robust": state.robust_accuracy}
        told = [f"{name} {percent(x)}" for name, x in numbers.items() if x is not None]
        return f"{point.run}: done, {', '.join(told)}"
    if state.reason:
        return f"{point.run}: {state.status}: {state.reason}"
    return f"{point.run}: {state.status} ({words})"


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else percent(accuracy)
