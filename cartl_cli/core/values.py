"""Values as people write them: ``8/255``, ``a,b,c``, whole numbers that are whole."""

import re


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
    """``"a,b"`` → ["a", "b"]; the empty text and ``"none"`` → []."""
    if isinstance(value, str):
        return [] if value in ("", "none") else [part.strip() for part in value.split(",")]
    return value


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


def is_due(interval: str, steps: int, seconds: float) -> bool:
    """Whether an interval (see ``check_interval``) has passed."""
    if interval.endswith("m"):
        return seconds >= 60 * float(interval.removesuffix("m"))
    return steps >= int(interval)
