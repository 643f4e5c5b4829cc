"""How many answers are right, class by class. To count them loads no torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from cartl_cli.core.errors import RunError
from cartl_cli.core.runs.manifest import Run
from cartl_cli.core.runs.recorded import read_recorded, whole_numbers


@dataclass(frozen=True)
class Confusion:
    """How many images of each label got each answer, as (label, answer) → images.

    ``classes`` are the run's, in whose order those that are met are given.
    """

    classes: tuple[str, ...]
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, label: str | None, answer: str) -> None:
        """Count an answer, if its image has a label."""
        if label is not None:
            self.counts[label, answer] += 1

    @property
    def labels(self) -> list[str]:
        """The classes that have images."""
        seen = {label for label, _ in self.counts}
        return [name for name in self.classes if name in seen]

    @property
    def met(self) -> list[str]:
        """The classes that are a label or an answer."""
        seen = {name for pair in self.counts for name in pair}
        return [name for name in self.classes if name in seen]

    @property
    def n(self) -> int:
        """Images with a label."""
        return self.counts.total()

    @property
    def right(self) -> int:
        """Images whose answer is their label."""
        return sum(n for (label, answer), n in self.counts.items() if label == answer)

    def images(self, label: str) -> int:
        """Images with a label."""
        return sum(n for (one, _), n in self.counts.items() if one == label)

    def accuracy(self, label: str) -> float:
        """The share of a label's images that get it as their answer."""
        return self.counts[label, label] / self.images(label)

    @property
    def overall_accuracy(self) -> float:
        """The share of all images that get their label as their answer."""
        return self.right / self.n

    @property
    def balanced_accuracy(self) -> float:
        """The mean accuracy of the classes that have images."""
        return fmean(map(self.accuracy, self.labels))

    @property
    def worst(self) -> str:
        """The class of the lowest accuracy, the first of several."""
        return min(self.labels, key=self.accuracy)

    @property
    def worst_named(self) -> str:
        """The same for people, with how many others are as low."""
        lowest = self.accuracy(self.worst)
        return and_more(self.worst, sum(self.accuracy(label) == lowest for label in self.labels))

    def mistaken_for(self, label: str) -> tuple[str, int] | None:
        """The wrong answer that a label's images get most often, and how many do."""
        wrong = [(name, self.counts[label, name]) for name in self.met if name != label]
        best = max(wrong, key=lambda pair: pair[1], default=(label, 0))
        return best if best[1] else None


def and_more(first: str, count: int) -> str:
    """``ring``, or ``ring and 2 more`` where it is the first of three."""
    return first if count == 1 else f"{first} and {count - 1} more"


def confusions(run: Run) -> tuple[Confusion, ...]:
    """How the model answered on the images of a finished attack: clean, then at each eps.

    An image that stands keeps its clean answer. None of an attack that did not keep its answers.
    Raises RunError where what it kept is not what its manifest says.
    """
    record, classes = run.manifest.outcomes, run.manifest.model.classes
    if record is None:
        return ()
    path, n = run.folder / record.name, run.attack_results.n
    found = whole_numbers(read_recorded(run.folder, record), ("labels", "answers"), path)
    if not found:
        return ()
    labels, answers = (found.get(name, ()) for name in ("labels", "answers"))
    if len(labels) != n or len(answers) != (1 + len(run.attack.eps)) * n:
        raise RunError(f"outcomes have not an answer for each image: {path}")
    rows = (answers[first : first + n] for first in range(0, len(answers), n))
    counted = [Counter(zip(labels, row, strict=True)) for row in rows]
    if not all(0 <= number < len(classes) for one in counted for pair in one for number in pair):
        raise RunError(f"outcomes name a class that the model does not have: {path}")
    return tuple(
        Confusion(
            classes, Counter({(classes[a], classes[b]): images for (a, b), images in one.items()})
        )
        for one in counted
    )


def by_class(answered: Sequence[Confusion]) -> dict[str, Any]:
    """Accuracies class by class, their means and the worst, ready for JSON.

    Of clean images, the first of ``answered``, and under attack, the last; None without any.
    """
    both = {name: answered[at] if answered else None for name, at in (("clean", 0), ("robust", -1))}
    labels = answered[0].labels if answered else []
    return {
        **{f"balanced_{name}": one and one.balanced_accuracy for name, one in both.items()},
        **{
            f"worst_{name}": {
                "class": one and one.worst,
                "accuracy": one and one.accuracy(one.worst),
            }
            for name, one in both.items()
        },
        "classes": [
            {
                "class": label,
                "n": answered[0].images(label),
                "clean_accuracy": answered[0].accuracy(label),
                "robust_accuracy": answered[-1].accuracy(label),
            }
            for label in labels
        ],
    }
