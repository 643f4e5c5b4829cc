"""``cartl transfer``."""

import json
from collections.abc import Callable
from pathlib import Path

from cartl_cli.commands.next_step import after_model
from cartl_cli.commands.options import AsJson, Extend, Request, flags_from
from cartl_cli.commands.session import Opened, open_session
from cartl_cli.core.config import TransferConfig
from cartl_cli.core.errors import StoppedError, UsageError
from cartl_cli.core.registry.transfer_methods import ADDITIONS
from cartl_cli.core.runtime.stopping import Asked, stop_signals
from cartl_cli.core.sweeps.candidates import described
from cartl_cli.core.sweeps.halving import Task, reason
from cartl_cli.core.sweeps.search_file import Trial


@flags_from(TransferConfig)
def transfer(request: Request, extend: Extend = False, as_json: AsJson = False) -> Path | None:
    """Fine-tune the last k blocks of a source model on your images."""
    opened = open_session(request, TransferConfig, "transfer", extend)
    from cartl_cli.core.training.target_model import transfer as transfer_run
    from cartl_cli.display import tables
    from cartl_cli.display.progress import training_progress
    from cartl_cli.display.terminal import say

    chosen, source = opened.config, opened.source
    if "dataset" not in chosen.model_fields_set:
        say(f"dataset: {chosen.dataset} (built in; --dataset takes a folder of your images)")
    k = None if opened.finished else chosen_k(opened, say)
    with training_progress() as report:
        run = opened.finished or transfer_run(chosen, source, opened.session, report, k)
    if run is None:
        return None  # another process tells
    say(f"saved {run.folder}")
    if as_json:
        results = run.results
        shown = {
            "run": run.name,
            "folder": str(run.folder),
            "source": source.name,
            "k": run.manifest.k,
            "method": chosen.look(None).label.lower(),
            **{name: getattr(chosen, name) for name in ADDITIONS},
            "radius": run.manifest.radius,
            "freeze_bn": chosen.frozen_bn,
            "balance": chosen.balance,
            "train_images": run.manifest.data.train_images,
            "train_accuracy": results.train_accuracy,
            "clean_accuracy": results.clean_accuracy,
            "spectral_norms": results.spectral_norms,
            "seconds": results.seconds,
        }
        print(json.dumps(shown))
    else:
        print(*tables.tuned(run), sep="\n")
        tables.show(tables.training_table(run))
        after_model(run, opened.session.runs_dir)
    return run.folder


def chosen_k(opened: Opened[TransferConfig], say: Callable[[str], None]) -> int | None:
    """What to take for ``--k auto``: that of the run to go on with, else the best of a few trials.

    None where k is not to be chosen. Raises UsageError for many processes, and StoppedError.
    """
    config, session = opened.config, opened.session
    if config.k != "auto":
        return None
    if session.resume is not None:
        return session.resume.manifest.k
    if session.ranks.size > 1:
        raise UsageError("--k: auto is chosen by one process alone; give a number")
    from cartl_cli.core.sweeps.trials import k_search
    from cartl_cli.display import tables, tuning_tables
    from cartl_cli.display.progress import searching_progress

    say("choosing k on folds of the training images; this takes a few trainings")
    with stop_signals() as asked, searching_progress() as report:
        between = watched(report, asked, "stopped while k was chosen; nothing was begun")

        def tell(task: Task, trial: Trial) -> None:
            say(tuning_tables.line(task, trial))

        outcome = k_search(config, opened.source, session, between, tell)
    best = outcome.best("balanced")
    tables.show_aside(tuning_tables.values_of_k(outcome))
    say(f"k {best.candidate.k}: {reason(outcome, 'balanced')}")
    return best.candidate.k


def watched(report: Callable[[str], None], asked: Asked, stopped: str) -> Callable[[Task], None]:
    """Shows what is tried; raises StoppedError, which says what ``stopped``, after a signal."""

    def between(task: Task) -> None:
        report(described(task.candidate, task.epochs))
        if asked.signal is not None:
            raise StoppedError(stopped, asked.signal)

    return between
