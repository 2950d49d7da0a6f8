"""
Named contexts: where they are kept, what they hold, and what wins over them.
"""

import os
import stat
import sys

import pytest

from everbus.compose import cli
from everbus.compose.contexts import (
    MAX_CONTEXTS,
    Context,
    Contexts,
    contexts_path,
    printed_token,
    settings_of,
    write_contexts,
)
from everbus.compose.exit_codes import Failed

URL = "redis://bus:6379"


@pytest.fixture
def home(tmp_path, monkeypatch):
    environ = {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", environ)
    return tmp_path


@pytest.fixture
def everbus(home, monkeypatch, capsys):
    """
    Runs the command as a shell does; returns exit code, stdout and stderr.
    """

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["everbus", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


def test_a_context_is_kept_for_this_user_alone(everbus, home):
    added = everbus("context", "add", "prod", "--url", URL, "--token-file", "t")

    file = home / "everbus" / "contexts.json"
    assert added[0] == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "url", ["redis://u:geheim@bus:6379", "redis://bus:6379?password=geheim"]
)
def test_a_secret_is_stored_only_where_it_is_named_so(url, everbus, home):
    file = home / "everbus" / "contexts.json"

    refused = everbus("context", "add", "prod", "--url", url)
    assert (refused[0], file.exists(), "geheim" in refused[2]) == (2, False, False)

    everbus("context", "add", "prod", "--plain-url", url, "--plain-token", "tok-en")
    shown = everbus("context", "list")[1] + everbus("context", "show", "prod")[1]

    assert "geheim" in file.read_text()
    assert "geheim" not in shown
    assert "tok-en" not in shown


def test_the_one_in_use_counts_until_it_is_removed(everbus):
    for name in ("one", "two"):
        everbus("context", "add", name, "--url", f"redis://{name}", "--mad", name)
    everbus("context", "use", "two")

    assert settings_of(os.environ, "")["EVERBUS_REDIS_URL"] == "redis://two"
    assert settings_of(os.environ, "one")["EVERBUS_MAD"] == "one"
    everbus("context", "remove", "two")
    assert settings_of(os.environ, "") == {}


def test_variables_of_the_environment_win(home):
    context = Context(url=URL, mad="ann", token="of-this-bus")
    write_contexts(
        contexts_path(os.environ), Contexts(current="c", contexts={"c": context})
    )

    def names(**environ):
        return set(settings_of({**os.environ, **environ}, ""))

    assert names() == {"EVERBUS_REDIS_URL", "EVERBUS_MAD", "EVERBUS_TOKEN"}
    assert names(EVERBUS_MAD="bob") == {"EVERBUS_REDIS_URL", "EVERBUS_TOKEN"}
    assert names(EVERBUS_TOKEN_FILE="f") == {"EVERBUS_REDIS_URL", "EVERBUS_MAD"}


@pytest.mark.parametrize("name", ["REDIS_URL", "REDIS_URL_FILE", "MAD_URL"])
def test_a_token_never_goes_to_another_bus(name, home):
    """
    Where the environment names the bus, the context's token stays where it is.
    """
    context = Context(url=URL, token="of-this-bus")
    write_contexts(
        contexts_path(os.environ), Contexts(current="c", contexts={"c": context})
    )

    assert settings_of({**os.environ, f"EVERBUS_{name}": "redis://other"}, "c") == {}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--context", "gone", "lanes"), "there is no context 'gone'; known are: c"),
        (("--context", "c", "manager"), "`everbus manager` takes no context"),
        (("context", "use", "gone"), "known are: c"),
        (("context", "add", "a b", "--url", URL), "'a b' is no name of a context"),
        (("context", "add", "x"), "give one of --url, --url-file and --plain-url"),
        (
            (
                *("context", "add", "x", "--url", URL),
                *("--token-file", "f", "--token-command", "c"),
            ),
            "give one of --token-file",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, told, everbus):
    everbus("context", "add", "c", "--url", URL)

    code, said, talk = everbus(*arguments)

    assert (code, said, talk.count("\n")) == (2, "", 1)
    assert told in talk


def test_a_taken_name_is_a_conflict(everbus):
    everbus("context", "add", "c", "--url", URL)

    assert everbus("context", "add", "c", "--url", URL)[0] == 5
    assert everbus("context", "add", "c", "--url", URL, "--replace")[0] == 0


def test_a_damaged_file_is_named(everbus, home):
    file = home / "everbus" / "contexts.json"
    everbus("context", "add", "c", "--url", URL)
    file.write_text('{"contexts": 7}')

    code, _, talk = everbus("lanes")

    assert (code, str(file) in talk, talk.count("\n")) == (2, True, 1)


def test_contexts_are_bounded():
    many = Contexts(contexts={f"c{n}": Context(url=URL) for n in range(MAX_CONTEXTS)})

    with pytest.raises(Failed, match="remove one"):
        many.with_context("more", Context(url=URL), replace=False)


def test_the_command_for_a_token_is_run_without_a_shell():
    assert printed_token("echo '$HOME'") == "$HOME"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("true", "printed nothing"),
        (f"{sys.executable} -c \"print('secret'); raise SystemExit(3)\"", "with 3"),
        ("/not/there", "cannot run"),
        ("'", "cannot run"),
    ],
)
def test_a_command_that_prints_no_token_is_told_without_its_output(command, told):
    with pytest.raises(Failed, match=told) as failed:
        printed_token(command)

    assert "\n" not in str(failed.value)


def test_a_relative_config_home_is_ignored(home):
    path = contexts_path({"XDG_CONFIG_HOME": "relative"})

    assert path.is_absolute()
    assert path.parts[-3:] == (".config", "everbus", "contexts.json")
