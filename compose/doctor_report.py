"""
A diagnosis as text: a paragraph for each part, and the sum in the last line.

Lines fit the terminal. A pipe gets each finding, meaning and remedy on one line, unless
COLUMNS is set.
"""

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console

from everbus.compose.diagnosis import PART_OF, Diagnosis, measured_text, verdicts_of
from everbus.gateway.health.verdicts import IndicatorResult, Verdict

_STYLES: dict[Verdict, str] = {"pass": "", "warn": "yellow", "fail": "bold red"}
_NAMES_WIDTH = max(map(len, PART_OF))
_NARROWEST = 40

_Line = tuple[str, str]


def print_report(diagnosis: Diagnosis) -> None:
    """
    Print the diagnosis for people.
    """
    # Without markup: brackets in names are not colours.
    console = Console(markup=False, highlight=False, emoji=False)
    is_bounded = console.is_terminal or "COLUMNS" in os.environ
    width = max(console.width, _NARROWEST) if is_bounded else sys.maxsize
    for part, findings in diagnosis.by_part().items():
        for line, style in _paragraph(part, findings, width):
            console.print(line, style=style, soft_wrap=True)
    console.print(_sum(diagnosis, width), soft_wrap=True)


def _paragraph(
    part: str, findings: Sequence[IndicatorResult], width: int
) -> Iterator[_Line]:
    counted = verdicts_of(findings)
    shown = (
        f"{counted[one]} {one}" for one in reversed(_STYLES.keys()) if counted[one]
    )
    yield f"{part}: {', '.join(shown)}", "bold"
    for finding in findings:
        yield from _finding(finding, width)
    yield "", ""


def _finding(finding: IndicatorResult, width: int) -> Iterator[_Line]:
    """
    What was measured; of trouble also what it means, and the remedy.
    """
    head = f"  {finding.verdict}  {finding.name:{_NAMES_WIDTH}}  "
    for line in _folded(measured_text(finding), head, width):
        yield line, _STYLES[finding.verdict]
    if finding.verdict == "pass":
        return
    for text, indent in ((finding.means, " " * 8), (finding.remedy, " " * 6 + "→ ")):
        for line in _folded(text, indent, width):
            yield line, ""


def _folded(text: str, head: str, width: int) -> list[str]:
    """
    *text* after *head*, below itself where it needs several lines.
    """
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
    )


def _sum(diagnosis: Diagnosis, width: int) -> str:
    total, troubles = len(diagnosis.findings), diagnosis.troubles()
    if not troubles:
        return f"none of {total} needs attention"
    verb = "needs" if len(troubles) == 1 else "need"
    names = ", ".join(one.name for one in troubles)
    text = f"{len(troubles)} of {total} {verb} attention: {names}"

    return textwrap.shorten(text, width, placeholder=" …")
