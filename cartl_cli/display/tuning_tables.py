"""A search for settings as people read it: a line for each trial, tables of standings."""

from rich.table import Table

from cartl_cli.core.config.tune_settings import Want
from cartl_cli.core.sweeps.candidates import described
from cartl_cli.core.sweeps.halving import Outcome, Task, front
from cartl_cli.core.sweeps.search_file import Trial
from cartl_cli.display.tables import cell, percent, titled


def line(task: Task, trial: Trial) -> str:
    """``fast, k 4, lr 0.2, 20 of 60 epochs: clean 80.0 %, robust 40.0 % of fold 1 (quick …``."""
    clean, robust = (percent(count / trial.n) for count in (trial.clean, trial.robust))
    return (
        f"{described(task.candidate, task.epochs)}: clean {clean}, robust {robust} of fold "
        f"{task.fold + 1} ({task.attack} attack), {trial.seconds:.1f} s"
    )


def finalists(outcome: Outcome, want: Want, name: str) -> Table:
    """The candidates of the last rung, best clean accuracy first; ● is chosen, ○ on the front."""
    best, ends = outcome.best(want), front(outcome.finalists)
    caption = (
        f"●: chosen ({want}); ○: on the front, no other is better in both; n = {best.n} training "
        f"images, each judged by a model that had not seen it; {len(outcome.rungs[0])} tried in "
        f"{outcome.seconds:.0f} s"
    )
    table = titled(cell(name), cell(caption), ("", "candidate"), ("clean", "robust"))
    for one in sorted(outcome.finalists, key=lambda one: one.score("clean"), reverse=True):
        mark = "●" if one is best else "○" if one in ends else ""
        table.add_row(mark, cell(described(one.candidate)), percent(one.clean), percent(one.robust))
    return table


def values_of_k(outcome: Outcome) -> Table:
    """Each k that was tried: its accuracies after a part of the epochs, and after all of them."""
    first, last = outcome.rungs[0], {one.candidate.k: one for one in outcome.finalists}
    best = outcome.best("balanced")
    caption = (
        f"●: chosen; third, whole: of the epochs; n = {best.n} training images that the models had "
        f"not seen; {outcome.seconds:.0f} s"
    )
    table = titled(
        "--k auto", cell(caption), ("", "k"), ("clean, third", "robust", "clean, whole", "robust")
    )
    for one in sorted(first, key=lambda one: one.candidate.k):
        whole = last.get(one.candidate.k)
        shown = [percent(whole.clean), percent(whole.robust)] if whole else ["", ""]
        mark = "●" if one.candidate == best.candidate else ""
        table.add_row(mark, str(one.candidate.k), percent(one.clean), percent(one.robust), *shown)
    return table
