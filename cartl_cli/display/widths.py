"""How a table is laid out in so many columns of a screen, so that nothing of it is lost."""

import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

WORD = 16  # cells; a longer word may be folded, a shorter one only where there is no other way
NARROWEST = 8  # to which a column is made narrower before the table is given up
Column = tuple[str, bool, Sequence[str]]
"""Head, whether numbers, the texts below it."""


def widths(columns: Sequence[Column], room: int) -> list[int] | None:
    """The widths of the columns of a table, of ``room``; None where it has too little.

    Numbers are never folded. Heads and texts are folded between words, and within words only
    where nothing else is left.
    """
    least, most = [], []
    for head, numeric, texts in columns:
        words = [word for text in (head, *texts) for word in re.split(r"(?<=\S)\s+", text)]
        if numeric:
            unfolded = [cell_len(text) for text in (*texts, *head.split())]
        else:
            unfolded = [min(WORD, cell_len(word)) for word in words]
        least.append(max(unfolded, default=0))
        most.append(max(map(cell_len, (head, *texts))))
    spare = room - sum(least)
    while spare < 0:
        place = max(range(len(least)), key=lambda one: (not columns[one][1], least[one]))
        if columns[place][1] or least[place] <= NARROWEST:
            return None
        least[place] -= 1
        spare += 1
    for place, (low, high) in enumerate(zip(least, most, strict=True)):
        least[place] += min(high - low, spare)
        spare -= least[place] - low
    return least


def lines(
    heads: Sequence[Text],
    rows: Sequence[Sequence[Text]],
    above: Sequence[Text],
    below: Sequence[Text],
) -> Group:
    """What a table says without its columns: of each row a line for each cell that is not empty."""
    records = [
        Text("\n").join(
            Text(": ").join([head, text]) if head else text
            for head, text in zip(heads, row, strict=True)
            if text
        )
        for row in rows
    ]
    parts = [*above, *records, *below]
    return Group(*(shown for part in parts for shown in (part, "")))
