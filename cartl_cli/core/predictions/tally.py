"""What came of the files that a model was asked about, counted as the answers come."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cartl_cli.core.evaluation.confusion import Confusion
from cartl_cli.core.predictions.answers import Answer
from cartl_cli.core.predictions.images import Bad


@dataclass
class Tally:
    """Counts of files. ``confusion`` has the answers whose folder is named like a class.

    ``learned`` counts the answers whose image ``was_trained_on``, by its name.
    """

    confusion: Confusion
    was_trained_on: Callable[[str], bool]
    answered: int = 0
    unanswered: int = 0
    survived: int = 0
    learned: int = 0

    @property
    def files(self) -> int:
        """All files so far."""
        return self.answered + self.unanswered

    def add(self, part: Sequence[Answer | Bad]) -> None:
        """Count what is said of a batch of files."""
        for one in part:
            if isinstance(one, Bad):
                self.unanswered += 1
                continue
            self.answered += 1
            self.survived += one.survives is True
            self.learned += self.was_trained_on(one.name)
            self.confusion.add(one.label, one.answer)
