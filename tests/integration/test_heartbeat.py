"""
Heartbeats on a real server, where the managers' side is played by hand.
"""

import asyncio
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio
import redis.asyncio
from structlog.testing import capture_logs

import everbus.bus.heartbeat
from everbus.bus import Superseded, connect, keys
from everbus.bus.heartbeat import BEAT, HeartbeatThread
from everbus.bus.lease import Lease
from everbus.bus.messages import COMMAND_FIELD, Reply, pack, unpack, unpack_envelope
from tests.integration.conftest import a_replica, a_token, only_grants, until
from tests.processes import PIPE, start_python
from tests.servers import inherited, valkey

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUSE = Path(__file__).parent.parent.parent
TTL_S = 1.0
BEATS = keys.ingress(keys.PRESENCE, "ada")


class Managers:
    """
    What managers would write and read, on a server on which none was started.
    """

    def __init__(self, server):
        self.server = server
        self.url = server.url
        self.client = redis.asyncio.from_url(server.url)

    async def set_up(self, *, ttl_s=TTL_S):
        await self.client.flushall()
        terms = {"partitions": 1, "schema": 1, "lease_ms": int(ttl_s * 1000)}
        await self.client.hset(keys.CONFIG, mapping=terms)

    async def beats(self):
        """
        When each heartbeat arrived, in ms of the server; its kind; its epoch.
        """
        found = []
        for entry, fields in await self.client.xrange(BEATS):
            envelope = unpack_envelope(fields[COMMAND_FIELD])
            body = unpack(envelope.body, dict)
            arrived_ms = int(entry.decode().partition("-")[0])
            found.append((arrived_ms, envelope.kind.rpartition(".")[2], body["epoch"]))
        return found

    async def kinds(self):
        return [(kind, epoch) for _, kind, epoch in await self.beats()]

    async def until_heard(self, kind, epoch):
        async def claim():
            return (kind, epoch) in await self.kinds()

        await until(claim, f"{kind} of epoch {epoch}")

    async def tell(self, mad, told):
        await self.client.publish(keys.wake(mad.name, mad.instance), pack([told]))

    async def refuse(self, epoch):
        """
        Answer the first request as a lane does that knows *epoch* to be over.
        """
        stream = keys.ingress(0, "ada")
        [(_, entries)] = await self.client.xread({stream: "0"}, 1, 5000)
        [(_, fields)] = entries
        envelope = unpack_envelope(fields[COMMAND_FIELD])
        reply = Reply(
            id=envelope.id,
            code="superseded",
            message="the instance was declared lost",
            details={"epoch": epoch},
        )
        to = keys.reply(0, "ada", envelope.id)
        await self.client.xadd(to, {b"r": pack(reply)})

        return envelope


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    async with valkey(tmp_path_factory.mktemp("valkey")) as real:
        yield real


@pytest_asyncio.fixture(loop_scope="module")
async def managers(server):
    made = Managers(server)
    async with made.client, only_grants(server.url):
        await made.set_up()
        yield made


@pytest.fixture
def ada(managers):
    def connected(**options):
        return connect(managers.url, mad="ada", token=a_token("ada"), **options)

    return connected


async def test_an_instance_joins_beats_each_third_of_the_ttl_and_leaves(managers, ada):
    async with ada() as mad:
        await asyncio.sleep(TTL_S)
        instance = mad.instance

    beats = await managers.beats()
    kinds = [kind for _, kind, _ in beats]
    assert kinds == ["join", *["beat"] * (len(beats) - 2), "leave"]
    steps = [later - earlier for (earlier, *_), (later, *_) in pairwise(beats[:-1])]
    assert len(steps) >= 2
    # A busy machine may make one of them late, but none early.
    assert TTL_S / 3 * 1000 - 20 <= min(steps) < TTL_S * 500, steps
    [(_, fields), *_] = await managers.client.xrange(BEATS)
    envelope = unpack_envelope(fields[COMMAND_FIELD])
    assert unpack(envelope.body, dict) == {"instance": instance, "epoch": 1}
    assert (envelope.grant, envelope.reply, envelope.epoch) == (b"", False, 0)
    assert mad.losses == 0


async def test_an_instance_is_known_before_it_can_send_anything(
    managers, ada, monkeypatch
):
    """
    A session that it joined would else never hear that it was killed.
    """
    publish = HeartbeatThread._publish

    def late(*arguments):
        time.sleep(0.2)
        publish(*arguments)

    monkeypatch.setattr(HeartbeatThread, "_publish", late)
    async with ada():
        assert await managers.kinds() == [("join", 1)]


async def test_a_blocked_event_loop_does_not_stop_the_heart(managers, ada):
    """
    The deadline that the managers keep is never reached, though nothing else runs.
    """
    async with ada():
        began_ms = (await managers.beats())[0][0]
        time.sleep(1.5 * TTL_S)  # noqa: ASYNC251 - this is what is tried here
        beats = [at_ms for at_ms, *_ in await managers.beats()]

    assert beats[-1] - began_ms > 1000 * TTL_S
    assert max(b - a for a, b in pairwise(beats)) < 1000 * TTL_S


