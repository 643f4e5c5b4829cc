"""The one way foreign text (paths, names, file contents) reaches a terminal."""

LONGEST = 2_000


def printable(text: str) -> str:
    """The text with every character that a terminal would act on written as an escape.

    What a file may have made longer than anybody reads is cut.
    """
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in short.encode("utf-8", "backslashreplace").decode("utf-8")
    )
