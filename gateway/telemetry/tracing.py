"""
Spans of traced commands behind the edge: commit and write-behind.

By opentelemetry's API: without its SDK (the extra `otel`) they go nowhere. A span is
made when its work is over, so an untraced command costs one look at its envelope.
"""

import time
from collections.abc import Iterable, Mapping

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from everbus.bus.messages import Envelope
from everbus.bus.trace_context import parse_traceparent
from everbus.handlers.outcomes import Event

_tracer = trace.get_tracer("everbus")

Attributes = Mapping[str, str | int]


def is_recorded(traceparent: str) -> bool:
    """
    Whether the trace in *traceparent* is recorded.
    """
    found = parse_traceparent(traceparent) if traceparent else None

    return found is not None and found.sampled


def record(
    name: str,
    traceparent: str,
    begun_ns: int,
    ended_ns: int,
    attributes: Attributes,
) -> None:
    """
    Record a finished span, caused by the one in *traceparent*.

    Args:
        begun_ns: when, in ns since 1970; *ended_ns* likewise.
    """
    cause = parse_traceparent(traceparent)
    if cause is None or not cause.sampled:
        return
    parent = SpanContext(
        int(cause.trace_id, 16),
        int(cause.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    span = _tracer.start_span(
        name,
        context=trace.set_span_in_context(NonRecordingSpan(parent)),
        kind=SpanKind.CONSUMER,
        attributes=dict(attributes),
        start_time=begun_ns,
    )
    span.end(end_time=ended_ns)


def committed(traced: Iterable[tuple[Envelope, str]], lane: int, begun_ns: int) -> None:
    """
    Record spans of committed commands.

    Args:
        traced: the commands and how they ended: `ok` or a code.
        begun_ns: start of their decision, in ns since 1970.
    """
    ended_ns = time.time_ns()
    for envelope, code in traced:
        attributes: dict[str, str | int] = {
            "everbus.kind": envelope.kind,
            "everbus.session": envelope.session,
            "everbus.command": envelope.id,
            "everbus.code": code,
            "everbus.lane": lane,
        }
        record("everbus.commit", envelope.trace, begun_ns, ended_ns, attributes)


def written_behind(events: Iterable[Event], begun_ns: int) -> None:
    """
    Record spans of events that MongoDB holds now.

    Args:
        begun_ns: when writing them began, in ns since 1970.
    """
    ended_ns = time.time_ns()
    for event in events:
        if event.trace:
            attributes: dict[str, str | int] = {
                "everbus.event": event.kind,
                "everbus.command": event.command_id,
            }
            record("everbus.write_behind", event.trace, begun_ns, ended_ns, attributes)
