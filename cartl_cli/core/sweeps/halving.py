"""Choosing how to transfer: successive halving over candidates, on parts of the training images.

Nothing here knows torch. Each candidate is tried in rungs: the first is short, and tries all; the
next ones cost more, and try what was best before. The last rung judges on images, and by models,
most of which had no part in the rungs before it.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import get_args

from cartl_cli.core.config.tune_settings import Want
from cartl_cli.core.sweeps.candidates import Candidate, Settings, described
from cartl_cli.core.sweeps.search_file import Strength, Trial

FOLDS = 4
LEAST = 2  # candidates that get through the first and the last rung, whatever the budget
WORK: dict[Strength, int] = {"quick": 1, "strong": 10}
"""How long an attack takes, until one of its strength was run; see ``trials.ATTACKS``."""


# Standings


@dataclass(frozen=True)
class Standing:
    """How a candidate did: the fractions of ``n`` images that its models had not seen."""

    candidate: Candidate
    n: int
    clean: float
    robust: float

    def score(self, want: Want) -> tuple[float, float]:
        """What is wanted, 0..1, and what decides where that is alike."""
        return {
            "robust": (self.robust, self.clean),
            "clean": (self.clean, self.robust),
            "balanced": ((self.clean + self.robust) / 2, self.robust),
        }[want]


def front(standings: Sequence[Standing]) -> list[Standing]:
    """Those that no other beats in one of clean and robust without losing in the other."""
    pairs = {(one.clean, one.robust) for one in standings}
    return [
        one
        for one in standings
        if not any(
            clean >= one.clean
            and robust >= one.robust
            and (clean, robust) != (one.clean, one.robust)
            for clean, robust in pairs
        )
    ]


def promoted(standings: Sequence[Standing], want: Want) -> list[Candidate]:
    """All candidates, those first that are to go on.

    Two of three are the best by what is wanted, every third in turn by the other wants: so the ends
    of the front go on as well. Of equals the first tried comes first.
    """
    others = [other for other in get_args(Want) if other != want]
    left = list(standings)
    found: list[Candidate] = []
    for turn in itertools.cycle((want, want, others[0], want, want, others[1])):
        if not left:
            return found
        best = max(left, key=lambda one: one.score(turn))
        left.remove(best)
        found.append(best.candidate)
    raise AssertionError("a cycle does not end")


# The search


@dataclass(frozen=True)
class Rung:
    """A step of the search: which part of the epochs, on which folds, under which attack.

    Of the candidates of the rung before, the part ``kept`` goes on, at most ``most``. None is
    begun that would not end before the part ``until`` of the budget.
    """

    parts: int
    folds: tuple[int, ...]
    attack: Strength
    kept: float = 1.0
    most: int = 1000
    until: float = 1.0


TUNE_RUNGS = (
    Rung(3, (0,), "quick", until=0.3),
    Rung(1, (0,), "quick", kept=0.5, until=0.5),
    Rung(1, (1,), "strong", kept=0.5, most=8, until=0.75),
    Rung(1, (1, 2, 3), "strong", kept=0.75),
)
K_RUNGS = (Rung(3, (0,), "quick"), Rung(1, (1,), "quick", kept=0.5))
"""Of ``--k auto``: 4 values of k cost 2.5 trainings."""


@dataclass(frozen=True)
class Task:
    """A trial to carry out."""

    candidate: Candidate
    epochs: int
    fold: int
    attack: Strength

    @property
    def settings(self) -> Settings:
        """What its transfer is made with."""
        return {**self.candidate.settings, "epochs": self.epochs}

    def done_by(self, trial: Trial) -> bool:
        """Whether a trial is this one."""
        ours = (self.settings, self.fold, self.attack)
        return ours == (trial.settings, trial.fold, trial.attack)


@dataclass(frozen=True)
class Outcome:
    """What a search found: how the candidates stood after each rung, and the seconds spent.

    ``cut``: the budget left out some of what was to be tried.
    """

    rungs: list[list[Standing]]
    seconds: float
    cut: bool

    @property
    def finalists(self) -> list[Standing]:
        """The candidates of the last rung."""
        return self.rungs[-1]

    def best(self, want: Want) -> Standing:
        """The finalist that does best what is wanted; of equals the first tried."""
        return max(self.finalists, key=lambda one: one.score(want))


@dataclass
class Search:
    """A search under way: what was tried, and the ``budget`` in seconds.

    ``carry_out`` makes a trial of a task, and keeps it.
    """

    budget: float
    carry_out: Callable[[Task], Trial]
    trials: list[Trial] = field(default_factory=list)
    cut: bool = False

    @property
    def spent(self) -> float:
        """Seconds of all trials, those of earlier sessions too."""
        return sum(trial.seconds for trial in self.trials)

    def run(self, all_of_them: Sequence[Candidate], rungs: Sequence[Rung], want: Want) -> Outcome:
        """Walk through the rungs; one between the first and the last is left out for want of time.

        What was tried before is not tried again.
        """
        first, *between, last = rungs
        standings = [self._walk(all_of_them, first)]
        for rung in (*between, last):
            kept = min(rung.most, math.ceil(rung.kept * len(standings[-1])))
            going = promoted(standings[-1], want)[: max(LEAST, kept)]
            if rung in between and not self._has_time(going[:LEAST], rung):
                self.cut = True
                continue
            standings.append(self._walk(going, rung))
        return Outcome(standings, self.spent, self.cut)

    def _has_time(self, going: Sequence[Candidate], rung: Rung) -> bool:
        cost = sum(self._cost(candidate, rung, rung.folds) for candidate in going)
        return cost == 0 or self.spent + cost <= rung.until * self.budget

    def _walk(self, going: Iterable[Candidate], rung: Rung) -> list[Standing]:
        """One rung: as many candidates as the budget allows, on as many folds, all on the same."""
        limit, first, rest = rung.until * self.budget, rung.folds[:1], rung.folds[1:]
        entrants: list[Candidate] = []
        to_come = 0.0
        for candidate in going:
            later = self._cost(candidate, rung, rest)
            cost = self._cost(candidate, rung, first) + later
            if len(entrants) >= LEAST and cost and self.spent + to_come + cost > limit:
                self.cut = True
                continue
            self._try(candidate, rung, first)
            to_come += later
            entrants.append(candidate)
        done = first
        for fold in rest:
            cost = sum(self._cost(candidate, rung, (fold,)) for candidate in entrants)
            if cost and self.spent + cost > limit:
                self.cut = True
                break
            for candidate in entrants:
                self._try(candidate, rung, (fold,))
            done = (*done, fold)
        return [self._standing(candidate, rung, done) for candidate in entrants]

    def _cost(self, candidate: Candidate, rung: Rung, folds: Sequence[int]) -> float:
        """Seconds that the tasks of these folds will take, of those that are not done."""
        return sum(
            predicted(task, self.trials)
            for task in tasks(candidate, rung, folds)
            if self._done(task) is None
        )

    def _try(self, candidate: Candidate, rung: Rung, folds: Sequence[int]) -> None:
        for task in tasks(candidate, rung, folds):
            if self._done(task) is None:
                self.trials.append(self.carry_out(task))

    def _done(self, task: Task) -> Trial | None:
        return next((trial for trial in self.trials if task.done_by(trial)), None)

    def _standing(self, candidate: Candidate, rung: Rung, folds: Sequence[int]) -> Standing:
        found = [trial for task in tasks(candidate, rung, folds) if (trial := self._done(task))]
        n = sum(trial.n for trial in found)
        clean, robust = (sum(getattr(t, part) for t in found) / n for part in ("clean", "robust"))
        return Standing(candidate, n, clean, robust)


def tasks(candidate: Candidate, rung: Rung, folds: Sequence[int]) -> list[Task]:
    """What a rung asks of a candidate on some folds."""
    epochs = max(1, round(candidate.settings["epochs"] / rung.parts))
    return [Task(candidate, epochs, fold, rung.attack) for fold in folds]


def predicted(task: Task, trials: Sequence[Trial]) -> float:
    """Seconds that a task will take, by those that were tried: 0 where there is none.

    An epoch takes as long as those of the same method (of any, if it is new) at the nearest k, and
    longer in proportion where that is smaller.
    """
    if not trials:
        return 0.0
    alike = [trial for trial in trials if _work(trial.settings) == _work(task.settings)] or trials
    nearest = _k(min(alike, key=lambda trial: abs(_k(trial) - task.candidate.k)))
    epoch = fmean(t.training_seconds / t.epochs for t in alike if _k(t) == nearest)
    epoch *= max(1.0, task.candidate.k / nearest)
    attacks = [t.attack_seconds for t in trials if t.attack == task.attack] or [
        t.attack_seconds * WORK[task.attack] / WORK[t.attack] for t in trials
    ]
    return task.epochs * epoch + fmean(attacks)


def least_left(
    everything: Sequence[Candidate], rungs: Sequence[Rung], trials: list[Trial]
) -> float:
    """Seconds until the least number of candidates is through the first and the last rung.

    Nothing but this is tried where the budget does not reach so far.
    """
    left = 0.0
    for rung in (rungs[0], rungs[-1]):
        asked = [task for one in everything for task in tasks(one, rung, rung.folds[:1])]
        to_do = [task for task in asked if not any(task.done_by(trial) for trial in trials)]
        missing = max(0, LEAST - (len(asked) - len(to_do)))
        left += sum(predicted(task, trials) for task in to_do[:missing])
    return left


def _work(settings: Settings) -> tuple[object, frozenset[str]]:
    """What the time of an epoch depends on beside k."""
    return settings["method"], frozenset(settings)


def _k(trial: Trial) -> int:
    return int(trial.settings["k"])


def reason(outcome: Outcome, want: Want) -> str:
    """Why the best of the finalists was chosen, and how sure that is."""
    best = outcome.best(want)
    words = {
        "balanced": "the mean of clean and robust accuracy",
        "robust": "robust accuracy",
        "clean": "clean accuracy",
    }
    score = best.score(want)[0]
    error = math.sqrt(score * (1 - score) / best.n)
    said = (
        f"{words[want]} is {100 * score:.1f} %, the highest of {len(outcome.finalists)}, on "
        f"{best.n} training images that the models had not seen (standard error about "
        f"{100 * error:.1f} points)"
    )
    others = [one for one in outcome.finalists if one is not best]
    if others:
        next_ = max(others, key=lambda one: one.score(want))
        said += f"; second: {described(next_.candidate)}, {100 * next_.score(want)[0]:.1f} %"
        if score - next_.score(want)[0] < error:
            said += ", as good as far as these images can tell"
    return said
