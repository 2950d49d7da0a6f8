"""
pytest as a user of everbus runs it, in a folder of somebody else.
"""

import os
import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parent.parent
PLUGIN = "everbus.compose.testing.plugin"
# Whatever else this machine does meanwhile.
WITHIN_S = 110
# pytest-asyncio warns of a configuration that leaves this open.
SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """
    pytest as a user runs it in *folder*: only everbus is to be found, no setting of
    this house counts, and every warning is an error.
    """
    environment = {
        name: value for name, value in os.environ.items() if "EVERBUS" not in name
    }
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", PLUGIN),
            *("-p", "no:cacheprovider", "--rootdir", str(folder), *options),
        ],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(HOUSE), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
