"""
An edge whose bus goes away under load, in every way it can: killed, stopped, cut off.

Manager, archiver and edge are processes; the load comes from this one over HTTP. What
an edge said is compared with what is there afterwards.
"""

import asyncio
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
import structlog

from tests import replicas
from tests.integration.edge.conftest import a_token
from tests.proxy import Proxy
from tests.replicas import Part, until
from tests.servers import RealServer
from tests.stack import Stack, a_stack

log = structlog.get_logger()
pytestmark = pytest.mark.asyncio(loop_scope="module")

EDGE = """
from everbus.compose.cli import main

main()
"""
# What is promised is 1 s; machines of tests are slow.
WITHIN_S = 2.0
AWAY_S = 2.0
SESSIONS = 3
WRITERS = 4
# Longer than any outage here: only the edge itself can end a request sooner.
PATIENT = {"Everbus-Timeout": "20"}


class House(NamedTuple):
    """
    The servers, a manager and an archiver on them, and an edge's client.
    """

    stack: Stack
    manager: Part
    edge: Part
    client: httpx.AsyncClient
    sessions: list[str]


def environment(stack: Stack, url: str = "") -> dict[str, str]:
    chosen = stack.chosen(edge_port=0, edge_rate=1e6, edge_tenant_rate=1e6)

    return replicas.settings_of(url or stack.bus.url, **chosen)


@asynccontextmanager
async def an_edge(
    stack: Stack, url: str = ""
) -> AsyncIterator[tuple[Part, httpx.AsyncClient]]:
    """
    An edge as a process on the bus at *url*, and an admin's client.
    """
    part = await replicas.start(
        stack.folder, "edge", "edge", environment(stack, url), EDGE
    )
    try:
        address = (await part.logged("edge.ready", 40))["url"]
        headers = {"Authorization": f"Bearer {a_token('ada', 'admin')}"}
        async with httpx.AsyncClient(
            base_url=address, headers=headers, timeout=30
        ) as client:
            yield part, client
    finally:
        await part.end()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """
    Sessions of some entries, which MongoDB holds.
    """
    async with a_stack(tmp_path_factory.mktemp("read_only")) as stack:
        await stack.empty()
        async with (
            stack.manager(lane_ttl_ms=2000) as manager,
            stack.archiver(),
            an_edge(stack) as (edge, client),
        ):
            made = [await a_session(client) for _ in range(SESSIONS)]
            await stack.drained()
            yield House(stack, manager, edge, client, made)


async def a_session(client: httpx.AsyncClient, entries: int = 3) -> str:
    async def made() -> str:
        answer = await client.post("/sessions", json={"user_id": "ada"})
        return str(answer.json()["id"]) if answer.status_code == 201 else ""

    session: str = await until(made)
    for n in range(entries):
        told = await client.post(
            f"/sessions/{session}/timeline", json={"entry": {"first": n}}
        )
        assert told.status_code == 201, told.text
    return session


class Seen(NamedTuple):
    """
    One request, as its client saw it.
    """

    asked: float
    took_s: float
    status: int
    source: str
    told: dict[str, Any]
    mark: str = ""

    @property
    def answered(self) -> float:
        return self.asked + self.took_s


