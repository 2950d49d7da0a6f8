"""
Spans of what happens to traced commands behind the door: commit and write-behind.

By opentelemetry's API: without its SDK (the extra `otel`) they go nowhere. A span is
made when its work is over, so an untraced command costs one look at its envelope.
"""

import time
from collections.abc import Iterable, Mapping

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from bus.messages import Envelope
from bus.tracing import parsed
from handlers.outcomes import Event

_tracer = trace.get_tracer("everbus")

Attributes = Mapping[str, str | int]


def is_recorded(traceparent: str) -> bool:
    """
    Whether somebody records the spans of the trace in *traceparent*.
    """
    found = parsed(traceparent) if traceparent else None

    return found is not None and found.sampled


def record(
    name: str,
    traceparent: str,
    begun_ns: int,
    ended_ns: int,
    attributes: Attributes,
) -> None:
    """
    Tell of a span that is over, caused by the one in *traceparent*.

    Args:
        begun_ns: when, in ns since 1970; *ended_ns* likewise.
    """
    cause = parsed(traceparent)
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
    Tell of commands that are committed by now, their replies with them.

    Args:
        traced: the commands and how they ended: `ok` or a code.
        begun_ns: when they were judged, in ns since 1970.
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
    Tell of events that MongoDB holds by now.

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
