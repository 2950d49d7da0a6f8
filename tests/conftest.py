"""
What holds for every test.
"""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

# How long an example takes is the machine's affair: no test judges time.
settings.register_profile("everbus", deadline=None)
settings.load_profile("everbus")


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """
    A command that a test runs in this process sets the log level for all of it.
    """
    yield
    structlog.reset_defaults()
