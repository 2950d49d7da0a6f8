"""
Markdown of the reference pages: headings, tables, the first sentence of a docstring.
"""

import re
from collections.abc import Iterable, Sequence
from inspect import getdoc

NOTICE = "<!-- Generated from the code by `make docs`; do not edit. -->"


def page(title: str, *parts: str) -> str:
    """
    A page with its notice and title.
    """
    return "\n\n".join((NOTICE, f"# {title}", *parts)) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    A table; pipes and line ends of its cells are escaped.
    """
    lines = [_row(head), "|" + "---|" * len(head), *map(_row, rows)]

    return "\n".join(lines)


def in_code(text: str) -> str:
    """
    *text* in code font; nothing for an empty one.
    """
    return f"`{text}`" if text else ""


def about(thing: object) -> str:
    """
    The first paragraph of a docstring, on one line.
    """
    return " ".join((getdoc(thing) or "").partition("\n\n")[0].split())


def attributes_of(thing: object) -> dict[str, str]:
    """
    Name → meaning, from the `Attributes:` of a docstring.
    """
    listed = (getdoc(thing) or "").partition("Attributes:")[2]
    # A continued line has eight spaces, the next paragraph none.
    joined = re.sub(r"\n {5,}", " ", listed).partition("\n\n")[0]
    pairs = (line.strip().partition(": ") for line in joined.splitlines())

    return {name: meaning for name, colon, meaning in pairs if colon}


def _row(cells: Sequence[str]) -> str:
    escaped = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)

    return "| " + " | ".join(escaped) + " |"
