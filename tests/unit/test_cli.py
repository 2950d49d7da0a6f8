"""
The everbus command: what it prints, and with which code it ends.
"""

import io
import sys

import pytest
import redis
from pymongo.errors import ServerSelectionTimeoutError
from typer.testing import CliRunner

from everbus.bus.errors import ERRORS, Forbidden, NotFound, Unavailable, VersionConflict
from everbus.compose import cli, exit_codes
from everbus.compose.command_output import print_table
from everbus.compose.dev_command import passed_on
from everbus.compose.durations import seconds_of
from everbus.compose.stack_folder import StackError
from everbus.gateway.identity.tokens import Identity, Key

SECRET = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("JWT_SECRET", "TOKEN", "REDIS_URL"):
        monkeypatch.delenv(f"EVERBUS_{name}", raising=False)


@pytest.fixture
def everbus(monkeypatch, capsys):
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


@pytest.mark.parametrize("command", ["dev", "token", "explain"])
def test_every_command_has_help_with_an_example(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])

    assert result.exit_code == 0
    assert f"Example: {'export ' if command == 'token' else ''}" in result.output


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_code_is_explained(everbus, code):
    exit_code, said, _ = everbus("explain", code)

    assert exit_code == 0
    assert f"HTTP {ERRORS[code].status}" in said
    assert ERRORS[code].__doc__.split()[0] in said


def test_an_unknown_code_gives_the_nearest(everbus):
    exit_code, said, talk = everbus("explain", "version_conflit")

    assert (exit_code, said) == (2, "")
    assert "did you mean version_conflict?" in talk


def test_a_token_is_what_identity_accepts(everbus, monkeypatch):
    monkeypatch.setenv("EVERBUS_JWT_SECRET", SECRET)

    exit_code, said, talk = everbus("token", "--name", "ada", "--role", "user")

    identity = Identity([Key("HS256", SECRET)], "everbus", "everbus")
    principal = identity.principal_of(said.strip())
    assert (exit_code, talk) == (0, "")
    assert (principal.name, principal.role) == ("ada", "user")


def test_a_token_without_a_secret_gives_the_remedy(everbus):
    exit_code, said, talk = everbus("token")

    assert (exit_code, said) == (2, "")
    assert ". .everbus/env" in talk


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--ttl", "soon"), "wanted a number and s, m, h or d"),
        (("--name", "a b"), "name is 'a b'"),
        (("--role", "king"), "king"),
    ],
)
def test_a_mistake_has_no_traceback(everbus, monkeypatch, arguments, told):
    monkeypatch.setenv("EVERBUS_JWT_SECRET", SECRET)

    exit_code, said, talk = everbus("token", *arguments)

    assert (exit_code, said) == (2, "")
    assert told in talk
    assert "Traceback" not in talk


def test_a_short_secret_is_refused_without_showing_it(everbus, monkeypatch):
    monkeypatch.setenv("EVERBUS_JWT_SECRET", "too-short")

    exit_code, _, talk = everbus("token")

    assert exit_code == 2
    assert "openssl rand" in talk
    assert "too-short" not in talk


@pytest.mark.parametrize("command", ["dev", "token"])
def test_an_unknown_setting_ends_every_command(everbus, monkeypatch, command):
    monkeypatch.setenv("EVERBUS_REDIS_ULR", "redis://h")

    exit_code, _, talk = everbus(command)

    assert exit_code == 2
    assert "did you mean EVERBUS_REDIS_URL?" in talk


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectionRefusedError("refused"), 3),
        (redis.ConnectionError("away"), 3),
        (redis.TimeoutError("slow"), 3),
        (ServerSelectionTimeoutError("away"), 3),
        (Unavailable("away"), 3),
        (Forbidden("no"), 4),
        (VersionConflict("no", current_version=2), 5),
        (NotFound("none"), 1),
        (StackError("in use"), 3),
        (exit_codes.Failed("x", 7), 7),
        (ZeroDivisionError(), None),
    ],
)
def test_each_error_has_its_exit_code(error, code):
    assert exit_codes.exit_code_of(error) == code


def test_ctrl_c_ends_with_130(everbus, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)

    assert everbus() == (130, "", "")


def test_a_message_never_shows_a_password():
    error = redis.ConnectionError("cannot reach redis://:pw@h")

    assert exit_codes.describe(error) == "cannot reach redis://:***@h"


def test_a_duration_has_a_number_and_a_unit():
    assert [seconds_of(text) for text in ("90s", "15m", "24h", "7d")] == [
        90,
        900,
        86_400,
        604_800,
    ]


def test_dev_passes_on_what_tunes_its_parts_and_no_addresses():
    environ = {"EVERBUS_PARTITIONS": "4", "EVERBUS_REDIS_URL": "redis://h", "HOME": "/"}

    assert passed_on(environ) == {"EVERBUS_PARTITIONS": "4"}


def test_a_reset_of_a_stack_asks_first(tmp_path):
    (tmp_path / "topology").write_text("server")
    (tmp_path / "valkey").mkdir()
    asked = ("dev", "--reset", "--data", str(tmp_path))

    ran = CliRunner().invoke(cli.app, asked, input="n\n")

    assert ran.exit_code == 1
    assert "Delete all data" in ran.stderr
    assert (tmp_path / "valkey").exists()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_the_terminal_cannot_show_is_escaped(encoding, monkeypatch):
    """
    Redirected output on Windows, ISO-8859-1 locales, containers without a locale.
    """
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(cli, "app", lambda: print_table(["→"], [["🚀"]]))

    cli.main()

    out.flush()
    assert rb"\U0001f680" in out.buffer.getvalue()
