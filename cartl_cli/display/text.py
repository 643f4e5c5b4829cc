"""The one way foreign text (paths, names, file contents) reaches a terminal."""


def printable(text: str) -> str:
    """The text with every character that a terminal would act on written as an escape."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text.encode("utf-8", "backslashreplace").decode("utf-8")
    )
