"""A sweep as people look at it: its plan as a tree, its runs as they go, what they ended in."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from cartl_cli.core.config import Kind
from cartl_cli.core.sweeps.grid import counts
from cartl_cli.core.sweeps.points import Label, Point, Sweep
from cartl_cli.core.sweeps.spec import KINDS, Hours
from cartl_cli.display.progress import time_left
from cartl_cli.display.tables import cell, percent
from cartl_cli.display.terminal import is_live, live, say

if TYPE_CHECKING:
    from cartl_cli.core.sweeps.executor import State, States, Status

NAMES: dict[Kind, str] = {"pretrain": "source runs", "transfer": "transfers", "attack": "attacks"}
COLOURS: "dict[Status, str]" = {
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "skipped": "yellow",
}
FIRST: "tuple[Status, ...]" = ("running", "failed", "done", "skipped", "waiting")
"""What a screen shows first."""
WIDE = 200  # columns of a tree that goes to a file
MARGIN = 2  # lines of a screen that a live table's rows leave free


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


def table(sweep: Sweep, states: "States") -> Table:
    """One row a run."""
    words = wording(sweep)
    made = Table(title=cell(f"sweep {sweep.name}"), caption=cell(standing(states.values())))
    for heading in ("run", "what", "state", "clean", "robust"):
        made.add_column(heading, justify="right" if heading in ("clean", "robust") else "left")
    for point in sweep.points:
        state = states[point.id]
        made.add_row(
            cell(point.run),
            cell(words[point.id]),
            Text(state.status, style=COLOURS.get(state.status, "")),
            _percent(state.clean_accuracy),
            _percent(state.robust_accuracy),
        )
    return made


@dataclass
class Clock:
    """When each run began, by the id of its point, and how long each that ended well took.

    Times are in seconds.
    """

    began: dict[str, float] = field(default_factory=dict)
    took: dict[str, float] = field(default_factory=dict)

    def note(self, point: Point, state: "State", now: float) -> None:
        """A run has begun or ended."""
        if state.status == "running":
            self.began[point.id] = now
        elif state.status == "done" and point.id in self.began:
            self.took[point.id] = now - self.began[point.id]

    def left(self, sweep: Sweep, states: "States", now: float) -> float | None:
        """Seconds until all is done, with as many runs at a time as now; None while unknown.

        A run takes as long as the mean of its kind did, or of all where none of its kind has ended.
        """
        took = dict(self.took)  # which another thread may add to
        if not took:
            return None
        kinds: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
        for point in sweep.points:
            if point.id in took:
                kinds[point.kind].append(took[point.id])
        ahead, running = 0.0, 0
        for point in sweep.points:
            status = states[point.id].status
            if status in ("running", "waiting"):
                usual = fmean(kinds[point.kind] or took.values())
                gone = now - self.began[point.id] if status == "running" else 0.0
                ahead += max(usual - gone, 0.0)
                running += status == "running"
        return ahead / max(running, 1)


def live_table(sweep: Sweep, states: "States", left: float | None, height: int) -> RenderableType:
    """What fits a screen: runs, those most worth looking at first, and how all of them stand.

    A line each, cut with … where it is too long.
    """
    words = wording(sweep)
    ordered = sorted(sweep.points, key=lambda point: FIRST.index(states[point.id].status))
    shown = ordered[: max(0, height - MARGIN)]
    longest = max((len(point.run) for point in shown), default=0)
    lines = []
    for point in shown:
        state = states[point.id]
        accuracies = [_percent(x) for x in (state.clean_accuracy, state.robust_accuracy)]
        what = ", ".join(text for text in (words[point.id], *accuracies) if text)
        line = Text().append(f"{state.status:9}", COLOURS.get(state.status, ""))
        lines.append(line.append_text(cell(f"{point.run:{longest}}  {what}")))
    more = len(ordered) - len(shown)
    hidden = [f"{more} not shown"] if more else []
    stand = [f"{time_left(left)} left", standing(states.values()), *hidden]
    lines.append(Text("; ".join(stand)))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)


@contextmanager
def sweep_progress(sweep: Sweep, states: "States") -> Iterator["Callable[[Point, State], None]"]:
    """A reporter of runs as they begin and end: a live table on a terminal, else a line each."""
    current, words, clock = dict(states), wording(sweep), Clock()

    def draw(width: int, height: int) -> RenderableType:
        now = dict(current)
        return live_table(sweep, now, clock.left(sweep, now, time.monotonic()), height)

    def report(point: Point, state: "State") -> None:
        clock.note(point, state, time.monotonic())
        current[point.id] = state
        if not is_live() or state.status in ("failed", "skipped"):
            say(_line(point, state, words[point.id]))

    with live(draw):
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
