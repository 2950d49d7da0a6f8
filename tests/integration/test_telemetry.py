"""
The spans of a manager's process arrive at the collector that OTEL_* names.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.sdk.trace import TracerProvider

from everbus.bus import connect
from everbus.compose import telemetry
from tests.replicas import a_token, manager, until
from tests.servers import valkey

# Names, as protobuf has them: plain text between lengths.
WANTED = (b"everbus.commit", b"everbus-manager", b"session.create")


class Collector:
    """
    An HTTP server that takes every POST, and what was sent to it.
    """

    def __init__(self) -> None:
        self.received = b""
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["Collector"]:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _take(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ]
        self.received += head + await reader.readexactly(lengths[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()


async def test_the_spans_of_a_manager_arrive_at_its_collector(tmp_path, monkeypatch):
    collector = Collector()
    tracer = TracerProvider().get_tracer("mad")
    async with valkey(tmp_path, aof=False) as server, collector.listening():
        endpoint = f"http://127.0.0.1:{collector.port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        async with manager(tmp_path, server.url, "one", redis_unsafe="true"):
            with tracer.start_as_current_span("its work") as span:
                async with connect(server.url, mad="ada", token=a_token()) as mad:
                    await mad.create_session("ada")

            await until(
                lambda: all(name in collector.received for name in WANTED),
                15,
                "spans at the collector",
            )

    assert b"POST /v1/traces" in collector.received
    trace_id = span.get_span_context().trace_id.to_bytes(16, "big")
    assert trace_id in collector.received


@pytest.mark.parametrize("missing", ["endpoint", "otel"])
def test_without_a_collector_or_the_extra_nothing_is_recorded(monkeypatch, missing):
    set_to = []
    monkeypatch.setattr(telemetry.trace, "set_tracer_provider", set_to.append)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    if missing == "otel":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        monkeypatch.setitem(
            sys.modules,
            "opentelemetry.exporter.otlp.proto.http.trace_exporter",
            None,
        )

    telemetry.send_spans("manager")

    assert set_to == []