async def test_a_busy_event_loop_does_not_stop_the_heart(managers, ada):
    async with ada():
        until_s = time.monotonic() + 1.2 * TTL_S
        while time.monotonic() < until_s:
            sum(range(10_000))
        beats = [at_ms for at_ms, *_ in await managers.beats()]

    assert max(b - a for a, b in pairwise(beats)) < 1000 * TTL_S
    assert len(beats) > 3


async def test_without_a_lease_nothing_beats(managers, ada):
    async with ada(lease=False) as mad:
        assert (mad.losses, len(mad.instance)) == (0, 32)

    assert not await managers.client.exists(BEATS)


async def test_an_instance_that_hears_of_its_loss_joins_again_at_once(managers, ada):
    """
    Though it is idle, and its next heartbeat is seconds away. Told twice, once.
    """
    await managers.set_up(ttl_s=60)
    lost = []
    async with ada(on_lost=lost.append) as mad:
        await managers.tell(mad, {"superseded": 1})
        await managers.until_heard("join", 2)
        await managers.tell(mad, {"superseded": 1})
        await managers.tell(mad, {"superseded": 2})
        await managers.until_heard("join", 3)

        async def told():
            return lost == [1, 2]

        await until(told, "both losses told")
        assert mad.losses == 2

    assert await managers.kinds() == [
        *[("join", 1), ("join", 2), ("join", 3)],
        ("leave", 3),
    ]
    assert lost == [1, 2]


async def test_a_reply_that_says_superseded_is_raised_and_ends_the_epoch(managers, ada):
    await managers.set_up(ttl_s=60)
    lost = asyncio.Event()
    async with ada(on_lost=lambda _: lost.set()) as mad:
        asking = asyncio.create_task(mad.get_session("s"))
        refused = await managers.refuse(1)

        with pytest.raises(Superseded, match="declared lost") as error:
            await asking
        await managers.until_heard("join", 2)
        await asyncio.wait_for(lost.wait(), 5)

        assert (error.value.details, mad.losses) == ({"epoch": 1}, 1)
        assert refused.epoch == 1


async def test_what_on_lost_raises_breaks_nothing(managers, ada):
    await managers.set_up(ttl_s=60)
    calls = []

    def on_lost(epoch):
        calls.append(epoch)
        raise ZeroDivisionError

    with capture_logs() as logs:
        async with ada(on_lost=on_lost) as mad:
            for epoch in (1, 2):
                await managers.tell(mad, {"superseded": epoch})
                await managers.until_heard("join", epoch + 1)

    assert calls == [1, 2]
    assert [line["event"] for line in logs].count("on_lost.failed") == 2


@pytest.mark.parametrize(
    "told", [{"superseded": "1"}, {"superseded": None}, {}, [1], 7, "x", b"\xc1"]
)
async def test_what_is_no_hint_is_overheard(managers, ada, told):
    async with ada() as mad:
        await managers.tell(mad, told)
        await managers.tell(mad, {"superseded": 1})

        await managers.until_heard("join", 2)
        assert mad.losses == 1


async def test_a_bus_that_dies_and_comes_back_is_beaten_for_again(managers, ada):
    """
    Away for less than the TTL: the same epoch goes on, and one line is logged.
    """
    await managers.set_up(ttl_s=60)
    lease = Lease("i", 60)
    heart = HeartbeatThread(managers.url, "ada", lease)
    heart.start()
    await managers.until_heard("join", 1)
    with capture_logs() as logs:
        await managers.server.kill()
        lease.changed.set()  # a beat is due now, so the outage is noticed
        await until(lambda: _is(heart._failures > 2), "three tries failed")
        await managers.server.restart()
        await managers.client.connection_pool.disconnect()

        await managers.until_heard("beat", 1)
        await asyncio.to_thread(heart.close)

    assert (await managers.kinds())[-1] == ("leave", 1)
    assert lease.losses == 0
    assert [line["event"] for line in logs] == [
        "heartbeats.delayed",
        "heartbeats.resumed",
    ]


async def test_who_was_silent_for_longer_than_the_ttl_joins_and_is_told(managers, ada):
    """
    The managers may have declared it lost meanwhile, and nobody could tell it.
    """
    lost = []
    async with ada(on_lost=lost.append) as mad:
        managers.server.pause()
        try:
            await until(lambda: _is(mad.losses == 1), "the epoch is over")
        finally:
            managers.server.resume()

        await until(lambda: _is(bool(lost)), "the loss is told")
        [epoch] = lost
        await managers.until_heard("join", epoch + 1)

    assert len(lost) == 1
    assert mad.losses == 1


