"""The numbers of a finished attack, from its verdicts."""

import itertools

from cartl_cli.core.evaluation.verdicts import UNTRIED, Plan, Verdicts, share
from cartl_cli.core.registry.evaluation_attacks import EVALUATION_ATTACKS
from cartl_cli.core.runs.results import Added, AttackResults, Check, EpsResults
from cartl_cli.core.statistics import accuracy_interval


def summary(plan: Plan, verdicts: Verdicts, checks: list[Check], seconds: float) -> AttackResults:
    """The numbers that the per-image verdicts give."""
    n, right = len(verdicts.clean), int(verdicts.clean.sum())
    by_eps = tuple(
        EpsResults(
            eps=budget.eps,
            step_size=budget.step_size,
            robust_accuracy=share(verdicts.worst(number)),
            interval=accuracy_interval(int(verdicts.worst(number).sum()), n),
            final_iterate_accuracy=share(verdicts.last[number]) if plan.final_iterate else None,
            added=tuple(
                Added(
                    attack=name,
                    attacked=int((verdicts.fell_at[number, place] != UNTRIED).sum()),
                    fell=int((verdicts.fell_at[number, place] >= 0).sum()),
                    alone=(
                        share(verdicts.stands_alone(number, place))
                        if EVALUATION_ATTACKS[name].independent
                        else None
                    ),
                    robust_accuracy=share(verdicts.stands(number, place)),
                )
                for place, name in enumerate(plan.attacks)
            ),
        )
        for number, budget in enumerate(plan.budgets)
    )
    curve = [(0.0, right / n), *((found.eps, found.robust_accuracy) for found in by_eps)]
    return AttackResults(
        n=n,
        clean_accuracy=share(verdicts.clean),
        clean_interval=accuracy_interval(right, n),
        by_eps=by_eps,
        half_eps=half_way(curve) if len(by_eps) > 1 else None,
        trust=tuple(checks),
        seconds=seconds,
    )


def half_way(curve: list[tuple[float, float]]) -> float | None:
    """The eps at which a falling curve of (eps, accuracy) is at half of its first value.

    Linear between the points; None if it never is, or if it begins at 0.
    """
    half = curve[0][1] / 2
    for (eps, accuracy), (next_eps, next_accuracy) in itertools.pairwise(curve):
        if accuracy > half >= next_accuracy:
            return eps + (next_eps - eps) * (accuracy - half) / (accuracy - next_accuracy)
    return None
