"""``cartl sweep``."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cartl_cli.commands.next_step import after_sweep
from cartl_cli.commands.options import AsJson, DataDir, NoDownload, RunsDir, flags_from
from cartl_cli.commands.session import located
from cartl_cli.core import storage
from cartl_cli.core.config import SweepConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.config.presets import sweep_presets
from cartl_cli.core.errors import CartlError, InUseError, RunError, StoppedError, UsageError
from cartl_cli.core.runtime.requirements import check_ray, check_torch
from cartl_cli.core.runtime.stopping import stop_signals
from cartl_cli.core.sweeps.grid import counts, plan
from cartl_cli.core.sweeps.points import FOLDER, Sweep, read_sweep, sweep_path, write_sweep
from cartl_cli.core.sweeps.spec import open_spec

if TYPE_CHECKING:
    from cartl_cli.core.sweeps.executor import Executor, States
    from cartl_cli.core.sweeps.ray_executor import Node


@flags_from(SweepConfig)
def sweep(
    settings: dict[str, Any],
    spec: Annotated[
        str | None,
        typer.Argument(
            help="A TOML file, or a built-in sweep: see --list. To choose settings for your "
            "images: cartl sweep tune --help.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and stop.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show the built-in sweeps.")] = False,
    runs_dir: RunsDir = Path("runs"),
    data_dir: DataDir = None,
    no_download: NoDownload = False,
    as_json: AsJson = False,
) -> Path | None:
    """Run a grid of settings: every source model, its transfers, an attack on each."""
    if listed:
        show_list(runs_dir, as_json)
        return None
    config = configure(SweepConfig, settings)
    if spec is None:
        raise UsageError("SPEC: give a TOML file or a built-in sweep; --list shows those")
    name, content = open_spec(spec)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    planned, same = plan(name, content, now, located, runs_dir)
    if config.executor == "ray":
        check_ray()
    check_torch()
    from cartl_cli.core.sweeps.executor import ended_state, execute, survey
    from cartl_cli.display import sweep_tables, tables
    from cartl_cli.display.terminal import say

    check_data(planned)
    if same:
        say(f"note: {same} combinations are the same as another and run once")
    if dry_run:
        states = survey(planned, runs_dir)
        if as_json:
            print(json.dumps(summary(planned, states, runs_dir)))
        else:
            sweep_tables.show_tree(planned, states)
        return None

    flags = [*(["--data-dir", str(data_dir.expanduser().absolute())] if data_dir else [])]
    flags += ["--no-download"] if no_download else []
    with cluster(config, say) as nodes, sweeps_folder(runs_dir, say) as folder:
        keep(planned, runs_dir, say)
        storage.make_folder(logs := folder / name)
        states = survey(planned, runs_dir)
        say(f"sweep {name}: {sweep_tables.in_numbers(counts(planned.points))}")
        say(f"{sweep_tables.standing(states.values())}; output of each run: {logs}/")
        start, jobs = executor(config, nodes, runs_dir, logs, flags, say)
        with stop_signals() as asked, sweep_tables.sweep_progress(planned, states) as report:
            states = execute(
                planned,
                states,
                lambda point, code: ended_state(point, code, runs_dir, logs, bool(asked.signal)),
                start,
                jobs,
                asked,
                report,
            )
            signal = asked.signal
    if as_json:
        print(json.dumps(summary(planned, states, runs_dir)))
    else:
        tables.show(sweep_tables.table(planned, states))
    finish(planned, states, logs, signal)
    if not as_json:
        after_sweep(planned, runs_dir)
    return runs_dir


def finish(planned: Sweep, states: "States", logs: Path, signal: int | None) -> None:
    """Say what is left to do. Raises StoppedError after a signal, CartlError after a failure."""
    done = sum(state.status == "done" for state in states.values())
    total = len(planned.points)
    if signal:
        raise StoppedError(
            f"stopped: {done} of {total} runs done, what ran is saved; the same command goes on",
            signal,
        )
    failed = [point for point in planned.points if states[point.id].status == "failed"]
    if failed:
        skipped = sum(state.status == "skipped" for state in states.values())
        listed = "; ".join(f"{point.run}: {states[point.id].reason}" for point in failed[:5])
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        behind = f", {skipped} skipped behind them" if skipped else ""
        raise CartlError(
            f"{len(failed)} of {total} runs failed{behind}: {listed}{more}; see why in {logs}/; "
            "the same command tries again"
        )


@contextmanager
def cluster(config: SweepConfig, say: Callable[[str], None]) -> Iterator["dict[Node, int]"]:
    """How many runs each node of the Ray cluster takes while we are connected; {} without Ray."""
    if config.executor == "local":
        yield {}
        return
    from cartl_cli.core.sweeps.ray_executor import connected, with_room

    with connected(config.ray_address) as nodes:
        room = with_room(nodes, config.cpus, config.gpus)
        say(f"ray: {len(room)} nodes with room for {sum(room.values())} runs at a time")
        yield room


def executor(
    config: SweepConfig,
    nodes: "dict[Node, int]",
    runs_dir: Path,
    logs: Path,
    flags: list[str],
    say: Callable[[str], None],
) -> "tuple[Executor, int]":
    """What starts the runs, and how many at a time. Raises CartlError where a node will not do."""
    if config.executor == "local":
        from cartl_cli.core.sweeps.executor import local

        jobs = config.jobs or 1
        return local(runs_dir, logs, flags, threads(jobs, say)), jobs
    from cartl_cli.core.sweeps.ray_executor import check_nodes, ray_tasks

    runs_dir, logs = runs_dir.absolute(), logs.absolute()
    for warning in check_nodes(nodes, logs):
        say(warning)
    start = ray_tasks(runs_dir, logs, flags, config.cpus, config.gpus, say)
    return start, config.jobs or sum(nodes.values())


@contextmanager
def sweeps_folder(runs_dir: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """The folder of the sweeps, ours alone. Raises InUseError while another sweep runs here."""
    from cartl_cli.core.data.downloads import NOWHERE
    from cartl_cli.core.runs.writer import Session, check_place

    check_place(Session(runs_dir, None, NOWHERE, say))
    storage.make_folder(folder := runs_dir / FOLDER)
    with ExitStack() as held:
        try:
            held.enter_context(storage.locked(folder))
        except InUseError:
            raise InUseError(
                f"another sweep is running in {str(runs_dir)!r}; wait for it or give another "
                "--runs-dir"
            ) from None
        storage.sweep(folder)
        yield folder


def keep(planned: Sweep, runs_dir: Path, say: Callable[[str], None]) -> None:
    """Store the plan, unless it is the stored one; say what changed."""
    before: set[str] = set()
    with suppress(RunError):  # none, or a damaged one that is written anew
        before = {point.id for point in read_sweep(sweep_path(runs_dir, planned.name)).points}
    now = {point.id for point in planned.points}
    if before == now:
        return
    if before:
        added, dropped = len(now - before), len(before - now)
        say(
            f"note: sweep {planned.name} changed: {added} runs are new, {dropped} no longer belong "
            "to it (their folders stay)"
        )
    write_sweep(runs_dir, planned)


def check_data(planned: Sweep) -> None:
    """Refuse a sweep that names a data set which is not there. Raises UsageError."""
    from cartl_cli.core.data.data_sets import check_name

    for point in planned.points:
        if point.config.dataset is not None:
            try:
                check_name(point.config.dataset)
            except UsageError as error:
                raise UsageError(f"nothing was run, since {point.kind} {error}") from None


def threads(jobs: int, say: Callable[[str], None]) -> int | None:
    """Threads of each run, so that runs side by side share the cores."""
    has_mask = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if has_mask else os.cpu_count() or 1
    if jobs > cores:
        say(f"note: {jobs} runs at a time share {cores} cores")
    return max(1, cores // jobs) if jobs > 1 else None


def summary(planned: Sweep, states: "States", runs_dir: Path) -> dict[str, Any]:
    """A sweep as printed with ``--json``."""
    points = [
        {
            **point.model_dump(include={"id", "kind", "needs", "labels"}),
            "run": point.run,
            "folder": str(runs_dir / point.run),
            **asdict(states[point.id]),
        }
        for point in planned.points
    ]
    statuses = [state.status for state in states.values()]
    return {
        "sweep": planned.name,
        "table": planned.table,
        "runs": counts(planned.points),
        **{status: statuses.count(status) for status in ("done", "failed", "skipped", "waiting")},
        "points": points,
    }


def show_list(runs_dir: Path, as_json: bool) -> None:
    """The built-in sweeps, on stdout."""
    from cartl_cli.display import sweep_tables, tables

    rows = []
    for name in sweep_presets():
        _, content = open_spec(name)
        planned, _ = plan(name, content, "", located, runs_dir)
        rows.append((name, content.about, counts(planned.points), content.hours))
    if as_json:
        shown = [
            {"name": name, "about": about, "runs": runs, "hours": hours and hours.model_dump()}
            for name, about, runs, hours in rows
        ]
        print(json.dumps(shown))
    else:
        tables.show(sweep_tables.list_table(rows))