async def test_a_user_without_the_right_is_told_in_the_log_and_goes_on(managers):
    """
    What it asks is answered; it only cannot be missed.
    """
    rights = ("+client|setname", "+hmget", "+xread", "+subscribe", "+publish")
    await managers.client.execute_command(
        *("ACL", "SETUSER", "mute", "on", ">secret", "~*", "&*"), *rights, "+ping"
    )
    url = managers.url.replace("redis://", "redis://mute:secret@")

    with capture_logs() as logs:
        async with connect(url, mad="ada", token=a_token("ada")) as mad:
            assert mad.losses == 0

    [line] = [line for line in logs if line["event"] == "heartbeats.refused"]
    assert line["log_level"] == "error"
    assert "XADD" in line["error"].upper()
    assert "secret" not in str(logs)


async def test_heartbeats_that_nobody_reads_do_not_pile_up(managers, monkeypatch):
    monkeypatch.setattr(everbus.bus.heartbeat, "MAX_HEARTBEATS", 100)
    heart = HeartbeatThread(managers.url, "ada", Lease("i", 60))

    for _ in range(500):
        heart._publish(BEAT, 1)
    heart._disconnect()

    kept = await managers.beats()
    assert 100 <= len(kept) <= 300


async def test_leaving_does_not_wait_for_a_bus_that_is_deaf(managers, ada, monkeypatch):
    await managers.set_up(ttl_s=60)
    monkeypatch.setattr(everbus.bus.heartbeat, "CLOSE_S", 0.2)

    async with ada():
        managers.server.pause()
        began = time.monotonic()
    took_s = time.monotonic() - began
    managers.server.resume()

    assert took_s < 2
    # The goodbye was sent all the same, by a thread that nobody waits for.
    await managers.until_heard("leave", 1)


SCRIPT = """
import os, sys, time
from everbus.bus.sync import connect

connecting = connect({url!r}, mad="ada", token={token!r})
mad = connecting.__enter__()
child = os.fork()
if child == 0:
    sys.exit(7)
_, status = os.waitpid(child, 0)
print("child", os.waitstatus_to_exitcode(status), flush=True)
time.sleep({ttl_s})
print("ready", flush=True)
sys.stdin.readline()
"""


async def test_neither_a_fork_nor_an_exit_waits_for_the_heart(managers):
    """
    The child ends with its own code, the parent's connection lives on, and at last
    the parent ends while its bus is deaf.
    """
    script = SCRIPT.format(url=managers.url, token=a_token("ada"), ttl_s=TTL_S)
    process = await a_process(script)
    lines, beats = [], []
    try:
        lines = [await said(process) for _ in range(2)]
        beats = await managers.kinds()
        managers.server.pause()
    finally:
        began = time.monotonic()
        await ended(process)
        took_s = time.monotonic() - began
        managers.server.resume()

    assert lines == ["child 7", "ready"]
    assert beats[0] == ("join", 1)
    assert beats.count(("beat", 1)) >= 2
    assert process.returncode == 0
    assert took_s < 3
    # It said goodbye into the deaf server's socket, and waited for no answer.
    await managers.until_heard("leave", 1)


ZOMBIE = """
import sys, threading, structlog
from everbus.bus.sync import connect

# What it says to us is on stdout, where structlog prints by default.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
lost = threading.Event()
with connect({url!r}, mad="ada", token={token!r}, on_lost=lambda _: lost.set()) as ada:
    ada.join({session!r})
    print("in", flush=True)
    lost.wait()
    ada.join({session!r})
    print("back", ada.losses, flush=True)
    sys.stdin.readline()
"""


async def test_a_mad_that_stands_still_leaves_its_session_and_finds_back(tmp_path):
    """
    With real managers: SIGSTOP, lost, SIGCONT, told by on_lost, and in it again.
    """
    async with (
        valkey(tmp_path, aof=False) as server,
        a_replica(server.url, "one", EVERBUS_LEASE_TTL_S="1"),
        connect(server.url, mad="eve", token=a_token("eve"), lease=False) as eve,
    ):
        session = (await eve.create_session("eve")).id
        await eve.add_participant(session, "ada")
        script = ZOMBIE.format(url=server.url, token=a_token("ada"), session=session)
        zombie = await a_process(script)

        async def takes_part():
            return "ada" in (await eve.get_session(session)).participants

        async def takes_none():
            return not await takes_part()

        try:
            assert await said(zombie) == "in"
            zombie.send_signal(signal.SIGSTOP)
            await until(takes_none, "it left the session")
            zombie.send_signal(signal.SIGCONT)
            assert await said(zombie) == "back 1"
            assert await takes_part()
        finally:
            await ended(zombie)

        assert zombie.returncode == 0


async def a_process(script):
    return await start_python("-c", script, stdin=PIPE, stdout=PIPE, env=inherited())


async def said(process):
    async with asyncio.timeout(10):
        return (await process.stdout.readline()).decode().strip()


async def ended(process):
    """
    Return when it has ended by itself, told by its standard input; or kill it.
    """
    try:
        async with asyncio.timeout(10):
            await process.communicate(b"\n")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _is(claim):
    return claim
