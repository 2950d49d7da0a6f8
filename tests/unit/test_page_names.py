"""
What READMEs and pages of the docs name is there: files, commands with their options,
settings, and targets of make. The references beside them are made from the code.
"""

import re

import pytest

from tests.unit.test_readmes import HOUSE, READMES

CODE = re.compile(r"^```.*?$(.*?)^```|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"[\w./-]+\.(?:py|md|mjs|ya?ml|html|svg|sh|toml)")
COMMAND = re.compile(
    r"(?:^|(?<=[;&|(] ))(?:\$ )?(?:[A-Z_]+=\S+ )*everbus ([^\n#;&|]+)", re.M
)
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")
SETTING = re.compile(r"\bEVERBUS_[A-Z0-9_]*[A-Z0-9]\b")
TARGET = re.compile(r"^make ([\w-]+)", re.MULTILINE)

REFERENCE = HOUSE / "docs" / "reference"
FILES = {
    f"/{path.relative_to(HOUSE)}"
    for path in HOUSE.rglob("*.*")
    if not any(part.startswith(".") for part in path.relative_to(HOUSE).parts)
}
# A setting may also come as a file; the tests read some of their own.
SETTINGS = {
    name + ending
    for path in (REFERENCE / "settings.md", *(HOUSE / "tests").rglob("*.py"))
    if path.name != "test_page_names.py"
    for name in SETTING.findall(path.read_text())
    for ending in ("", "_FILE")
}
TARGETS = set(re.findall(r"^([\w-]+):", (HOUSE / "Makefile").read_text(), re.MULTILINE))
# Command, as `dead show` → its options.
COMMANDS = {
    heading: {"--help", *OPTION.findall(text)}
    for heading, text in re.findall(
        r"^##+ everbus ([\w ]+)\n(.*?)(?=^##|\Z)",
        (REFERENCE / "cli.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
}
OWN_OPTIONS = {"--help", "--version", "--install-completion", "--context"}
GROUPS = {name.partition(" ")[0] for name in COMMANDS if " " in name}


def code_in(text: str) -> list[str]:
    """
    The blocks and the spans of code; in a table a bar is escaped.
    """
    return [(block or span).replace("\\|", "|") for block, span in CODE.findall(text)]


def wrong_files(code: list[str]) -> list[str]:
    """
    Named files that are nowhere in the house, by the end of their paths.
    """
    named = [span for span in code if FILE.fullmatch(span)]
    return [
        name
        for name in named
        if not any(path.endswith("/" + name.lstrip("./")) for path in FILES)
    ]


def wrong_commands(code: list[str]) -> list[str]:
    """
    Calls of `everbus` with a command or an option that it does not have.
    """
    return [
        call for part in code for call in COMMAND.findall(part) if not is_command(call)
    ]


def is_command(call: str) -> bool:
    """
    Whether a call, without its first word, names a command and its options.
    """
    options = set(OPTION.findall(call))
    first, *rest = call.split()
    if first == "--context":
        _name, *command = rest
        return command in ([], ["…"]) or is_command(" ".join(command))
    if first.startswith("-"):
        return options <= OWN_OPTIONS
    # A group may be a command as well: `token`.
    alone = first in COMMANDS and (not rest or rest[0].startswith(("-", "[")))
    if alone or first not in GROUPS:
        return has(first, options)
    if not rest:
        return True

    return all(has(f"{first} {name}", options) for name in rest[0].split("|"))


def has(name: str, options: set[str]) -> bool:
    """
    Whether there is a command of that name with these options.
    """
    return name in COMMANDS and options <= COMMANDS[name]


def wrong_settings(text: str) -> list[str]:
    """
    Settings that no part reads.
    """
    return sorted(set(SETTING.findall(text)) - SETTINGS)


def wrong_targets(code: list[str]) -> list[str]:
    """
    Targets that the Makefile does not have.
    """
    return [
        name for part in code for name in TARGET.findall(part) if name not in TARGETS
    ]


def wrong_names(text: str) -> list[str]:
    code = code_in(text)
    return [
        *wrong_files(code),
        *wrong_commands(code),
        *wrong_settings(text),
        *wrong_targets(code),
    ]


@pytest.mark.parametrize("page", READMES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_what_a_page_names_is_there(page):
    assert wrong_names(page.read_text()) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see `gone.py` and `test_page_names.py`", ["gone.py"]),
        ("see `bus/gone.md`, `bus/README.md`", ["bus/gone.md"]),
        ("`everbus gone`, `everbus doctor`", ["gone"]),
        ("`everbus dead gone`, `everbus dead show ID`", ["dead gone"]),
        ("```\neverbus dev --gone  # why\n```", ["dev --gone  "]),
        ("```\nA=b everbus verify --all\neverbus lost\n```", ["lost"]),
        ("`EVERBUS_GONE=1` and EVERBUS_REDIS_URL_FILE", ["EVERBUS_GONE"]),
        ("`make gone` or `make demo`", ["gone"]),
    ],
)
def test_what_is_gone_is_found(text, found):
    assert wrong_names(text) == found


def test_it_knows_the_commands_of_the_reference():
    assert {"dev", "dead show", "mads add"} <= set(COMMANDS)
    assert {"--all", "--repair-plan"} <= COMMANDS["verify"]
