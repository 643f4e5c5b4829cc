"""A page as a browser sees it: what is in it, and what would be fetched."""

from html.parser import HTMLParser

HOSTILE = {
    "z16": "<script>alert(1)</script>",
    "z17": r"\input{/etc/passwd} 50%_a&b#~^$ {",
    "z18": '=HYPERLINK("http://x")',
    "z19": "a|b `c` **d** <b>e</b> [f](http://g)",
    "z20": "x\x1b[31my\x07z\u202ew",
    "z21": "</script><script>1",
    "rich": "[red]a[/red]",
}
"""Names that some format would take for markup, by rows of the catalogue of bad input."""


class Page(HTMLParser):
    """What is in a page: tags, the text of cells, addresses, the text of each <pre>."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [] if tag in ("meta", "img", "br", "link") else [tag]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)


def parsed(page: str) -> Page:
    found = Page()
    found.feed(page)
    assert found.open == []
    return found
