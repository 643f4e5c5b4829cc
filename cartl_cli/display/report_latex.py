"""A report as tables for a paper; plain ASCII, so that any engine takes them."""

from collections.abc import Iterable

from cartl_cli.display.report_sheets import Cell, Report, Sheet, sheets_of
from cartl_cli.display.terminal import printable

PACKAGES = r"""% \usepackage[T1]{fontenc}
% \usepackage{booktabs,graphicx,textcomp}
"""
LINES = 20  # of a table, so that it and its notes fit on a page
LONG, LONGEST = 30, 44  # characters of a text that is broken into lines, and of such a line
WORD, PIECE = 20, 10  # characters of a word that may be broken, and of what it is broken into
FITTING = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
LATEX = {
    **{one: f"\\{one}" for one in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": "{-}",
    "[": "{[}",
    "]": "{]}",
    **{"β": r"$\beta$", "λ": r"$\lambda$", "±": r"$\pm$", "≤": r"$\le$", "→": r"$\to$"},
    **{"–": "--", "−": "$-$", "…": r"\ldots{}", "†": r"\textdagger{}", "≥": r"$\ge$"},
    **{"ℓ": r"$\ell$", "∞": r"$_\infty$", "₂": r"$_2$", "×": r"$\times$", "σ": r"$\sigma$"},
}


def latex(report: Report) -> str:
    """Tables for the packages booktabs, graphicx and textcomp, none wider than the text."""
    tables = [table for sheet in sheets_of(report) for table in _tables(sheet)]
    return PACKAGES + "\n" + "\n\n".join(tables) + "\n"


def _tables(sheet: Sheet) -> Iterable[str]:
    """The sheet as tables of a page at most; the notes are below the last."""
    long = [
        not right and max((len(one[place].text) for one in sheet.rows), default=0) > LONG
        for place, right in enumerate(sheet.numeric)
    ]
    columns = "".join(
        "r" if right else f"p{{{LONGEST / 2:g}em}}" if broken else "l"
        for right, broken in zip(sheet.numeric, long, strict=True)
    )
    starts = range(0, max(len(sheet.rows), 1), LINES)
    for start in starts:
        lines = [
            r"\clearpage" if start else "",
            r"\begin{table}",
            r"\centering",
            r"\small",
            rf"\caption{{{escaped(sheet.title)}{' (continued)' if start else ''}}}\par\smallskip",
            FITTING,
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            _line(map(escaped, sheet.heads)),
            r"\midrule",
        ]
        for row in sheet.rows[start : start + LINES]:
            lines += _lines(row, long)
        lines += [r"\bottomrule", r"\end{tabular}}"]
        if start == starts[-1]:
            lines += [rf"\par\raggedright\footnotesize {escaped(note)}" for note in sheet.notes]
        yield "\n".join([*(line for line in lines if line), r"\end{table}"])


def _lines(row: tuple[Cell, ...], long: list[bool]) -> Iterable[str]:
    """A line of the sheet, its small print in a line of its own."""
    cells = [
        rf"\raggedright {_broken(cell.text)}" if broken else escaped(cell.text)
        for cell, broken in zip(row, long, strict=True)
    ]
    if not any(cell.small for cell in row):
        yield _line(cells)
        return
    small = [rf"\scriptsize {escaped(cell.small)}" if cell.small else "" for cell in row]
    yield f"{_line(cells)}[-2pt]"
    yield f"{_line(small)}[3pt]"


def _line(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \tabularnewline"


def _broken(text: str) -> str:
    """Words with places at which a long one may be broken."""
    words = printable(text).split(" ")
    pieces = (
        [word[at : at + PIECE] for at in range(0, len(word), PIECE)] if len(word) > WORD else [word]
        for word in words
    )
    return " ".join(r"\allowbreak{}".join(map(escaped, one)) for one in pieces)


def escaped(text: str) -> str:
    """Text that LaTeX shows as it is; a character that not every engine has, by its number."""
    return "".join(
        LATEX.get(one, one if one.isascii() else f"{{[}}U+{ord(one):04X}{{]}}")
        for one in printable(text)
    )
