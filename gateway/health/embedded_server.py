"""
uvicorn's server inside a process that handles its own signals.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from uvicorn import Server


class EmbeddedServer(Server):
    """
    A server whose process keeps its own signal handlers.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """
        Capture none: the process stops its parts in its own order.
        """
        yield
