"""
One request seen through every process: its trace goes from HTTP to the write-behind.
"""

import re

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from everbus.bus import connect
from everbus.gateway.edge import tracing as at_the_door
from everbus.gateway.telemetry import tracing as behind
from tests.integration.edge.conftest import Edge, House, a_token, fresh
from tests.replicas import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Recorder:
    """
    The spans of all processes, which here are one.
    """

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("test")

    def of(self, trace_id: str) -> dict[str, ReadableSpan]:
        """
        Name → span, of one trace.
        """
        return {
            span.name: span
            for span in self._exporter.get_finished_spans()
            if format(span.context.trace_id, "032x") == trace_id
        }


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(at_the_door, "_tracer", made.tracer)
    monkeypatch.setattr(behind, "_tracer", made.tracer)

    return made


async def test_a_request_is_one_trace_down_to_the_write_behind(
    edge: Edge, recorder: Recorder
):
    name = fresh()
    given = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    async with edge.client(name) as client:
        made = await client.post("/sessions", json={"user_id": name}, headers=given)

    assert made.status_code == 201
    await until(
        lambda: "everbus.write_behind" in recorder.of(TRACE), 15, "written behind"
    )
    spans = recorder.of(TRACE)
    request_span, commit = spans["POST /sessions"], spans["everbus.commit"]
    written = spans["everbus.write_behind"]
    assert format(request_span.parent.span_id, "016x") == SPAN
    assert commit.parent.span_id == request_span.context.span_id
    assert written.parent.span_id == request_span.context.span_id
    assert commit.attributes["everbus.kind"] == "session.create"
    assert commit.attributes["everbus.session"] == made.json()["id"]
    assert commit.attributes["everbus.code"] == "ok"
    assert written.attributes["everbus.event"] == "session.created"


async def test_a_refusal_is_told_in_its_span_and_under_its_request(
    edge: Edge, recorder: Recorder
):
    given = {"traceparent": f"00-{TRACE}-{SPAN}-01", "X-Request-Id": "of-mine"}
    async with edge.client(fresh(), **given) as client:
        answer = await client.get("/sessions/no-such")

    spans = recorder.of(TRACE)
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"] == "of-mine"
    assert spans["everbus.commit"].attributes["everbus.code"] == "not_found"
    ended = spans["GET /sessions/{session_id}"].attributes
    assert ended["http.response.status_code"] == 404


async def test_without_a_trace_the_request_id_is_its_name_in_every_log(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
):
    """
    A defect behind the door is logged under the trace of the request that met it.
    """
    name = fresh()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with edge.client(name) as client:
        made = await client.post("/sessions", json={"user_id": name})
        with structlog.testing.capture_logs() as logs:
            monkeypatch.setattr("everbus.handlers.sessions.require_session", broken)
            answer = await client.get(f"/sessions/{made.json()['id']}")
            monkeypatch.undo()

    request_id = answer.json()["request_id"]
    assert answer.status_code == 500
    assert re.fullmatch("[0-9a-f]{32}", request_id)
    failed = [one for one in logs if one["event"] == "command.failed"]
    assert {one["trace"] for one in failed} == {request_id}


async def test_what_a_mad_does_within_a_span_belongs_to_it(
    house: House, recorder: Recorder
):
    name = fresh("mad")
    token = a_token(name, "mad")
    with recorder.tracer.start_as_current_span("its work") as span:
        async with connect(house.url, mad=name, token=token, lease=False) as mad:
            await mad.create_session(name)

    spans = recorder.of(format(span.get_span_context().trace_id, "032x"))
    assert spans["everbus.commit"].parent.span_id == span.get_span_context().span_id


async def test_what_nobody_records_leaves_no_span(edge: Edge, recorder: Recorder):
    name = fresh()
    given = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
    async with edge.client(name) as client:
        await client.post("/sessions", json={"user_id": name}, headers=given)

    assert "everbus.commit" not in recorder.of(TRACE)
