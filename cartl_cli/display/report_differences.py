"""What the lines of a report have in common, and what tells them apart.

A setting is said once for all lines, else once for a method or for the data, else in its line. What
differs in the attack or its images is said of a letter, which stands in each line.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from cartl_cli.core.choices import NORM_SIGNS
from cartl_cli.core.config.values import shown_pixels
from cartl_cli.core.registry.transfer_methods import symbols
from cartl_cli.core.reports.provenance import GONE
from cartl_cli.core.reports.rows import Row
from cartl_cli.display.terminal import printable

LONGEST = 60  # characters of a name in a table
EVERYWHERE = "In every line"
UNSET = {"": "none", "None": "default", "True": "on", "False": "off"}

Parts = dict[str, str]
"""What is told of a line, by what it is about."""


@dataclass(frozen=True)
class ToldApart:
    """Of each line its own settings and the letter of its attack; ``notes`` for all the rest."""

    settings: tuple[Parts, ...]
    keys: tuple[str, ...]
    notes: tuple[str, ...]


def told_apart(rows: Sequence[Row]) -> ToldApart:
    """Everything that two lines differ in, but for data, method, k and eps, and all they share."""
    everywhere = [EVERYWHERE] * len(rows)
    methods = [row.setting.method for row in rows]
    pairs = [data_pair(row) for row in rows]
    both = [f"{method}, {pair}" for method, pair in zip(methods, pairs, strict=True)]
    alike = [
        {"data": pair, "k": f"k {row.setting.k}", "eps": f"eps {shown_pixels(row.eps)}"}
        for row, pair in zip(rows, pairs, strict=True)
    ]
    _, shared = said_once(alike, (everywhere,))
    names = varied(rows)
    settings = [_settings(row, names) for row in rows]
    settings, more = said_once(settings, (everywhere, pairs, methods, both))
    # not by method: lines that were not attacked alike must show it, whatever their methods
    conditions = [_conditions(row) for row in rows]
    if len(set(pairs)) == 1 or not _as_expected(rows, pairs):
        conditions = [one | _images(row) for one, row in zip(conditions, rows, strict=True)]
    if len({row.conditions.classes for row in rows}) == 1:
        for one in conditions:
            one.pop("classes", None)
    conditions, most = said_once(conditions, (everywhere, pairs))
    said: dict[str, list[str]] = {}
    for _, label, text in sorted((*shared, *more, *most), key=lambda one: one[0]):
        said.setdefault(label, []).append(text)
    notes = [f"{label}: {'; '.join(parts)}." for label, parts in said.items()]
    keys, explained = lettered(["; ".join(one.values()) for one in conditions])
    if any(row.setting.source_data == GONE for row in rows):
        explained.append(f"{GONE}: the run of the source model is not there to say.")
    return ToldApart(tuple(settings), tuple(keys), (*notes, *explained))


def in_words(rows: Sequence[Row], untold: Collection[str] = ()) -> list[list[str]]:
    """Each row as their table has it: its method, then whatever tells it from the others.

    ``untold``: the names of settings, ``k`` or ``attack eps`` that are not to be told.
    """
    told = told_apart(rows)
    columns = [
        {
            "k": f"k {row.setting.k}",
            "data": data_pair(row),
            "attack eps": f"eps {shown_pixels(row.eps)}",
        }
        for row in rows
    ]
    varying, _ = said_once(columns, ([EVERYWHERE] * len(rows),))
    return [
        [
            row.setting.method,
            *(text for name, text in (*own.items(), *more.items()) if name not in untold),
            *([f"key {key}"] if key else []),
        ]
        for row, own, more, key in zip(rows, told.settings, varying, told.keys, strict=True)
    ]


def said_once(
    parts: Sequence[Parts], groupings: Sequence[Sequence[str]]
) -> tuple[list[Parts], list[tuple[int, str, str]]]:
    """The parts that each line must tell itself, and those that a whole group of lines shares.

    A grouping has the label of each line's group. A part is shared in the first grouping in each
    of whose groups all lines agree in it: as that grouping's place, the group's label, the text.
    """
    own = [dict(one) for one in parts]
    shared = []
    for name in dict.fromkeys(name for one in parts for name in one):
        for place, labels in enumerate(groupings):
            groups: dict[str, set[str | None]] = {}
            for label, one in zip(labels, parts, strict=True):
                groups.setdefault(label, set()).add(one.get(name))
            if all(len(values) == 1 for values in groups.values()):
                texts = [(label, text) for label, (text,) in groups.items()]
                shared += [(place, label, text) for label, text in texts if text]
                for one in own:
                    one.pop(name, None)
                break
    return own, shared


def lettered(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """A letter for each text, none for an empty one, and what the letters mean."""
    different = list(dict.fromkeys(text for text in texts if text))
    letters = {text: _letters(place) for place, text in enumerate(different)}
    return (
        [letters.get(text, "") for text in texts],
        [f"Key {letter}: {text}." for text, letter in letters.items()],
    )


def _letters(place: int) -> str:
    """a, b, …, z, aa, ab and so on."""
    more, last = divmod(place, len(ascii_lowercase))
    return (_letters(more - 1) if more else "") + ascii_lowercase[last]


def short(text: str) -> str:
    """A name without control characters, no longer than a table can hold."""
    whole = printable(text)
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 1]}…"


def data_pair(row: Row) -> str:
    """``source → target``, of a source run its data alone; of a path its last part."""
    setting = row.setting
    names = [name for name in (setting.source_data, setting.target_data) if name is not None]
    return " → ".join(map(_last_part, names))


def _last_part(name: str) -> str:
    is_path = name.startswith(("/", "./", "../", "~"))
    return short(name.rstrip("/").rsplit("/", 1)[-1] if is_path else name)


def varied(rows: Sequence[Row]) -> list[str]:
    """The names among ``others`` in which the rows differ."""
    settings = [dict(row.setting.others) for row in rows]
    names = list(dict.fromkeys(name for one in settings for name in one))
    # a setting that a method does not have makes no difference between methods
    values = {name: {one[name] for one in settings if name in one} for name in names}
    return [name for name in names if len(values[name]) > 1]


def _settings(row: Row, others: Sequence[str]) -> Parts:
    setting = row.setting
    signs = symbols()
    numbers = sorted((signs[name], value) for name, value in setting.numbers)
    numbers.append(("fraction", setting.fraction))
    found = {name: f"{name} {value:g}" for name, value in numbers}
    if setting.freeze_bn is not None:
        found["freeze_bn"] = f"{word('freeze_bn')} {setting.freeze_bn}"
    found["arch"] = short(setting.arch)
    told = dict(setting.others)
    return found | {
        name: f"{word(name)} {_value(name, told[name])}" for name in others if name in told
    }


def word(name: str) -> str:
    """A stored setting as its flag has it: ``source awp_gamma`` → ``source awp-gamma``."""
    return name.replace("_", "-")


def _value(name: str, text: str) -> str:
    """A stored setting in words."""
    field = name.removeprefix("source ")
    if field == "classes" and not text:
        return "all"
    if field in ("eps", "step_size") and text not in UNSET:
        return shown_pixels(float(text))
    return UNSET.get(text, short(text))


def _conditions(row: Row) -> Parts:
    """The attack, but for eps, and how many images of which split."""
    found = row.conditions
    subset = "" if found.subset is None else f", a subset drawn by seed {found.subset[1]}"
    split = f"{found.measured} images{subset}"
    return {**attack_parts(row), "split": split, "n": f"n {found.n}"}


def _as_expected(rows: Sequence[Row], pairs: Sequence[str]) -> bool:
    """Whether the names of the data say on which images each model was attacked."""
    found = {(pair, *_images(row).values()) for row, pair in zip(rows, pairs, strict=True)}
    last = [pair.rsplit(" → ", 1)[-1] for pair in pairs]
    named = all(short(row.conditions.data) == name for row, name in zip(rows, last, strict=True))
    return named and len(found) == len(set(pairs))


def _images(row: Row) -> Parts:
    """The data byte for byte, and its classes."""
    found = row.conditions
    classes = f"{len(found.classes)} classes ({short(', '.join(found.classes))})"
    return {"data": f"{short(found.data)} (sha256 {found.fingerprint[:8]}…)", "classes": classes}


def attack_parts(row: Row) -> Parts:
    """Which attacks with which budget, but for eps."""
    found = row.conditions
    parts = {"attacks": f"{NORM_SIGNS[found.norm]} {', '.join(found.attacks)}"}
    effort = row.results[0].run.attack.effort
    if "steps" in effort:
        parts["steps"] = f"{effort['steps']} steps"
        if found.step_size is not None:
            parts["steps"] += f" of {shown_pixels(found.step_size)}"
    if "restarts" in effort:
        parts["restarts"] = f"{effort['restarts']} restart{'s' * (effort['restarts'] > 1)}"
    if "queries" in effort:
        parts["queries"] = f"{effort['queries']} queries"
    if len(found.eps) > 1:
        parts["from"] = f"up from eps {shown_pixels(found.eps[0])}"
    return parts


def attack_words(row: Row) -> str:
    """The attack in a line, but for eps."""
    return ", ".join(attack_parts(row).values())