class Load:
    """
    Readers and writers, each in a loop.
    """

    def __init__(self, client: httpx.AsyncClient, sessions: list[str]) -> None:
        self.reads: list[Seen] = []
        self.writes: list[Seen] = []
        self._client = client
        self._sessions = sessions
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        paths = [f"/sessions/{s}{t}" for s in self._sessions for t in ("", "/timeline")]
        async with asyncio.TaskGroup() as tasks:
            for path in (*paths, "/sessions"):
                tasks.create_task(self._again(lambda p=path: self._read(p)))
            for _ in range(WRITERS):
                tasks.create_task(self._again(self._write))
            try:
                yield self
            finally:
                self._stop.set()

    async def more(self, seen: Callable[[Seen], bool], within_s: float = 20) -> float:
        """
        When a read and a write that were asked from now on were answered so.
        """
        begun = time.monotonic()

        def found() -> float:
            both = [
                [one.answered for one in some if one.asked > begun and seen(one)]
                for some in (self.reads, self.writes)
            ]
            return max(map(min, both)) if all(both) else 0.0

        at: float = await until(found, within_s)
        return at - begun

    async def _again(self, ask: Callable[[], Awaitable[None]]) -> None:
        while not self._stop.is_set():
            await ask()
            await asyncio.sleep(0.02)

    async def _read(self, path: str) -> None:
        asked = time.monotonic()
        answer = await self._client.get(path, headers=PATIENT)
        self.reads.append(seen_in(asked, answer))

    async def _write(self) -> None:
        mark = uuid.uuid4().hex
        session = self._sessions[int(mark, 16) % len(self._sessions)]
        asked = time.monotonic()
        answer = await self._client.post(
            f"/sessions/{session}/timeline",
            json={"entry": {"mark": mark}},
            headers={**PATIENT, "Idempotency-Key": mark},
        )
        self.writes.append(seen_in(asked, answer, mark))


def seen_in(asked: float, answer: httpx.Response, mark: str = "") -> Seen:
    source = answer.headers.get("everbus-source", "bus")
    took_s = time.monotonic() - asked
    told = dict(answer.json())
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) >= 1, answer.text
    if source == "warm":
        told["behind"] = float(answer.headers["everbus-behind"])
    return Seen(asked, took_s, answer.status_code, source, told, mark)


def is_normal(one: Seen) -> bool:
    return one.status in (200, 201) and one.source == "bus"


async def from_the_bus(
    client: httpx.AsyncClient, session: str, after: int
) -> dict[str, Any]:
    """
    A page as the managers have it: just after an outage one may still be from below,
    which lacks what the archiver has not reached.
    """
    async with asyncio.timeout(20):
        while True:
            answer = await client.get(
                f"/sessions/{session}/timeline",
                params={"after": after, "limit": 1000},
                headers=PATIENT,
            )
            if "Everbus-Source" not in answer.headers:
                page: dict[str, Any] = answer.json()
                return page
            await asyncio.sleep(0.05)


async def marks_in(client: httpx.AsyncClient, sessions: list[str]) -> Counter[str]:
    """
    How often each mark is in the timelines, which have no gap.
    """
    found: Counter[str] = Counter()
    for session in sessions:
        after, seqs = 0, []
        while after is not None:
            page = await from_the_bus(client, session, after)
            found.update(
                e["entry"]["mark"] for e in page["entries"] if "mark" in e["entry"]
            )
            seqs += [e["seq"] for e in page["entries"]]
            after = page["next"]
        assert seqs == [*range(1, len(seqs) + 1)]
    return found


class Outage(NamedTuple):
    """
    How the bus goes away and comes back.
    """

    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]


def killed(server: RealServer) -> Outage:
    return Outage(server.kill, server.restart)


def stopped(server: RealServer) -> Outage:
    async def pause() -> None:
        server.pause()

    async def resume() -> None:
        server.resume()

    return Outage(pause, resume)


def cut_off(proxy: Proxy) -> Outage:
    async def swallow() -> None:
        proxy.requests.black_hole()
        proxy.replies.black_hole()

    async def pass_on() -> None:
        proxy.heal()

    return Outage(swallow, pass_on)


