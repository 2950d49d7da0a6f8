"""
Commands that are imported when they run.
"""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from everbus.compose.cli import Everbus, app


@pytest.mark.parametrize("name", Everbus.table)
def test_each_command_is_where_the_table_says(name):
    result = CliRunner().invoke(app, [name, "--help"])

    assert result.exit_code == 0
    assert "Example: " in result.output


def test_the_list_of_commands_imports_none_of_them():
    """
    `everbus --help` answers at once: it costs neither redis nor a driver.
    """
    seen = (
        "import sys; from typer.testing import CliRunner;"
        "from everbus.compose.cli import app;"
        "said = CliRunner().invoke(app, ['--help']).output;"
        "assert 'doctor' in said; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", seen], capture_output=True, text=True, check=True
    )

    assert {"redis", "msgspec", "pymongo"}.isdisjoint(done.stdout.split())


def test_an_unknown_command_is_refused():
    assert CliRunner().invoke(app, ["dokter"]).exit_code == 2
