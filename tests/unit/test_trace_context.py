"""
Trace context as it travels, and the spans that tell of it.
"""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from everbus.bus import trace_context
from everbus.gateway.telemetry import tracing as spans

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


def test_the_header_of_the_specification_is_understood():
    found = trace_context.parse_traceparent(GIVEN)

    assert found == (TRACE, SPAN, True)
    assert str(found) == GIVEN


def test_a_later_version_may_say_more():
    assert trace_context.parse_traceparent(
        f"cc-{TRACE}-{SPAN}-00-what-the-future-will-be"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        GIVEN.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        f"{GIVEN}-more",
        f" {GIVEN}",
        f"{GIVEN}\n",
    ],
)
def test_what_is_no_context_is_none(text):
    assert trace_context.parse_traceparent(text) is None


def test_a_fresh_context_is_one_and_is_not_recorded():
    made = trace_context.parse_traceparent(str(trace_context.new_traceparent()))

    assert made is not None
    assert not made.sampled
    assert trace_context.new_traceparent(TRACE).trace_id == TRACE


def test_outside_of_a_span_there_is_no_context():
    assert trace_context.current_traceparent() == ""


def test_within_a_span_its_context_is_current():
    with TracerProvider().get_tracer("test").start_as_current_span("one") as span:
        found = trace_context.parse_traceparent(trace_context.current_traceparent())

    assert found is not None
    assert int(found.trace_id, 16) == span.get_span_context().trace_id
    assert found.sampled


def test_without_opentelemetry_there_is_none(monkeypatch):
    monkeypatch.setattr(trace_context, "opentelemetry", None)

    assert trace_context.current_traceparent() == ""


@pytest.fixture
def recorded(monkeypatch):
    """
    The spans that are recorded while a test runs.
    """
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))
    return exporter.get_finished_spans


def test_a_span_is_told_under_its_cause(recorded):
    spans.record("everbus.commit", GIVEN, 5, 9, {"everbus.kind": "session.update"})

    [span] = recorded()
    assert (span.name, span.start_time, span.end_time) == ("everbus.commit", 5, 9)
    assert trace.format_trace_id(span.context.trace_id) == TRACE
    assert trace.format_span_id(span.parent.span_id) == SPAN
    assert span.attributes == {"everbus.kind": "session.update"}


@pytest.mark.parametrize("given", ["", "garbage", f"00-{TRACE}-{SPAN}-00"])
def test_of_what_nobody_records_nothing_is_told(recorded, given):
    spans.record("everbus.commit", given, 5, 9, {})

    assert recorded() == ()
    assert not spans.is_recorded(given)


def test_a_sampled_trace_is_recorded():
    assert spans.is_recorded(GIVEN)