async def check_outage(client: httpx.AsyncClient, sessions: list[str], how: Outage):
    """
    Load before, during and after an outage; what was said is what is there.
    """
    load = Load(client, sessions)
    async with load.running():
        await load.more(is_normal)
        began = time.monotonic()
        await how.begin()
        await load.more(lambda one: one.source == "warm" or one.status == 503)
        probes = [await client.get(p) for p in ("/livez", "/readyz", "/health")]
        await asyncio.sleep(AWAY_S)
        ended = time.monotonic()
        await how.end()
        back_s = await load.more(is_normal)
        await asyncio.sleep(0.5)

    usual = max(one.took_s for one in (*load.reads, *load.writes) if one.asked < began)
    during = [one for one in load.reads if began < one.answered < ended]
    refused = [one for one in load.writes if one.status == 503]
    slowest = max(one.took_s for one in load.reads if one.asked < ended)
    tardiest = max(one.took_s for one in load.writes if one.asked < ended)
    log.info(
        "outage.survived",
        reads=len(load.reads),
        warm=len([one for one in load.reads if one.source == "warm"]),
        slowest_read_s=round(slowest, 3),
        writes=len(load.writes),
        refused=len(refused),
        slowest_write_s=round(tardiest, 3),
        back_after_s=round(back_s, 2),
    )
    assert {one.status for one in load.reads} == {200}
    # On a busy machine everything is slow, also while the bus is there.
    assert max(slowest, tardiest) < WITHIN_S + min(usual, WITHIN_S)
    # The outage bit: nothing came from the bus, and what came tells how old it is.
    late = [one for one in during if one.asked > began + 1]
    assert late
    assert {one.source for one in late} == {"warm"}
    assert all(0 < o.told["behind"] < o.answered - began + 1 for o in late)
    assert {one.told["code"] for one in refused} == {"unavailable"}
    assert {one.status for one in load.writes} <= {201, 503, 504}
    assert not [
        o for o in load.writes if o.status == 201 and began + 1 < o.answered < ended
    ]
    # Whoever is routed here is still served: from below.
    assert [one.status_code for one in probes] == [200, 200, 200]
    assert probes[2].json()["status"] == "warn"
    assert probes[2].json()["checks"]["bus"][0]["status"] == "fail"
    await check_said(client, sessions, load)


async def check_said(client: httpx.AsyncClient, sessions: list[str], load: Load):
    """
    What was acknowledged is there once, what was never sent is not.
    """
    there = await marks_in(client, sessions)
    acknowledged = {one.mark for one in load.writes if one.status == 201}
    unsent = {one.mark for one in load.writes if one.told.get("sent") == "no"}
    assert acknowledged
    assert unsent
    assert {mark for mark, count in there.items() if count > 1} == set()
    assert acknowledged - there.keys() == set()
    assert unsent & there.keys() == set()
    # Of the others nobody knows: repeated under their keys they are there, once.
    unknown = [o for o in load.writes if o.status != 201 and o.mark not in unsent]
    assert all(one.told["command_id"] for one in unknown)


async def test_reads_go_on_and_writes_are_refused_while_the_bus_is_dead(house: House):
    """
    Killed by SIGKILL, and restarted with what its AOF holds.
    """
    before = house.stack.bus.pid

    await check_outage(house.client, house.sessions, killed(house.stack.bus))

    assert house.stack.bus.pid != before


async def test_reads_go_on_and_writes_are_refused_while_the_bus_is_stopped(
    house: House,
):
    """
    Stopped by SIGSTOP: it accepts connections, and answers nothing.
    """
    await check_outage(house.client, house.sessions, stopped(house.stack.bus))


async def test_reads_go_on_and_writes_are_refused_while_the_bus_is_cut_off(
    house: House,
):
    """
    The network swallows everything, and the managers do not notice.
    """
    async with (
        Proxy("127.0.0.1", house.stack.bus.port) as proxy,
        an_edge(house.stack, f"redis://127.0.0.1:{proxy.port}/0") as (_, client),
    ):
        await check_outage(client, house.sessions, cut_off(proxy))

        assert proxy.requests.dropped_bytes > 0


async def test_a_command_of_unknown_outcome_is_applied_once_when_repeated(
    house: House,
):
    """
    Sent when the bus had just stopped; it may have got there.
    """
    session = await a_session(house.client)
    ask = {
        "url": f"/sessions/{session}/timeline",
        "json": {"entry": {"mark": "again"}},
        "headers": {**PATIENT, "Idempotency-Key": uuid.uuid4().hex},
    }
    house.stack.bus.pause()
    try:
        told = await house.client.post(**ask)
    finally:
        house.stack.bus.resume()
    await until(lambda: back(house.client))
    answers = [await house.client.post(**ask) for _ in range(3)]

    assert (told.status_code, told.json()["sent"]) == (503, "maybe")
    assert {one.status_code for one in answers} == {201}
    assert len({one.text for one in answers}) == 1
    assert (await marks_in(house.client, [session]))["again"] == 1


