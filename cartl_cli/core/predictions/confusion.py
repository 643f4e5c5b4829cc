"""How many answers are right, where folders tell what is."""

from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean

from cartl_cli.core.predictions.answers import Answer


@dataclass(frozen=True)
class Confusion:
    """How many images of each label got each answer, as (label, answer) → images.

    ``classes`` are the run's, in whose order those that are met are given.
    """

    classes: tuple[str, ...]
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, answer: Answer) -> None:
        """Count an answer, if its image has a label."""
        if answer.label is not None:
            self.counts[answer.label, answer.answer] += 1

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

    def mistaken_for(self, label: str) -> tuple[str, int] | None:
        """The wrong answer that a label's images get most often, and how many do."""
        wrong = [(name, self.counts[label, name]) for name in self.met if name != label]
        best = max(wrong, key=lambda pair: pair[1], default=(label, 0))
        return best if best[1] else None
