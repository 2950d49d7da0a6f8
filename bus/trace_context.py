"""
W3C trace context, as commands carry it (https://www.w3.org/TR/trace-context/).

The logs of every process carry the trace id of a request, so it travels with the
command even without recorded spans.
"""

import re
import secrets
from typing import Any, NamedTuple

opentelemetry: Any  # the module, or None: it is optional
try:
    from opentelemetry import trace as opentelemetry
except ImportError:
    opentelemetry = None

# Only version 00 exists; later versions may only append fields.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})"
)
_SAMPLED = 0x01


class Traceparent(NamedTuple):
    """
    The span, and its trace, that caused a command.

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


def parse_traceparent(text: str) -> Traceparent | None:
    """
    Parse a `traceparent` header; None if it is invalid.
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
    Trace id of a `traceparent`, for logs; empty if it is invalid.
    """
    found = parse_traceparent(text) if text else None

    return found.trace_id if found is not None else ""


def new_traceparent(trace_id: str = "") -> Traceparent:
    """
    A new context whose spans are not recorded.
    """
    return Traceparent(
        trace_id or secrets.token_hex(16), secrets.token_hex(8), sampled=False
    )


def current_traceparent() -> str:
    """
    `traceparent` of the current span of this task; empty without one.
    """
    if opentelemetry is None:
        return ""
    context = opentelemetry.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return str(
        Traceparent(
            format(context.trace_id, "032x"),
            format(context.span_id, "016x"),
            bool(context.trace_flags & _SAMPLED),
        )
    )