async def back(client: httpx.AsyncClient) -> bool:
    told = (await client.get("/health")).json()
    return bool(told["checks"]["bus"][0]["status"] == "pass")


async def test_without_managers_reads_go_on_and_writes_wait_for_their_deadline(
    house: House,
):
    """
    The bus is there, and nobody answers on it.
    """
    path = f"/sessions/{house.sessions[0]}"
    house.manager.send(signal.SIGSTOP)
    try:
        asked = time.monotonic()
        read = await house.client.get(path, headers=PATIENT)
        read_s = time.monotonic() - asked
        asked = time.monotonic()
        written = await house.client.post(
            f"{path}/timeline",
            json={"entry": 1},
            headers={"Everbus-Timeout": "1", "Idempotency-Key": uuid.uuid4().hex},
        )
        written_s = time.monotonic() - asked
    finally:
        house.manager.send(signal.SIGCONT)

    assert (read.status_code, read.headers["everbus-source"]) == (200, "warm")
    assert read_s < 2 * WITHIN_S
    assert written.status_code == 504
    assert written_s > 1


async def test_nothing_is_written_while_the_bus_is_away(house: House):
    """
    MongoDB holds afterwards what it held before, archived sessions among it.
    """
    stack = house.stack
    session = await a_session(house.client)
    await house.client.post(f"/sessions/{session}/checkpoints", json={"name": "c"})
    await stack.drained()
    stub = uuid.uuid4().hex
    document = await stack.document(session)
    assert document is not None
    await stack.held["sessions"].insert_one(
        {**document, "_id": stub, "archival_status": "S3"}
    )
    stack.bus.pause()
    try:
        await until(lambda: away(house.client))
        before = await everything(stack)
        answers = [
            await house.client.get(f"/sessions/{session}{part}")
            for part in ("", "?full=true", "/timeline", "/checkpoints")
        ]
        listed = await house.client.get("/sessions")
        archived = await house.client.get(f"/sessions/{stub}")
        after = await everything(stack)
    finally:
        stack.bus.resume()

    assert {one.status_code for one in (*answers, listed)} == {200}
    assert {one.headers["everbus-source"] for one in (*answers, listed)} == {"warm"}
    assert archived.status_code == 503
    assert "cold tier" in archived.json()["detail"]
    assert after == before


async def away(client: httpx.AsyncClient) -> bool:
    return not await back(client)


async def everything(stack: Stack) -> dict[str, list[Any]]:
    held = stack.held
    return {
        name: sorted([repr(one) async for one in held[name].find()])
        for name in await held.list_collection_names()
    }


async def test_what_one_may_not_see_stays_hidden_while_the_bus_is_away(house: House):
    """
    Policy decides below as it does in a lane, and in the same words.
    """

    async def told(name: str, tenant: str = "") -> tuple[int, str]:
        token = a_token(name, "user", tenant)
        answer = await house.client.get(
            f"/sessions/{house.sessions[0]}",
            headers={"Authorization": f"Bearer {token}"},
        )
        return answer.status_code, answer.json()["code"]

    served = [await told("eve"), await told("eve", "other")]
    house.stack.bus.pause()
    try:
        await until(lambda: away(house.client))
        below = [await told("eve"), await told("eve", "other")]
    finally:
        house.stack.bus.resume()

    assert served == [(403, "forbidden"), (404, "not_found")]
    # Of one so young only the bus could say that it is not there.
    assert below == [(403, "forbidden"), (503, "unavailable")]


async def test_prometheus_hears_of_the_outages_and_of_no_session(house: House):
    house.stack.bus.pause()
    try:
        await until(lambda: away(house.client))
        await house.client.get(f"/sessions/{house.sessions[0]}")
        during = (await house.client.get("/metrics")).text
    finally:
        house.stack.bus.resume()
    await until(lambda: back(house.client))
    after = (await house.client.get("/metrics")).text

    assert "everbus_edge_read_only 1.0" in during
    assert "everbus_edge_read_only 0.0" in after
    assert 'everbus_edge_reads_total{source="warm"}' in after
    assert 'route="/sessions/{session_id}",status="2xx"' in after
    assert not [session for session in house.sessions if session in after]
