"""
Each Python example of the docs passes its own tests, as in a user's project.
"""

import re
import shutil
from pathlib import Path

import pytest

from tests.plain_pytest import SCOPE, run_pytest

pytestmark = pytest.mark.timeout(120)

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
# The example of test-a-mad.md runs in both modes of pytest-asyncio, in the unit tests.
TESTED = sorted(
    path.parent.name
    for path in EXAMPLES.glob("*/test_*.py")
    if path.parent.name != "tested_mad"
)
PASSED = re.compile(r"^[1-9]\d* passed in", re.MULTILINE)


@pytest.mark.parametrize("name", TESTED)
def test_an_example_passes_its_tests_in_a_plain_folder(name, tmp_path):
    """
    No test of it is skipped, and no warning is given.
    """
    folder = shutil.copytree(
        EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
    )

    run = run_pytest(folder, *SCOPE)

    assert run.returncode == 0, run.stdout + run.stderr
    assert PASSED.search(run.stdout), run.stdout
