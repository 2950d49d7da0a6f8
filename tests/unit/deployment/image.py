"""
The Dockerfile, as instructions.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from tests.unit.deployment.manifests import COMPOSE


class Instruction(NamedTuple):
    """
    An instruction, its continued lines joined.
    """

    name: str
    said: str


def instructions() -> list[Instruction]:
    """
    All of them, in order, of all stages.
    """
    text = (COMPOSE / "Dockerfile").read_text()
    lines = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ").splitlines()
    parts = (line.split(None, 1) for line in lines if line.strip())

    return [Instruction(name, said) for name, said in parts]


def runtime() -> list[Instruction]:
    """
    Those of the last stage, which becomes the image.
    """
    found = instructions()
    last = max(n for n, one in enumerate(found) if one.name == "FROM")

    return found[last:]


def environment() -> dict[str, str]:
    """
    The variables that the image sets for everbus.
    """
    return {name: value for name, value in _variables() if name.startswith("EVERBUS_")}


def _variables() -> Iterator[tuple[str, str]]:
    for one in runtime():
        if one.name == "ENV":
            for pair in one.said.split():
                name, _, value = pair.partition("=")
                yield name, value
