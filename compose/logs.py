"""
The format of log records, and the masking of secrets in them.

One record per event, on one line, as JSON or for people. Masking works by the name of
a field and by the form of a value, in everbus's own records and in those of libraries
that use the standard library's logging.
"""

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from everbus.compose.settings import masked_url

MASK = "***"

_SECRET_NAMES = re.compile(r"(?i)token|secret|password|authorization")
# The header and the dot suffice, so half a token in a cut message is masked too.
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]+\.?[A-Za-z0-9_.-]*")
# Line breaks forge records; escape sequences steer the reader's terminal.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure_logs(
    format: Literal["auto", "console", "json"] = "auto",
    level: str = "info",
    stream: TextIO | None = None,
) -> None:
    """
    Send all records of this process from *level* on to *stream* (stderr).

    A second call replaces the first configuration.

    Args:
        format: auto is console if *stream* is a terminal, else json.
    """
    stream = stream or sys.stderr
    people = format == "console" or (format == "auto" and stream.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared = [*_SHARED, one_line] if people else _SHARED
    renderer = _console(stream) if people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,  # else a module keeps its first stream
    )
    _adopt_libraries(shared, renderer, threshold, stream)


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """
    *event* with secrets masked: fields with secret names, and JWTs anywhere.
    """
    return {key: _masked(key, value) for key, value in event.items()}


def one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """
    *event* with control characters escaped, also line breaks of the traceback.
    """
    lined = {key: _escaped(value) for key, value in event.items()}
    if "exception" in lined:
        # The console renderer prints a field "exception" on lines of its own.
        lined["traceback"] = lined.pop("exception")
    return lined


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    redact,
]


def _masked(key: str, value: Any) -> Any:  # anything that is logged
    if value is None or isinstance(value, bool | int | float):
        return value
    if _SECRET_NAMES.search(key):
        return MASK
    if isinstance(value, Mapping):
        return {str(name): _masked(str(name), part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(key, part) for part in value]
    text = value if isinstance(value, str) else repr(value)
    return _JWT.sub(MASK, masked_url(text) if "://" in text else text)


def _escaped(value: Any) -> Any:  # anything that is logged
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else repr(value)
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def _console(stream: TextIO) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(colors=stream.isatty())


def _adopt_libraries(
    shared: list[Processor], renderer: Processor, threshold: int, stream: TextIO
) -> None:
    """
    Give the standard library's root logger one handler with the same chain.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    for known in root.handlers[:]:
        if isinstance(known.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(known)
    root.addHandler(handler)
    # At debug, libraries log their every step; everbus's debug does not include it.
    root.setLevel(max(threshold, logging.INFO))
