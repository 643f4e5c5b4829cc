"""Values as people write them, ``8/255`` or ``a,b,c``, and checks that several settings share."""

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import ConfigDict, ValidationInfo

from cartl_cli.core.choices import Norm

SETTINGS = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
POSITIONAL = {"positional": True}  # of a field: an argument of the command line, not a flag
STORED = {"stored": True}
"""The context in which the settings of runs that are there are validated: older ones had more."""

PACKAGED = "cifar10-robust"  # the source model that comes with cartl
ADDRESS = re.compile(rf"(hf-hub|torchvision|timm):(.+)|{PACKAGED}")
ADDRESSES = f"{PACKAGED}, hf-hub:OWNER/NAME, torchvision:NAME or timm:NAME"
"""Where published weights are, which are fetched: the pattern, and in words."""


def decoded(data: bytes) -> str:
    """The text of a file of settings, in UTF-8, after a byte-order mark or not. Raises ValueError.

    UTF-16 without its mark may pass for UTF-8: half of its bytes are 0, which no text has.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError("is no text in UTF-8; save it as UTF-8")
    return text


def parse_whole(value: object) -> object:
    """``"12"`` → 12; ``"3.5"``, ``"1e3"`` and ``""`` are refused rather than rounded.

    So is what has more than 18 digits: nothing is counted that far.
    """
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("must be a whole number")
    if isinstance(value, str):
        if not re.fullmatch(r"[+-]?\d{1,18}", value):
            raise ValueError("must be a whole number")
        return int(value)
    if isinstance(value, int) and abs(value) >= 10**18:
        raise ValueError("must be a whole number of at most 18 digits")
    return value


def parse_number(value: object) -> object:
    """``"8/255"`` or ``"0.03"`` → float. Nothing is evaluated."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", value):
        raise ValueError(f"write {value.strip().replace(',', '.')}")
    parts = value.split("/")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise ValueError("must be a number such as 0.03 or 8/255") from None
    if len(numbers) > 2 or (len(numbers) == 2 and numbers[1] == 0):
        raise ValueError("must be a number such as 0.03 or 8/255")
    return numbers[0] / numbers[1] if len(numbers) == 2 else numbers[0]


def parse_blocks(value: object) -> object:
    """``"6"`` → 6; ``"auto"`` is left as it is."""
    return _or_auto(parse_whole, value)


def parse_radius(value: object) -> object:
    """``"0.02"`` → 0.02; ``"auto"`` is left as it is."""
    return _or_auto(parse_number, value)


def _or_auto(parse: Callable[[object], object], value: object) -> object:
    if value == "auto":
        return value
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


def parse_pixels(value: object) -> object:
    """A pixel fraction on the 0..1 scale, with a hint for those who think in 0..255."""
    number = parse_number(value)
    if isinstance(number, int | float):
        check_pixels(number)
    return number


def check_pixels(number: float) -> None:
    """Refuse what is above 1 on the 0..1 scale of pixels. Raises ValueError."""
    if number > 1:
        hint = f"; did you mean {number:g}/255?" if number <= 255 else ""
        raise ValueError(f"is on a 0..1 scale, 8/255 = 0.0314{hint}")


def parse_eps(value: object) -> object:
    """``"2/255,4/255"`` → two numbers; a number alone is a list of one."""
    if not isinstance(value, str):
        return [value] if isinstance(value, int | float) else value
    if re.fullmatch(r"\s*\d+,\d+\s*", value):  # 0,03 is no list
        return [parse_number(value)]
    return [parse_number(part) for part in value.split(",")]


def parse_list(value: object) -> object:
    """``'a,"b,c"'`` → ["a", "b,c"], as in a line of CSV; the empty text and ``"none"`` → []."""
    if not isinstance(value, str):
        return value
    if value in ("", "none"):
        return []
    try:
        (parts,) = csv.reader([value], skipinitialspace=True, strict=True)
    except csv.Error:
        raise ValueError(
            "must be a list such as a,b; what has a comma in quotes, as 'a,\"b,c\"'"
        ) from None
    return [part.strip() for part in parts]


def write_list(values: Iterable[object]) -> str:
    """The text that ``parse_list`` reads as these values."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def parse_names(value: object) -> object:
    """``"a,b"`` like above, or ``"@FILE"`` with a name on each line. Raises ValueError."""
    if not isinstance(value, str) or not value.startswith("@"):
        return parse_list(value)
    try:
        text = decoded(Path(value[1:]).expanduser().read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {value[1:]!r}: {error.strerror}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def shown_pixels(value: float) -> str:
    """0.0314 → ``8/255`` where it is a whole number of 255ths, below 1."""
    steps = value * 255
    whole = abs(steps - round(steps)) < 1e-6 and value < 1
    return f"{round(steps)}/255" if whole else f"{value:g}"


def check_interval(text: str) -> str:
    """``"10m"`` (minutes) or ``"500"`` (steps), above zero. Raises ValueError."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,3})?m|\d{1,9}", text):
        raise ValueError("must be minutes such as 10m, or a number of steps such as 500")
    if float(text.removesuffix("m")) == 0:
        raise ValueError("must be above 0, such as 10m or 500")
    return text


def check_numbers(text: str, words: tuple[str, ...], example: str) -> str:
    """One of the ``words``, or whole numbers from 1 on, as ``"2,4,6"``. Raises ValueError."""
    if text not in words and not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", text):
        raise ValueError(f"must be {', '.join(words)}, or numbers such as {example}")
    return text


def divergence_weight(method: str, trades_beta: float | None) -> float | None:
    """β of TRADES, 6 unless it is given; None of other methods."""
    if method != "trades":
        return None
    return 6.0 if trades_beta is None else trades_beta


def own_eps(dataset: str | None, norm: Norm = "linf") -> float:
    """The radius that a data set is trained and attacked with unless another is given.

    In l2 it is the usual one of images of 32 pixels.
    """
    if norm == "l2":
        return 0.5
    return 0.15 if dataset in ("mnist", "fashion-mnist") else 8 / 255


def check_eps(eps: float, info: ValidationInfo) -> None:
    """An attack that may change nothing finds nothing. Raises ValueError."""
    if eps == 0 and info.context is not STORED:
        raise ValueError("eps: an attack with 0 changes nothing; give more than 0")


def check_step_size(eps: float, step_size: float | None) -> None:
    """A step leads at most from one side of the ball to the other. Raises ValueError."""
    if step_size is not None and eps > 0 and step_size > 2 * eps:
        raise ValueError(f"step_size: must be at most 2 x eps = {2 * eps:g}, got {step_size:g}")


def check_schedule(schedule: str, milestones: tuple[int, ...], warmup: float, epochs: int) -> None:
    """Milestones rise and lie within the epochs, as the warm-up does. Raises ValueError."""
    if schedule != "step":
        return
    rising = all(a < b for a, b in itertools.pairwise(milestones))
    if not rising or any(not 0 < milestone < epochs for milestone in milestones):
        shown = ",".join(map(str, milestones))
        raise ValueError(f"milestones: must rise and be < epochs ({epochs}), got {shown}")
    if warmup >= epochs:
        raise ValueError(f"warmup_epochs: must be < epochs ({epochs}), got {warmup:g}")


def check_batch(batch_size: int) -> None:
    """A single image has no variance for batch norm. Raises ValueError."""
    if batch_size < 2:
        raise ValueError("batch_size: batch norm needs at least 2 images per batch, got 1")
