"""
Refusals of a server that pass: each is real, lasts a moment, and nobody breaks of it.

The state of a server that loads its data is the one that is not made here; a restart
in `test_takeover` has it.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio

from everbus.bus import Unavailable, connect
from everbus.bus.errors import Overloaded
from everbus.bus.subscription import Subscription
from everbus.compose.role_processes import in_background
from tests.integration.conftest import NEEDS_REDIS, Bus, a_replica, a_token, until
from tests.servers import DEBIAN_REDIS, valkey

pytestmark = pytest.mark.asyncio(loop_scope="module")

Trouble = Callable[[Bus, Path], AbstractAsyncContextManager[object]]


@asynccontextmanager
async def busy(bus: Bus, _: Path) -> AsyncIterator[None]:
    """
    BUSY: a script of somebody else does not end.
    """
    await bus.client.config_set("busy-reply-threshold", 50)
    other = redis.asyncio.from_url(bus.url, socket_timeout=60)
    running = asyncio.create_task(other.eval("while true do end", 0))
    try:
        yield
    finally:
        await bus.client.execute_command("SCRIPT", "KILL")
        await asyncio.gather(running, return_exceptions=True)
        await other.aclose()


def a_setting(**settings: tuple[object, object]) -> Trouble:
    """
    Settings with their values during the trouble and after it.
    """

    @asynccontextmanager
    async def changed(bus: Bus, _: Path) -> AsyncIterator[None]:
        for name, (value, _after) in settings.items():
            await bus.client.config_set(name.replace("_", "-"), value)
        try:
            yield
        finally:
            for name, (_value, after) in settings.items():
                await bus.client.config_set(name.replace("_", "-"), after)

    return changed


@asynccontextmanager
async def misconf(bus: Bus, _: Path) -> AsyncIterator[None]:
    """
    MISCONF: the last snapshot failed, since its folder is gone.
    """
    shutil.rmtree((await bus.client.config_get("dir"))["dir"])
    await bus.client.config_set("save", "3600 1")
    await bus.client.bgsave()

    async def failed() -> bool:
        return (await bus.client.info("persistence"))["rdb_last_bgsave_status"] == "err"

    await until(failed, "the snapshot failed")
    try:
        yield
    finally:
        await bus.client.config_set("save", "")


@asynccontextmanager
async def a_replica_of_nobody(bus: Bus, _: Path) -> AsyncIterator[None]:
    """
    READONLY: the server was made a replica.
    """
    await bus.client.replicaof("127.0.0.1", 1)
    try:
        yield
    finally:
        await bus.client.replicaof("NO", "ONE")


@asynccontextmanager
async def stale(bus: Bus, folder: Path) -> AsyncIterator[None]:
    """
    MASTERDOWN: the same, and it may not answer reads.
    """
    await bus.client.config_set("replica-serve-stale-data", "no")
    async with a_replica_of_nobody(bus, folder):
        yield


def a_user_without(*rules: str) -> Trouble:
    """
    The user of all has other rules for a moment.
    """

    @asynccontextmanager
    async def refused(bus: Bus, _: Path) -> AsyncIterator[None]:
        await bus.client.execute_command("ACL", "SETUSER", "all", *rules)
        try:
            yield
        finally:
            await bus.client.execute_command("ACL", "SETUSER", "all", *EVERYTHING)

    return refused


@asynccontextmanager
async def deleted(bus: Bus, _: Path) -> AsyncIterator[None]:
    """
    WRONGPASS: the user is gone, and its connections with it.
    """
    await bus.client.execute_command("ACL", "DELUSER", "all")
    try:
        yield
    finally:
        await bus.client.execute_command("ACL", "SETUSER", "all", *EVERYTHING)


EVERYTHING = ("reset", "on", ">secret", "~*", "&*", "+@all")
TROUBLES: dict[str, Trouble] = {
    "BUSY": busy,
    "MISCONF": misconf,
    "READONLY": a_replica_of_nobody,
    "MASTERDOWN": stale,
    "NOREPLICAS": a_setting(min_replicas_to_write=(1, 0)),
    "OOM": a_setting(maxmemory=(1, 0)),
    "maxclients": a_setting(maxclients=(1, 10_000)),
    "WRONGPASS": deleted,
    "NOPERM of XADD": a_user_without("-xadd"),
    "NOPERM of SUBSCRIBE": a_user_without("-subscribe", "-psubscribe"),
    "NOPERM of PING": a_user_without("-ping"),
    "NOPERM of everything": a_user_without("-@all"),
}
SERVERS = ["", pytest.param(DEBIAN_REDIS, marks=NEEDS_REDIS)]


@pytest.mark.parametrize("program", SERVERS, ids=["valkey", "redis"])
@pytest.mark.parametrize("name", TROUBLES)
async def test_a_refusal_that_passes_breaks_nobody(
    tmp_path: Path, name: str, program: str, monkeypatch: pytest.MonkeyPatch
):
    """
    Manager and MAD share the user. What the MAD appends meanwhile is kept.
    """
    monkeypatch.setattr("everbus.bus.subscription.QUIET_S", 0.3)
    async with valkey(tmp_path, aof=False, program=program) as server:
        bus = Bus(server)
        await bus.client.execute_command("ACL", "SETUSER", "all", *EVERYTHING)
        url = bus.url.replace("redis://", "redis://all:secret@")
        async with bus.client, a_replica(url, "one"):
            await bus.until_served()
            async with connect(url, mad="ada", token=a_token("ada")) as mad:
                session = await mad.create_session(user_id="u")
                async with TROUBLES[name](bus, tmp_path):
                    mad.append(session.id, {"n": 1})
                    await asyncio.sleep(2.0)
                    mad.append(session.id, {"n": 2})

                async def answered() -> bool:
                    try:
                        read = await mad.get_session(session.id, timeout=1)
                    except (Unavailable, Overloaded):
                        return False
                    return read.last_seq == 2

                await until(answered, "the MAD is served again", 10)
                assert not mad.trouble


async def test_a_refused_ping_makes_no_new_subscription(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """
    The connection lives, and messages would be lost between the two.
    """
    monkeypatch.setattr("everbus.bus.subscription.QUIET_S", 0.05)
    async with valkey(tmp_path, aof=False) as server:
        bus, made, said = Bus(server), [], []
        async with bus.client:
            await bus.client.execute_command(
                "ACL", "SETUSER", "all", *EVERYTHING, "-ping"
            )
            subscription = Subscription(
                bus.url.replace("redis://", "redis://all:secret@"),
                "eb:news",
                on_subscribed=lambda: made.append(1),
                on_message=said.append,
            )
            async with in_background(subscription.run(), asyncio.Event()):

                async def refused_often() -> bool:
                    refused = await bus.client.acl_log()
                    return any(int(one["count"]) > 3 for one in refused)

                await until(refused_often, "several PINGs were refused")
                await bus.client.publish("eb:news", "hi")

                async def heard() -> bool:
                    return said == [b"hi"]

                await until(heard, "the message came")
        assert made == [1]


async def test_a_reader_that_fails_hears_the_next_message(bus: Bus):
    said: list[bytes] = []

    def read(message: bytes) -> None:
        said.append(message)
        if message == b"bad":
            raise ZeroDivisionError

    subscribed = asyncio.Event()
    subscription = Subscription(
        bus.url, "eb:test", on_subscribed=subscribed.set, on_message=read
    )
    async with in_background(subscription.run(), asyncio.Event()):
        await subscribed.wait()
        for message in ("bad", "good"):
            await bus.client.publish("eb:test", message)

        async def heard() -> bool:
            return said == [b"bad", b"good"]

        await until(heard, "both messages came")


async def test_a_mad_says_why_it_is_refused(bus: Bus, manager: None):
    await bus.client.execute_command("ACL", "SETUSER", "all", *EVERYTHING)
    url = bus.url.replace("redis://", "redis://all:secret@")
    async with connect(url, mad="eve", token=a_token("eve")) as mad:
        await mad.create_session(user_id="u")
        async with a_user_without("-xadd")(bus, Path()):
            with pytest.raises(Unavailable):
                await mad.create_session(user_id="u", timeout=4)

            async def told() -> bool:
                return "xadd" in mad.trouble

            await until(told, "the reason is told")

        async def well() -> bool:
            return not mad.trouble

        await until(well, "it heals", 5)
