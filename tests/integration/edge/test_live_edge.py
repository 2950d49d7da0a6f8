"""
Live streams of an edge that listens on a port, in this process.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from everbus.bus import Mad
from everbus.compose.edge_role import bound_socket
from everbus.compose.settings import load_settings
from everbus.gateway.edge.app import edge_app
from everbus.gateway.edge.context import EdgeLimits
from everbus.gateway.edge.server import EdgeServer, url_of
from everbus.gateway.edge.streams import STREAM_TIMEOUTS, Streams, StreamTimeouts
from everbus.gateway.health.connections import ConnectionLimits, Connections
from tests.integration.edge.conftest import AMPLE, House, a_token, fresh
from tests.integration.edge.followers import (
    a_small_socket,
    a_socket,
    a_source,
    closed,
    numbers,
    received,
    remaining,
)
from tests.replicas import a_mad, settings_of, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

BIG = "x" * 30_000


class Live:
    """
    An edge on a port of its own; `stop` begins its drain.
    """

    def __init__(self, url: str, streams: Streams, stop: asyncio.Event) -> None:
        self.url = url
        self.streams = streams
        self.stop = stop

    async def until_streams(self, count: int) -> None:
        await until(lambda: len(self.streams) == count, what=f"{count} streams")


@asynccontextmanager
async def a_live_edge(
    house: House,
    limits: EdgeLimits = AMPLE,
    timeouts: StreamTimeouts = STREAM_TIMEOUTS,
    drain_s: float = 5,
) -> AsyncIterator[Live]:
    async with house.parts(limits) as parts:
        app = edge_app(parts)
        app.state.streams = Streams(limits.streams, timeouts)
        stop = asyncio.Event()
        listener = bound_socket(load_settings(settings_of(house.url, edge_port=0)))
        ready = asyncio.Event()
        connections = Connections(ConnectionLimits(1000, 1000))
        serving = EdgeServer(
            *(app, app.state.streams, connections, drain_s),
            lambda _: ready.set(),
        )
        live = Live(url_of(listener), app.state.streams, stop)
        running = asyncio.create_task(serving.run(listener, stop))
        await ready.wait()
        try:
            yield live
        finally:
            stop.set()
            async with asyncio.timeout(15):
                await running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(house: House) -> AsyncIterator[Live]:
    async with a_live_edge(house) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mad(house: House) -> AsyncIterator[Mad]:
    """
    A MAD that may do everything.
    """
    async with a_mad(house.url) as made:
        yield made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def a_session(mad: Mad, owner: str = "ada") -> str:
    return (await mad.create_session(user_id=owner)).id


async def say(mad: Mad, session: str, count: int, entry: object = None) -> None:
    for n in range(count):
        mad.append(session, entry or {"n": n})
    await mad.flush()


async def test_a_socket_tells_every_kind_of_event_in_order(live, mad):
    session = await a_session(mad)

    async with a_socket(live.url, session, a_token("ada"), "0") as client:
        opened = await received(client)
        created = await received(client)
        await mad.update_session(session, {"context_summary": {"topic": "tides"}})
        await say(mad, session, 1)
        await mad.broadcast(session, {"typing": True})
        rest = [await received(client) for _ in range(3)]

    assert opened == {"kind": "stream.opened", "id": "0", "session": session}
    events = [created, *rest]
    assert numbers(events) == [1, 2, 3, 4]
    assert [event["kind"] for event in events] == [
        "session.created",
        "session.updated",
        "timeline.appended",
        "session.broadcast",
    ]
    assert events[1]["patch"]["context_summary"] == {"topic": "tides"}
    assert events[2]["entry"] == {"n": 0}
    assert events[3]["message"] == {"typing": True}
    assert {"id", "kind", "session", "at", "version", "seq"} <= events[0].keys()


async def test_without_after_a_stream_begins_now_and_says_where_that_is(live, mad):
    """
    So that a client that was cut before anything happened loses nothing, either.
    """
    session = await a_session(mad)
    async with a_socket(live.url, session, a_token("ada")) as client:
        begin = (await received(client))["id"]
    await say(mad, session, 2)

    async with a_socket(live.url, session, a_token("ada"), begin) as client:
        await received(client)
        events = [await received(client) for _ in range(2)]

    assert numbers(events) == [2, 3]


async def test_a_browser_shows_its_token_as_a_subprotocol(live, mad):
    """
    It is chosen that carries no token, so none is sent back.
    """
    session = await a_session(mad)
    offered = ["everbus.live", f"everbus.bearer.{a_token('ada')}"]

    async with a_socket(live.url, session, "", "0", subprotocols=offered) as client:
        await received(client)

        assert client.subprotocol == "everbus.live"
        assert (await received(client))["kind"] == "session.created"


async def test_a_client_of_refused_messages_is_disconnected_and_slows_nobody(
    house, mad
):
    """
    Its messages are refused before they are parsed, and then with the connection.
    """
    name, other = fresh(), fresh()
    session = (await mad.create_session(user_id=name)).id
    bad = "[" + "1.5," * 60_000 + "x"
    slowest_s = 0.0
    async with (
        a_live_edge(house, AMPLE._replace(bad_messages=3)) as live,
        a_socket(live.url, session, a_token(name)) as socket,
        httpx.AsyncClient() as client,
    ):
        await received(socket)

        async def flood() -> None:
            with suppress(ConnectionClosed):
                for _ in range(260):
                    await socket.send(bad)

        flooding = asyncio.create_task(flood())
        shown = {"Authorization": f"Bearer {a_token(other, tenant='another')}"}
        while not flooding.done():
            began = time.perf_counter()
            answer = await client.get(f"{live.url}/sessions", headers=shown)
            slowest_s = max(slowest_s, time.perf_counter() - began)
            assert answer.status_code == 200
        told = await remaining(socket)

    assert [one["error"]["code"] for one in told] == ["invalid"] * 4
    assert (socket.close_code, socket.close_reason.split()[0]) == (1008, "invalid")
    # It was more than a second for as many messages that were parsed.
    assert slowest_s < 1


@pytest.mark.parametrize("message", ["{", '{"broadcast": 1}'], ids=["bad", "good"])
async def test_every_message_of_a_socket_counts_against_its_callers_rate(
    house, mad, message
):
    name = fresh()
    session = (await mad.create_session(user_id=name)).id
    # One request in a burst, which is the handshake; nothing fills up meanwhile.
    async with (
        a_live_edge(house, AMPLE._replace(rate=0.0001)) as live,
        a_socket(live.url, session, a_token(name)) as socket,
    ):
        await received(socket)
        await socket.send(message)
        refused = await received(socket)

    assert refused["error"]["code"] == "overloaded"


async def test_a_client_broadcasts_over_its_socket(live, mad):
    session = await a_session(mad)
    async with (
        a_socket(live.url, session, a_token("ada")) as speaker,
        a_socket(live.url, session, a_token("ada")) as hearer,
    ):
        for client in (speaker, hearer):
            await received(client)

        await speaker.send(json.dumps({"broadcast": {"cursor": [1, 2]}}))
        heard = [await received(client) for client in (speaker, hearer)]

    assert heard[0] == heard[1]
    assert heard[0]["message"] == {"cursor": [1, 2]}
    assert heard[0]["principal"] == "ada"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"broadcast": NaN}', "invalid"),
        ('{"broadcast": 1, "more": 2}', "invalid"),
        ("not json", "invalid"),
        (b"\x00", "invalid"),
        (json.dumps({"broadcast": "x" * 70_000}), "too_large"),
    ],
)
async def test_what_cannot_be_broadcast_is_told_and_the_stream_goes_on(
    live, mad, text, code
):
    session = await a_session(mad)
    async with a_socket(live.url, session, a_token("ada")) as client:
        await received(client)

        await client.send(text)
        refused = await received(client)
        await say(mad, session, 1)

        assert refused["error"]["code"] == code
        assert (await received(client))["kind"] == "timeline.appended"


async def test_server_sent_events_resume_by_last_event_id(live, mad):
    session = await a_session(mad)
    await say(mad, session, 5)
    async with a_source(live.url, session, a_token("ada"), "0") as source:
        opened = await source.next()
        first = await source.take(3)
    await say(mad, session, 3)

    # A browser asks at the same URL again; the header counts.
    async with a_source(
        live.url, session, a_token("ada"), "0", last_id=first[-1]["id"]
    ) as source:
        again = await source.next()
        rest = await source.take(6)

    assert (opened.kind, opened.id) == ("stream.opened", "0")
    assert again.id == first[-1]["id"]
    assert source.response.headers["content-type"] == "text/event-stream"
    assert source.response.headers["cache-control"] == "no-store"
    assert numbers(first + rest) == list(range(1, 10))


@pytest.mark.parametrize(
    ("name", "after", "status", "close", "code"),
    [
        ("", "0", 401, 4001, "unauthenticated"),
        ("eve", "0", 403, 4003, "forbidden"),
        ("ada", "nonsense", 422, 4022, "invalid"),
        ("ada", "zzzzzzzz-1.0.0", 422, 4022, "invalid"),
    ],
)
async def test_who_may_not_follow_is_told_before_any_event(
    live, mad, name, after, status, close, code
):
    session = await a_session(mad)
    token = a_token(name) if name else ""

    async with a_source(live.url, session, token, after) as source:
        await source.response.aread()
    async with a_socket(live.url, session, token, after) as client:
        told = await remaining(client)

    assert source.response.status_code == status
    assert source.response.json()["code"] == code
    assert told == []
    assert (client.close_code, client.close_reason) == (close, code)


async def test_a_session_that_is_not_there_is_told_before_any_event(live):
    token = a_token("ada")

    async with a_source(live.url, "no-such-session", token) as source:
        await source.response.aread()
    async with a_socket(live.url, "no-such-session", token) as client:
        end = await closed(client)

    assert source.response.status_code == 404
    assert end == (4004, "not_found")


async def test_deleting_the_session_is_the_last_event(live, mad):
    session = await a_session(mad)
    async with (
        a_socket(live.url, session, a_token("ada")) as client,
        a_source(live.url, session, a_token("ada")) as source,
    ):
        await received(client)
        await source.next()
        # As soon as both are watching: of a session that is gone, nothing is told.
        await mad.broadcast(session, "last orders")
        await received(client)
        await source.take(1)

        await mad.delete_session(session)

        assert (await received(client))["kind"] == "session.deleted"
        assert (await closed(client))[0] == 4004
        assert (await source.next()).kind == "session.deleted"
        last = await source.next()
        assert (last.kind, last.data["code"]) == ("end", "not_found")
        assert await source.next() is None


async def test_a_token_that_expires_ends_its_streams_and_no_other(live, mad):
    session = await a_session(mad)
    name = fresh("ada")
    await mad.update_session(session, {"acl": [name]})
    short = a_token(name, ttl_s=2)
    async with (
        a_socket(live.url, session, short) as client,
        a_source(live.url, session, short) as source,
        a_socket(live.url, session, a_token("ada")) as other,
    ):
        for one in (client, other):
            begin = (await received(one))["id"]
        await source.next()

        assert await closed(client) == (4001, f"unauthenticated {begin}")
        last = await source.next()
        assert (last.kind, last.data["code"]) == ("end", "unauthenticated")
        await say(mad, session, 1)
        assert (await received(other))["kind"] == "timeline.appended"


async def test_losing_the_right_ends_the_stream(live, mad):
    session = await a_session(mad)
    name = fresh("guest")
    await mad.update_session(session, {"acl": [name]})
    async with a_socket(live.url, session, a_token(name)) as client:
        await received(client)

        await mad.update_session(session, {"acl": []})
        await say(mad, session, 1)

        code, _ = await closed(client)
        assert code == 4003


async def test_removing_a_participant_ends_its_streams_and_its_reads(live, mad):
    session = await a_session(mad)
    name = fresh("guest")
    token = a_token(name, "mad")
    at = f"{live.url}/sessions/{session}"
    async with (
        httpx.AsyncClient(headers=bearer(a_token("ada"))) as owner,
        httpx.AsyncClient(headers=bearer(token)) as guest,
        httpx.AsyncClient(headers=bearer(a_token(name))) as namesake,
    ):
        added = await owner.post(f"{at}/participants", json={"mad": name})
        assert (await guest.get(at)).status_code == 200
        assert (await namesake.get(at)).status_code == 403
        others = await guest.post(f"{at}/participants", json={"mad": "another"})
        async with (
            a_socket(live.url, session, token) as client,
            a_source(live.url, session, token) as source,
        ):
            await received(client)
            await source.next()
            removed = await owner.delete(f"{at}/participants/{name}")

            code, _ = await closed(client)
            last = await source.next()
        assert (await guest.get(at)).status_code == 403

    assert f"participant:{name}" in added.json()["acl"]
    assert (others.status_code, others.json()["code"]) == (403, "forbidden")
    assert f"participant:{name}" not in removed.json()["acl"]
    assert code == 4003
    assert (last.kind, last.data["code"]) == ("end", "forbidden")


async def test_a_principal_may_have_so_many_streams(house, mad):
    session = await a_session(mad)
    token = a_token("ada")
    async with a_live_edge(house, AMPLE._replace(streams=2)) as live:
        async with (
            a_socket(live.url, session, token) as one,
            a_source(live.url, session, token) as two,
        ):
            await received(one)
            await two.next()
            async with a_socket(live.url, session, token) as third:
                end = await closed(third)
            async with a_source(live.url, session, token) as fourth:
                pass
        await live.until_streams(0)
        async with a_socket(live.url, session, token) as fifth:
            await received(fifth)

    assert end == (4029, "overloaded")
    assert fourth.response.status_code == 429
    assert "retry-after" in fourth.response.headers


async def test_a_slow_consumer_is_cut_and_resumes_where_it_is_told(house, mad):
    """
    It reads nothing while more is said than lies between the two, then all that it
    was sent, the close among it; behind the id in that, nothing is missing.
    """
    session, count = await a_session(mad), 60
    timeouts = StreamTimeouts(write_s=0.3, close_s=10)
    token = a_token("ada")
    async with a_live_edge(house, timeouts=timeouts) as live:
        options = {"sock": a_small_socket(live.url), "max_queue": 1}
        slow = await a_socket(live.url, session, token, "0", **options)
        await live.until_streams(1)
        await say(mad, session, count, BIG)
        [stream] = live.streams
        await until(lambda: stream.outcome == "slow_consumer", what="cut")

        _, *events = await remaining(slow)
        code, reason = await closed(slow)
        async with a_socket(live.url, session, token, reason.split()[1]) as client:
            await received(client)
            while len(events) < count + 1:
                events.append(await received(client))

    assert code == 4008
    assert reason == f"slow_consumer {stream.last_id}"
    assert stream.sent < count
    assert numbers(events) == list(range(1, count + 2))


async def test_a_slow_reader_of_server_sent_events_is_cut(house, mad):
    session, count = await a_session(mad), 60
    timeouts = StreamTimeouts(write_s=0.3, close_s=10)
    token = a_token("ada")
    async with a_live_edge(house, timeouts=timeouts) as live:
        reader = a_small_socket(live.url)
        loop = asyncio.get_running_loop()
        asked = f"GET /sessions/{session}/events?after=0 HTTP/1.1\r\nHost: edge\r\n"
        await loop.sock_sendall(
            reader, f"{asked}Authorization: Bearer {token}\r\n\r\n".encode()
        )
        await live.until_streams(1)
        await say(mad, session, count, BIG)
        [stream] = live.streams
        await until(lambda: stream.outcome == "slow_consumer", what="cut")

        text = b""
        while part := await loop.sock_recv(reader, 65536):
            text += part
            if b"event: cut" in text:
                break
        reader.close()

    [_, cut] = text.decode().split("event: cut")
    assert f"id: {stream.last_id}\n" in text.decode()[-2000:]
    assert '"code":"slow_consumer"' in cut


async def test_streams_that_are_torn_off_leave_nothing_behind(live, mad):
    session = await a_session(mad)
    token = a_token("ada")
    await live.until_streams(0)
    before = len(asyncio.all_tasks())

    sockets = await asyncio.gather(
        *(a_socket(live.url, session, token) for _ in range(100))
    )
    sources = [a_small_socket(live.url) for _ in range(100)]
    asked = f"GET /sessions/{session}/events HTTP/1.1\r\nHost: edge\r\n"
    for reader in sources:
        reader.send(f"{asked}Authorization: Bearer {token}\r\n\r\n".encode())
    await live.until_streams(200)
    for one in sockets:
        one.transport.abort()
    for reader in sources:
        reader.close()

    await live.until_streams(0)
    await until(lambda: len(asyncio.all_tasks()) <= before, what="tasks gone")


async def test_drain_ends_streams_with_where_to_resume(house, mad):
    session = await a_session(mad)
    token = a_token("ada")
    async with (
        a_live_edge(house) as live,
        a_socket(live.url, session, token, "0") as client,
        a_source(live.url, session, token, "0") as source,
    ):
        await received(client)
        last_id = (await received(client))["id"]
        await source.next()
        await source.take(1)

        live.stop.set()

        assert await closed(client) == (1012, f"restart {last_id}")
        last = await source.next()
        assert (last.kind, last.id) == ("cut", last_id)
        assert last.data["code"] == "restart"
        assert await source.next() is None


async def test_drain_lets_requests_finish_and_takes_no_new_ones(house, mad):
    """
    The request under way is one whose body has not come yet when the drain begins.
    """
    token = a_token("ada")
    async with a_live_edge(house) as live:
        host, port = live.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"user_id": "ada"}'
        writer.write(
            b"POST /sessions HTTP/1.1\r\nHost: edge\r\nContent-Type: application/json"
            b"\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n"
            % (token.encode(), len(body))
        )
        await writer.drain()
        async with httpx.AsyncClient() as client:
            # Answered behind the other one's head, so that this has been read.
            await client.get(f"{live.url}/sessions", headers={"Authorization": "x"})

        live.stop.set()
        await until(lambda: _refused(live.url), what="no new connections")
        writer.write(body)
        answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 201 ")


async def test_drain_has_a_bound(house):
    """
    A request that never ends, and one that never began, hold nothing up.
    """
    async with a_live_edge(house, drain_s=1) as live:
        host, port = live.url.removeprefix("http://").split(":")
        _, silent = await asyncio.open_connection(host, int(port))
        _, endless = await asyncio.open_connection(host, int(port))
        endless.write(
            b"POST /sessions HTTP/1.1\r\nHost: edge\r\nContent-Length: 9\r\n"
            b"Content-Type: application/json\r\nAuthorization: Bearer %b\r\n\r\n"
            % a_token("ada").encode()
        )
        await endless.drain()
        began = time.monotonic()
    took_s = time.monotonic() - began
    for writer in (silent, endless):
        writer.close()

    assert took_s < 4


async def _refused(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    # Refused, or taken by the kernel and then reset.
    with suppress(ConnectionError):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
        return False
    return True
