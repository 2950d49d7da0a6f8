"""
Log records: one a line, and no secret in any of them.
"""

import io
import json
import logging

import pytest
import structlog

from everbus.compose.logs import configure_logs

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def logging_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def written(format, level="info", stream=None):
    stream = stream or io.StringIO()
    configure_logs(format, level, stream)
    return stream


def fail(message):
    raise ValueError(message)


def test_a_json_record_has_event_level_and_time():
    stream = written("json")

    structlog.get_logger().info("command.settled", attempts=1)

    record = json.loads(stream.getvalue())
    assert (record["event"], record["level"]) == ("command.settled", "info")
    assert record["attempts"] == 1
    assert record["timestamp"].endswith("Z")


def test_auto_is_for_people_only_on_a_terminal():
    file, terminal = written("auto"), Terminal()
    structlog.get_logger().info("a.b")
    written("auto", stream=terminal)
    structlog.get_logger().info("a.b")

    assert file.getvalue().startswith("{")
    assert "a.b" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_what_is_below_the_level_is_not_written():
    stream = written("json", "warning")

    structlog.get_logger().info("a.b")
    logging.getLogger("library").info("hello")

    assert stream.getvalue() == ""


@pytest.mark.parametrize("format", ["json", "console"])
def test_secrets_are_masked_by_name_and_by_look(format):
    stream = written(format)

    structlog.get_logger().info(
        "a.b",
        token="hidden-1",
        jwt_secret="hidden-2",
        headers={"Authorization": "hidden-3", "cookies": [f"x={JWT}"]},
        url="redis://u:hidden-4@host/0",
        raw=JWT.encode(),
        error=ValueError(f"bad {JWT}"),
    )

    assert "hidden" not in stream.getvalue()
    assert "eyJ" not in stream.getvalue()
    assert "redis://u:***@host/0" in stream.getvalue()


@pytest.mark.parametrize("format", ["json", "console"])
def test_secrets_in_messages_and_tracebacks_are_masked(format):
    stream = written(format)

    try:
        fail(JWT)
    except ValueError:
        structlog.get_logger().exception(f"bad {JWT}")
        logging.getLogger("library").exception("worse %s", JWT)

    assert "eyJ" not in stream.getvalue()
    assert "worse ***" in stream.getvalue()
    assert stream.getvalue().count("ValueError") >= 2


def test_counts_of_tokens_are_no_secret():
    stream = written("json")

    structlog.get_logger().info("a.b", tokens=3)

    assert json.loads(stream.getvalue())["tokens"] == 3


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_record_is_one_line_whatever_is_in_it(format):
    """
    A line break in a value would forge a record, an escape steers a terminal.
    """
    stream = written(format)

    try:
        fail("first\nsecond")
    except ValueError:
        structlog.get_logger().exception("a\nb", said="c\r\n\x1b[31md\u2028e")
        logging.getLogger("library").exception("f\ng")

    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b[31md" not in stream.getvalue()


def test_configuring_again_replaces_what_was():
    first, second = written("json"), written("json")

    logging.getLogger("library").warning("once")

    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1
