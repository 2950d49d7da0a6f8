"""
The pytest plugin in a project of somebody else, and the example of the docs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plain_pytest import SCOPE, run_pytest

pytestmark = pytest.mark.timeout(120)

HOUSE = Path(__file__).parents[2]
EXAMPLE = HOUSE / "docs" / "examples" / "tested_mad"
IN_MODE = pytest.mark.parametrize("mode", ["strict", "auto"])


@IN_MODE
def test_the_example_of_the_docs_passes_in_a_plain_folder(tmp_path, mode):
    for source in EXAMPLE.glob("*.py"):
        (tmp_path / source.name).write_text(source.read_text())

    run = run_pytest(tmp_path, *SCOPE, "-o", f"asyncio_mode={mode}")

    assert run.returncode == 0, run.stdout + run.stderr
    assert "6 passed" in run.stdout


def test_the_test_in_the_readme_passes_as_the_readme_says(tmp_path):
    blocks = re.findall(
        r"```python\n(.*?)```", (HOUSE / "README.md").read_text(), re.DOTALL
    )
    [test] = [block for block in blocks if "everbus_mad" in block]
    (tmp_path / "test_readme.py").write_text(test)

    run = run_pytest(tmp_path, *SCOPE, "-o", "asyncio_mode=auto")

    assert run.returncode == 0, run.stdout + run.stderr


def test_the_page_shows_the_tests_of_the_example():
    page = (HOUSE / "docs" / "test-a-mad.md").read_text()
    tests = (EXAMPLE / "test_tutor.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown = [block for block in blocks if "Tutor(" in block]

    assert len(shown) == 2
    assert [block for block in shown if block not in tests] == []


def test_a_bus_is_there_for_tests_without_asyncio(tmp_path):
    (tmp_path / "test_blocking.py").write_text(
        "def test_it(everbus_bus):\n"
        "    with everbus_bus.connect_sync(mad='ada') as ada:\n"
        "        assert ada.create_session('ada').version == 1\n"
    )

    run = run_pytest(tmp_path, "-p", "no:asyncio")

    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith(".")


def test_a_run_without_its_fixtures_imports_no_sdk(tmp_path):
    (tmp_path / "test_light.py").write_text(
        "import sys\n"
        "def test_it():\n"
        "    assert not {'redis', 'fakeredis', 'everbus.bus'} & set(sys.modules)\n"
    )

    run = run_pytest(tmp_path, *SCOPE)

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("spoiled", "remedy"),
    [
        ("sys.modules['fakeredis'] = None", "pip install 'everbus[testing]'"),
        (
            "import fakeredis._socket as s; del s.AsyncFakeSocket",
            "pip install 'fakeredis[lua]==2.41.*'",
        ),
    ],
    ids=["missing", "of_another_build"],
)
def test_a_library_that_does_not_fit_is_named_with_the_remedy(
    tmp_path, spoiled, remedy
):
    program = (
        f"import sys; {spoiled}\n"
        "try:\n    import everbus.testing\n"
        "except ImportError as error:\n    print(error)\n"
    )

    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HOUSE)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert remedy in run.stdout
