"""``cartl sweep tune``."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cartl_cli.commands.options import AsJson, DataDir, NoDownload, Request, RunsDir, flags_from
from cartl_cli.commands.session import Opened, open_session
from cartl_cli.commands.sweep import sweeps_folder
from cartl_cli.commands.transfer import watched
from cartl_cli.core import storage
from cartl_cli.core.config import TransferConfig, TuneConfig
from cartl_cli.core.config.configure import configure
from cartl_cli.core.errors import UsageError
from cartl_cli.core.registry.architectures import check_k
from cartl_cli.core.runs.command_line import command_line
from cartl_cli.core.runs.reader import free_name
from cartl_cli.core.runtime.stopping import stop_signals
from cartl_cli.core.statistics import at_chance
from cartl_cli.core.sweeps.candidates import Candidate, blocks_grid, candidates, described
from cartl_cli.core.sweeps.halving import (
    TUNE_RUNGS,
    Outcome,
    Search,
    Task,
    front,
    least_left,
    reason,
)
from cartl_cli.core.sweeps.search_file import (
    SearchRecord,
    Trial,
    check_name,
    read_search,
    write_search,
)

if TYPE_CHECKING:
    from cartl_cli.core.sweeps.trials import Bench

PICTURE = "front.png"


@flags_from(TuneConfig)
def tune(
    settings: dict[str, Any],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the search (default: tune-…).")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    data_dir: DataDir = None,
    no_download: NoDownload = False,
    as_json: AsJson = False,
) -> Path:
    """Choose k, the method and its settings for your images, on the training images alone."""
    wanted = configure(TuneConfig, settings)
    if name is not None:
        check_name(name)
    request = Request(wanted.shared, runs_dir=runs_dir, data_dir=data_dir, no_download=no_download)
    opened = open_session(request, TransferConfig, "transfer")
    from cartl_cli.core.sweeps.trials import allowed, largest_class
    from cartl_cli.display import tables, tuning_tables
    from cartl_cli.display.progress import searching_progress
    from cartl_cli.display.terminal import say

    with stop_signals() as asked, sweeps_folder(runs_dir, say) as sweeps:
        bench, ks = made_ready(wanted, opened)
        identity = bench.identity(opened.source)
        name = name or f"tune-{identity}"
        record = read_search(folder := sweeps / name, identity)
        everything = allowed(bench, candidates(ks, wanted.methods, bench.radii), say)
        say(
            f"search {name}: {len(everything)} candidates, {len(bench.setup.split):,} training "
            f"images; {record.seconds:.0f} of {wanted.seconds:.0f} s are spent"
        )
        with searching_progress(record.seconds, wanted.seconds) as report:
            between = watched(
                report,
                asked,
                "stopped: the trials that were finished are saved; the same command goes on",
            )
            carry_out = keeping(
                replace(bench, between=between), folder, record, wanted, everything, say
            )
            search = Search(wanted.seconds, carry_out, [*record.trials])
            outcome = search.run(everything, TUNE_RUNGS, wanted.want)
        if outcome.cut:
            say(
                f"not all that was planned fits --budget {wanted.budget}; with more, it goes on "
                f"from here{untried(everything, outcome)}"
            )
        if outcome.seconds > wanted.seconds:
            say(
                f"note: all trials took {outcome.seconds:.0f} s, more than --budget "
                f"{wanted.budget}: two candidates are tried to the end, and times are foretold by "
                "those before"
            )
        draw(outcome, wanted, folder, say)
        best = outcome.best(wanted.want)
        largest = largest_class(bench, best.n)
        if at_chance(round(best.clean * best.n), best.n, largest):
            say(
                f"warning: the chosen candidate is no better than chance: it has "
                f"{tables.percent(best.clean)} clean accuracy, the largest class alone gives "
                f"{tables.percent(largest / best.n)}; give more images or another --source"
            )
    target = free_name(runs_dir, f"{name}-{wanted.want}")
    commands = command_lines(bench, outcome, wanted, target, request)
    if as_json:
        print(json.dumps(summary(outcome, wanted, name, folder, commands)))
    else:
        tables.show(tuning_tables.finalists(outcome, wanted.want, name))
        print(f"chosen: {described(outcome.best(wanted.want).candidate)}")
        print(f"why: {reason(outcome, wanted.want)}")
        print("\n".join(commands))
    return folder


def made_ready(
    wanted: TuneConfig, opened: Opened[TransferConfig]
) -> "tuple[Bench, tuple[int, ...]]":
    """What trials begin with, and the values of k to try. Raises UsageError, RunError, DataError.

    Where the source's images are not there, ``latent`` is left out, unless it is the only method.
    """
    from cartl_cli.core.sweeps.trials import prepared, with_radii

    session = opened.session
    bench = prepared(opened.config, opened.source, session)
    blocks = len(bench.original.blocks)
    ks = tuple(dict.fromkeys(wanted.k)) or blocks_grid(blocks)
    check_k(max(ks), opened.source.manifest.model.arch, blocks)
    if "latent" in wanted.methods:
        try:
            bench = with_radii(bench, opened.source, ks, session)
        except UsageError as error:
            if wanted.methods == ("latent",):
                raise
            session.say(f"note: latent is left out: {error}")
    return bench, ks


def keeping(
    bench: "Bench",
    folder: Path,
    record: SearchRecord,
    wanted: TuneConfig,
    everything: Sequence[Candidate],
    say: Callable[[str], None],
) -> Callable[[Task], Trial]:
    """Makes a trial of a task, keeps it at once beside those before it, and tells it.

    It also tells, once and as soon as it is foreseen, that the budget will not do.
    """
    from cartl_cli.core.sweeps.trials import carried_out
    from cartl_cli.display.tuning_tables import line

    done = [*record.trials]
    short = False

    def carry_out(task: Task) -> Trial:
        nonlocal short
        done.append(trial := carried_out(bench, task))
        kept = record.model_copy(update={"trials": tuple(done)})
        write_search(folder, kept)
        say(f"{line(task, trial)}; {kept.seconds:.0f} of {wanted.seconds:.0f} s")
        needed = kept.seconds + least_left(everything, TUNE_RUNGS, done)
        if needed > wanted.seconds and not short:
            short = True
            say(
                f"note: --budget {wanted.budget} is short: two candidates are tried to the end all "
                f"the same, which takes about {needed:.0f} s in all"
            )
        return trial

    return carry_out


def draw(outcome: Outcome, wanted: TuneConfig, folder: Path, say: Callable[[str], None]) -> None:
    """Put the picture of the front beside the trials, where matplotlib is there."""
    try:
        from cartl_cli.display.tuning_plot import front_plot
    except ImportError:
        say(f"note: no {PICTURE} without matplotlib: pip install 'cartl[plot]', then again")
        return
    storage.write_whole(folder / PICTURE, front_plot(outcome, wanted.want, wanted.dataset))
    say(f"drawn {folder / PICTURE}")


def command_lines(
    bench: "Bench", outcome: Outcome, wanted: TuneConfig, name: str, request: Request
) -> list[str]:
    """The commands that make the chosen model on all training images, and attack it."""
    settings = outcome.best(wanted.want).candidate.settings
    config = configure(TransferConfig, bench.config.model_dump(), settings)
    side = bench.setup.split.images.shape[-1]
    places = [] if request.runs_dir == Path("runs") else ["--runs-dir", str(request.runs_dir)]
    places += ["--data-dir", str(request.data_dir)] if request.data_dir else []
    places += ["--no-download"] if request.no_download else []
    attack = ["cartl", "attack", name]
    if config.device != "auto":
        attack += ["--device", config.device]
    return [
        shlex.join([*shlex.split(command_line("transfer", config, name, side)), *places]),
        shlex.join([*attack, *places]),
    ]


def untried(everything: Sequence[Candidate], outcome: Outcome) -> str:
    """How many candidates had no trial, and which would have come first; nothing if all had one."""
    tried = [one.candidate for one in outcome.rungs[0]]
    left = [candidate for candidate in everything if candidate not in tried]
    if not left:
        return ""
    return f"; {len(left)} candidates were left out, the first {described(left[0])}"


def summary(
    outcome: Outcome, wanted: TuneConfig, name: str, folder: Path, commands: list[str]
) -> dict[str, Any]:
    """A search as printed with ``--json``."""
    best, ends = outcome.best(wanted.want), front(outcome.finalists)
    return {
        "search": name,
        "folder": str(folder),
        "want": wanted.want,
        "seconds": outcome.seconds,
        "cut": outcome.cut,
        "tried": len(outcome.rungs[0]),
        "finalists": [
            {
                "settings": dict(one.candidate.settings),
                "n": one.n,
                "clean_accuracy": one.clean,
                "robust_accuracy": one.robust,
                "front": one in ends,
                "chosen": one is best,
            }
            for one in outcome.finalists
        ],
        "chosen": dict(best.candidate.settings),
        "why": reason(outcome, wanted.want),
        "commands": commands,
    }
