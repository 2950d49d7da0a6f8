"""
W3C trace context, as commands carry it (https://www.w3.org/TR/trace-context/).

A trace id is also the name under which the logs of every process tell of one request,
so it travels whether or not anybody records spans.
"""

import re
import secrets
from typing import Any, NamedTuple

_opentelemetry: Any  # the module, or None: a MAD needs none
try:
    from opentelemetry import trace as _opentelemetry
except ImportError:
    _opentelemetry = None

# Version 00 is the only one there is; later ones may only append to it.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})"
)
_SAMPLED = 0x01


class Traceparent(NamedTuple):
    """
    Which span of which trace something was caused by.

    Attributes:
        trace_id: 32 hexadecimal digits, not all zero.
        span_id: 16 hexadecimal digits, not all zero.
        sampled: whether its spans are recorded.
    """

    trace_id: str
    span_id: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"


def parsed(text: str) -> Traceparent | None:
    """
    The trace context in a `traceparent` header; None if it is none.
    """
    found = _TRACEPARENT.match(text)
    if found is None or (text[:2] == "00" and found.end() < len(text)):
        return None
    trace_id, span_id, flags = found.groups()
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return Traceparent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def trace_id_of(text: str) -> str:
    """
    The trace id in a `traceparent`, for logs; empty if there is none.
    """
    found = parsed(text) if text else None

    return found.trace_id if found is not None else ""


def fresh(trace_id: str = "") -> Traceparent:
    """
    A context of its own, of which no spans are recorded.
    """
    return Traceparent(
        trace_id or secrets.token_hex(16), secrets.token_hex(8), sampled=False
    )


def current() -> str:
    """
    The `traceparent` of the span under way in this task; empty if there is none.
    """
    if _opentelemetry is None:
        return ""
    context = _opentelemetry.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return str(
        Traceparent(
            format(context.trace_id, "032x"),
            format(context.span_id, "016x"),
            bool(context.trace_flags & _SAMPLED),
        )
    )
