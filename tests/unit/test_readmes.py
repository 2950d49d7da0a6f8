"""
What READMEs point at is there: test files, and the targets of relative links.
"""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
READMES = sorted(
    path
    for path in {*HOUSE.rglob("README.md"), *(HOUSE / "docs").glob("*.md")}
    if not any(part.startswith(".") for part in path.relative_to(HOUSE).parts)
    # Links to the folders that are read already.
    and path.relative_to(HOUSE).parts[0] != "everbus"
)
TEST_FILES = {
    str(path.relative_to(HOUSE))
    for room in ("tests", "docs/examples")
    for path in (HOUSE / room).rglob("test_*.py")
}
TEST_NAME = re.compile(r"(?:[\w.-]+/)*test_\w+\.py")
# A file of tests, or one test behind it, also in part: `test_a...`, `..._b_c`.
NAMED = re.compile(
    r"`((?:[\w.-]+/)*test_\w+\.py)`|`((?:\.\.\.)?(?:test)?_\w+(?:\.\.\.)?)`"
)
FUNCTION = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def is_test_file(name: str) -> bool:
    """
    Whether a file of tests ends with *name*, in whole parts of its path.
    """
    return any(f"/{path}".endswith(f"/{name}") for path in TEST_FILES)


def functions_in(name: str) -> set[str]:
    """
    The tests in the files that end with *name*.
    """
    paths = [path for path in TEST_FILES if f"/{path}".endswith(f"/{name}")]

    return {f for path in paths for f in FUNCTION.findall((HOUSE / path).read_text())}


def wrong_functions(line: str) -> list[str]:
    """
    Tests that *line* names behind their file and that are not there; `...` stands for
    a part of the name.
    """
    there: set[str] = set()
    wrong = []
    for file, named in NAMED.findall(line):
        if file:
            there = functions_in(file)
        elif there and not any(
            fnmatchcase(one, named.replace("...", "*")) for one in there
        ):
            wrong.append(named)
    return wrong


def wrong_references(readme: Path) -> list[str]:
    text = readme.read_text()
    tests = [name for name in TEST_NAME.findall(text) if not is_test_file(name)]
    links = [
        target
        for target in LINK.findall(text)
        if not (readme.parent / target).resolve().exists()
    ]

    functions = [one for line in text.splitlines() for one in wrong_functions(line)]

    return tests + links + functions


@pytest.mark.parametrize(
    "readme", READMES, ids=lambda path: str(path.relative_to(HOUSE))
)
def test_every_test_file_and_link_in_a_readme_exists(readme):
    assert wrong_references(readme) == []


def test_a_renamed_test_file_and_a_dead_link_are_found(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("`unit/test_gone.py`, `test_readmes.py`, [x](gone.md), [y](.)")

    assert wrong_references(readme) == ["unit/test_gone.py", "gone.md"]


def test_a_renamed_test_is_found(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "`test_readmes.py`: `test_a_renamed...`, `..._test_is_found`, `..._is_gone`, "
        "`test_gone`"
    )

    assert wrong_references(readme) == ["..._is_gone", "test_gone"]
