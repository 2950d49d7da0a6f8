"""
Values on the command line that no calendar and no parser can take.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest
import typer

from everbus.compose.archiver_jobs import days_ago
from everbus.compose.json_argument import parse_json, parse_object


@pytest.mark.parametrize("days", [1e6, 1e9, 1e308, float("inf")])
def test_more_days_than_there_were_end_in_1970(days):
    assert days_ago(days) == datetime(1970, 1, 1, tzinfo=UTC)


def test_some_days_ago_is_a_time():
    assert 364 <= (datetime.now(UTC) - days_ago(364.5)).days <= 365


@pytest.mark.parametrize("where", ["a file", "stdin"])
def test_json_is_utf_8_whatever_the_locale_is(where, tmp_path):
    """
    Another encoding would turn its words into others, without an error.
    """
    (tmp_path / "entry.json").write_bytes('{"é": "→"}'.encode())
    entry = (tmp_path / "entry.json").open()
    text = "-" if where == "stdin" else f"@{tmp_path / 'entry.json'}"
    program = (
        "import sys; from everbus.compose.json_argument import parse_json; "
        "print(ascii(parse_json(sys.argv[1])))"
    )
    odd = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}

    with entry:
        done = subprocess.run(
            [sys.executable, "-c", program, text],
            env={**odd, "PYTHONIOENCODING": "latin-1"},
            stdin=entry,
            capture_output=True,
            check=False,
        )

    assert done.stdout.decode().strip() == ascii({"é": "→"}), done.stderr


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1e400x", "\ud800"])
@pytest.mark.parametrize("parse", [parse_json, parse_object])
def test_what_is_no_json_is_a_bad_argument(parse, text):
    with pytest.raises(typer.BadParameter) as refused:
        parse(text)

    assert len(str(refused.value)) < 300
