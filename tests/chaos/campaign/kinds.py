"""
The kinds of faults: each hurts an arena, holds, heals, and proves that it bit.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from everbus.archiver.lease import NAME as LEASE
from everbus.bus import keys
from everbus.bus.errors import EverbusError
from everbus.bus.wire import Wire
from everbus.gateway.store import key_names
from tests.chaos.campaign.arena import PARTITIONS, TOPOLOGIES, Arena, Topology
from tests.chaos.campaign.links import Link
from tests.chaos.campaign.load import MadProcess
from tests.replicas import until

SWITCHED_WITHIN_S = 25.0
# Beyond the lanes' TTL of 1.5 s.
PAUSE_S = 2.5
REPLICATED: tuple[Topology, ...] = ("sentinel", "cluster")
ONE_SERVER: tuple[Topology, ...] = ("server", "clocked")


@dataclass
class Hurt:
    """
    One fault under way.

    Attributes:
        bit: how often, or how much, it did harm; 0: it did not bite.
        lossy: the strongest level that it may take from: "", hot, replicated.
        struck_at: monotonic time of the strike.
        failover: whether its bus must fail over.
    """

    arena: Arena
    mads: list[MadProcess]
    chance: random.Random
    bit: int = 0
    lossy: str = ""
    struck_at: float = 0.0
    failover: bool = False
    notes: list[str] = field(default_factory=list)

    def strike(self, lossy: str = "") -> None:
        """
        The fault begins now.
        """
        self.struck_at = self.struck_at or time.monotonic()
        self.lossy = max(self.lossy, lossy, key=("", "hot", "replicated").index)

    async def hold(self, low_s: float, high_s: float) -> None:
        """
        Let the load meet the fault.
        """
        await asyncio.sleep(self.chance.uniform(low_s, high_s))


Strike = Callable[[Hurt], Awaitable[None]]


@dataclass(frozen=True)
class FaultKind:
    """
    A kind of fault.

    Attributes:
        resource: kinds of one resource do not strike at once.
    """

    name: str
    strike: Strike
    topologies: tuple[Topology, ...]
    resource: str


KINDS: dict[str, FaultKind] = {}


def fault(
    resource: str, topologies: tuple[Topology, ...] = TOPOLOGIES
) -> Callable[[Strike], Strike]:
    """
    Register a kind under the function's name.
    """

    def register(strike: Strike) -> Strike:
        name = strike.__name__
        KINDS[name] = FaultKind(name, strike, topologies, resource)
        return strike

    return register


def kinds_on(topology: Topology) -> list[FaultKind]:
    """
    The kinds that make sense there, in a fixed order.
    """
    if topology == "clocked":
        return [KINDS["clock_step"], KINDS["clock_step_and_dead_manager"]]
    return [one for one in KINDS.values() if topology in one.topologies]


def pairs_of(topology: Topology) -> Iterator[tuple[FaultKind, FaultKind]]:
    """
    All pairs that may strike at once.
    """
    known = kinds_on(topology)
    for n, one in enumerate(known):
        for other in known[n + 1 :]:
            if one.resource != other.resource:
                yield one, other


async def _lanes_of(arena: Arena, name: str) -> int:
    owners = [await arena.ask("GET", key_names.owner(p)) for p in range(PARTITIONS)]
    return sum(
        owner is not None and key_names.holder_of(owner.decode())[0] == name
        for owner in owners
    )


# ------------------------------------------------------------ everbus's processes


@fault("managers")
async def kill_manager(hurt: Hurt) -> None:
    name = hurt.chance.choice(hurt.arena.managers)
    hurt.bit = await _lanes_of(hurt.arena, name)
    hurt.strike()
    await hurt.arena.parts[name].end(signal.SIGKILL)
    await hurt.hold(0.2, 1.2)
    await hurt.arena.revive(name)


@fault("managers")
async def stop_manager(hurt: Hurt) -> None:
    name = hurt.chance.choice(hurt.arena.managers)
    hurt.bit = await _lanes_of(hurt.arena, name)
    hurt.strike()
    hurt.arena.parts[name].send(signal.SIGSTOP)
    await asyncio.sleep(PAUSE_S)
    hurt.arena.parts[name].send(signal.SIGCONT)


@fault("managers")
async def kill_all_managers(hurt: Hurt) -> None:
    hurt.strike()
    for name in hurt.arena.managers:
        hurt.bit += hurt.arena.parts[name].alive
        await hurt.arena.parts[name].end(signal.SIGKILL)
    await hurt.hold(0.2, 1.0)
    for name in hurt.arena.managers:
        await hurt.arena.revive(name)


@fault("archiver")
async def kill_archiver(hurt: Hurt) -> None:
    part = hurt.arena.parts["archiver"]
    hurt.strike()
    hurt.bit = int(part.alive)
    await part.end(signal.SIGKILL)
    await hurt.hold(0.2, 1.0)
    # Its successor need not wait for its lease of 5 s.
    await hurt.arena.ask("DEL", key_names.owner(LEASE))
    await hurt.arena.revive("archiver")


@fault("archiver")
async def stop_archiver(hurt: Hurt) -> None:
    part = hurt.arena.parts["archiver"]
    hurt.strike()
    hurt.bit = int(part.alive)
    part.send(signal.SIGSTOP)
    await hurt.hold(1.0, PAUSE_S)
    part.send(signal.SIGCONT)


@fault("mads")
async def kill_mad(hurt: Hurt) -> None:
    mad = hurt.chance.choice(hurt.mads)
    hurt.strike()
    before = mad.pid
    book, mad.book = mad.book, mad.book
    await mad.kill()
    await mad.begin()
    hurt.bit = int(mad.pid != before)
    if book is not None:
        mad.go(book, mad.misc, hurt.chance.randrange(2**31), mad.rate)


@fault("mads")
async def stop_mad(hurt: Hurt) -> None:
    mad = hurt.chance.choice(hurt.mads)
    hurt.strike()
    mad.send(signal.SIGSTOP)
    hurt.bit = 1
    # Now and then beyond its lease of 5 s.
    await hurt.hold(1.0, 2.0) if hurt.chance.random() < 0.8 else await hurt.hold(6, 7)
    mad.send(signal.SIGCONT)


# ------------------------------------------------------------ MongoDB


@fault("mongo")
async def kill_mongo(hurt: Hurt) -> None:
    hurt.strike()
    before = hurt.arena.mongo.pid
    await hurt.arena.mongo.kill()
    await hurt.hold(0.1, 0.8)
    await hurt.arena.mongo.restart()
    hurt.bit = int(hurt.arena.mongo.pid != before)


@fault("mongo")
async def stop_mongo(hurt: Hurt) -> None:
    hurt.strike()
    hurt.arena.mongo.pause()
    hurt.bit = 1
    await hurt.hold(1.0, 2.5)
    hurt.arena.mongo.resume()


@fault("mongo")
async def swallow_mongo(hurt: Hurt) -> None:
    await _on_links(hurt, [hurt.arena.links["mongo"]], _swallow)


@fault("mongo")
async def half_open_mongo(hurt: Hurt) -> None:
    await _on_links(hurt, [hurt.arena.links["mongo"]], _half_open)


# ------------------------------------------------------------ links of the bus


def _bus_links(hurt: Hurt) -> list[Link]:
    arena = hurt.arena
    names = ["mads", "managers"] if not arena.replicated else [*arena.servers]
    return [arena.links[hurt.chance.choice(names)]]


async def _on_links(
    hurt: Hurt, links: list[Link], break_it: Callable[[Link], None]
) -> None:
    before = sum(link.bitten for link in links)
    hurt.strike()
    for link in links:
        break_it(link)
    await hurt.hold(0.6, 1.6)
    for link in links:
        link.heal()
    hurt.bit += sum(link.bitten for link in links) - before


def _swallow(link: Link) -> None:
    link.swallows = (True, True)


def _half_open(link: Link) -> None:
    link.swallows = (False, True)


def _delay(link: Link) -> None:
    link.delay_s = 0.12


async def _may_switch(hurt: Hurt, work: Awaitable[None]) -> None:
    """
    Do *work*; if another primary serves afterwards, the bus may have lost writes.
    """
    before = await hurt.arena.primaries() if hurt.arena.replicated else []
    await work
    if hurt.arena.replicated:
        await until(hurt.arena.replicas_follow, SWITCHED_WITHIN_S, "replicas follow")
        if await hurt.arena.primaries() != before:
            hurt.strike("hot")
            hurt.notes.append("failed over")


@fault("links")
async def link_cut(hurt: Hurt) -> None:
    [link] = _bus_links(hurt)
    hurt.strike()
    before = link.cut_count
    for _ in range(hurt.chance.randrange(1, 8)):
        link.cut()
        await hurt.hold(0.02, 0.3)
    hurt.bit = link.cut_count - before


@fault("links")
async def link_half_open(hurt: Hurt) -> None:
    await _may_switch(hurt, _on_links(hurt, _bus_links(hurt), _half_open))


@fault("links")
async def link_swallow(hurt: Hurt) -> None:
    await _may_switch(hurt, _on_links(hurt, _bus_links(hurt), _swallow))


@fault("links")
async def link_delay(hurt: Hurt) -> None:
    await _may_switch(hurt, _on_links(hurt, _bus_links(hurt), _delay))


# ------------------------------------------------------------ the bus itself


async def _a_primary(hurt: Hurt) -> str:
    return hurt.chance.choice(await hurt.arena.primaries())


@fault("bus")
async def kill_bus(hurt: Hurt) -> None:
    """
    A server dies and is started again at once, on its AOF.
    """
    name = await _a_primary(hurt)
    server = hurt.arena.servers[name]

    async def kill() -> None:
        hurt.strike()
        before = server.pid
        await server.kill()
        await server.restart()
        hurt.bit = int(server.pid != before)

    await _may_switch(hurt, kill())


@fault("bus")
async def stop_bus(hurt: Hurt) -> None:
    server = hurt.arena.servers[await _a_primary(hurt)]

    async def stop() -> None:
        hurt.strike()
        server.pause()
        hurt.bit = 1
        await hurt.hold(0.4, 1.6)
        server.resume()

    await _may_switch(hurt, stop())


@fault("bus", REPLICATED)
async def failover_orderly(hurt: Hurt) -> None:
    """
    By order. A cluster hands over without loss; Sentinels do not wait for the
    replica.
    """
    arena = hurt.arena
    before = await arena.primaries()
    hurt.failover = True
    if arena.clustered:
        victim = await _a_primary(hurt)
        follower = await _follower_of(arena, victim)
        hurt.strike()
        await arena.direct(follower, "CLUSTER", "FAILOVER")
    else:
        hurt.strike("hot")
        await arena.direct("sentinel-1", "SENTINEL", "FAILOVER", "bus")
    await _switched(hurt, before)


@fault("bus", REPLICATED)
async def failover_kill(hurt: Hurt) -> None:
    """
    A primary dies and stays dead until another serves.
    """
    arena = hurt.arena
    before = await arena.primaries()
    name = hurt.chance.choice(before)
    hurt.failover = True
    hurt.strike("hot")
    await arena.servers[name].kill()
    try:
        await _switched(hurt, before)
    finally:
        await arena.revive(name)
    await until(arena.replicas_follow, SWITCHED_WITHIN_S, "replicas follow")


@fault("bus", REPLICATED)
async def failover_stop(hurt: Hurt) -> None:
    """
    A primary sleeps until another serves, and wakes up as if nothing were.
    """
    arena = hurt.arena
    before = await arena.primaries()
    server = arena.servers[hurt.chance.choice(before)]
    hurt.failover = True
    hurt.strike("hot")
    server.pause()
    try:
        await _switched(hurt, before, asleep=server.port)
    finally:
        server.resume()
    await until(arena.replicas_follow, SWITCHED_WITHIN_S, "replicas follow")


@fault("bus", ("sentinel",))
async def split_brain(hurt: Hurt) -> None:
    """
    Sentinels and replicas lose the primary, and clients do not.
    """
    arena = hurt.arena
    before = await arena.primaries()
    name = before[0]
    link = arena.links[name]
    hurt.strike("hot")
    link.servers_only, link.swallows = True, (True, True)
    try:
        await until(lambda: _another(arena, before), SWITCHED_WITHIN_S, "a second one")
        written = await _writes(arena, name)
        await hurt.hold(0.3, 1.0)
        roles = await arena.roles()
        both = sum(role == "master" for role in roles.values())
        hurt.bit = int(both > 1)
        hurt.notes.append(f"{await _writes(arena, name) - written} commands on the old")
    finally:
        link.heal()
    await until(arena.replicas_follow, SWITCHED_WITHIN_S, "replicas follow")


async def _writes(arena: Arena, name: str) -> int:
    info = (await arena.direct(name, "INFO", "stats")).decode()
    return int(info.partition("total_commands_processed:")[2].split()[0])


async def _follower_of(arena: Arena, primary: str) -> str:
    me = (await arena.direct(primary, "CLUSTER", "MYID")).decode()
    for name in arena.servers:
        if name != primary:
            told = (await arena.direct(name, "CLUSTER", "NODES")).decode()
            if any("myself,slave " + me in line for line in told.splitlines()):
                return name
    raise AssertionError(f"nobody follows {primary}")


async def _another(arena: Arena, before: list[str], asleep: int = 0) -> bool:
    with suppress(EverbusError, TimeoutError):
        if arena.clustered and asleep:
            for name, server in arena.servers.items():
                if server.alive and server.port != asleep:
                    told = await arena.direct(name, "CLUSTER", "SLOTS")
                    now = sorted({arena._behind(int(one[2][1])) for one in told})
                    return now != before and len(now) == 3
        return await arena.primaries() not in ([], before)
    return False


async def _switched(hurt: Hurt, before: list[str], asleep: int = 0) -> None:
    async def other() -> bool:
        return await _another(hurt.arena, before, asleep)

    await until(other, SWITCHED_WITHIN_S, "another primary")
    hurt.bit += 1


@fault("followers", REPLICATED)
async def kill_follower(hurt: Hurt) -> None:
    arena = hurt.arena
    primaries = await arena.primaries()
    name = hurt.chance.choice([one for one in arena.servers if one not in primaries])
    hurt.strike()
    await arena.servers[name].kill()
    hurt.bit = int(not arena.servers[name].alive)
    await hurt.hold(0.3, 1.0)
    await arena.revive(name)
    await until(arena.replicas_follow, SWITCHED_WITHIN_S, "replicas follow")


@fault("sentinels", ("sentinel",))
async def kill_sentinels(hurt: Hurt) -> None:
    names = hurt.chance.sample([*hurt.arena.sentinels], hurt.chance.choice([1, 2]))
    hurt.strike()
    for name in names:
        await hurt.arena.sentinels[name].kill()
        hurt.bit += 1
    await hurt.hold(0.5, 1.5)
    for name in names:
        await hurt.arena.revive(name)


@fault("bus", ("server",))
async def truncated_aof(hurt: Hurt) -> None:
    """
    The server dies, and the end of its AOF with it.
    """
    server = hurt.arena.servers["bus"]
    hurt.strike("hot")
    await server.kill()
    folder = hurt.arena.folder / "bus" / "valkey" / "appendonlydir"
    hurt.bit = _shorten(folder, hurt.chance.randrange(2_000, 200_000))
    await server.restart()


def _shorten(folder: Path, count: int) -> int:
    files = sorted(folder.glob("*.incr.aof"), key=lambda one: one.stat().st_mtime)
    size = files[-1].stat().st_size
    cut = min(count, size)
    with files[-1].open("r+b") as file:
        file.truncate(size - cut)
    return cut


@fault("bus")
async def flushall(hurt: Hurt) -> None:
    """
    Every primary forgets everything.
    """
    arena = hurt.arena
    hurt.strike("replicated")
    for name in await arena.primaries():
        hurt.bit += int(await arena.direct(name, "DBSIZE"))
        await arena.direct(name, "FLUSHALL", "SYNC")


@fault("bus")
async def out_of_memory(hurt: Hurt) -> None:
    arena = hurt.arena
    names = await arena.primaries()
    before = [await _oom(arena, name) for name in names]
    hurt.strike()
    for name in names:
        await arena.direct(name, "CONFIG", "SET", "maxmemory", 1)
    try:
        await hurt.hold(0.6, 1.5)
        hurt.bit = sum([await _oom(arena, name) for name in names]) - sum(before)
        hurt.bit = hurt.bit or int(await _refuses(arena, names[0]))
    finally:
        for name in names:
            await arena.direct(name, "CONFIG", "SET", "maxmemory", 0)


async def _oom(arena: Arena, name: str) -> int:
    info = (await arena.direct(name, "INFO", "errorstats")).decode()
    return (
        int(info.partition("errorstat_OOM:count=")[2].split()[0] or 0)
        if ("errorstat_OOM" in info)
        else 0
    )


async def _refuses(arena: Arena, name: str) -> bool:
    try:
        await arena.direct(name, "SET", "campaign", "x")
    except EverbusError as error:
        return "OOM" in error.message
    return False


@fault("bus")
async def busy_script(hurt: Hurt) -> None:
    """
    A script of a stranger runs on, and the server tells everybody that it is busy.
    """
    arena = hurt.arena
    name = await _a_primary(hurt)
    ms = hurt.chance.randrange(500, 1200)
    script = (
        "local function now() local t = redis.call('TIME') "
        "return t[1] * 1000 + t[2] / 1000 end "
        f"local till = now() + {ms} while now() < till do end"
    )

    async def run() -> None:
        wire = Wire(arena.servers[name].url, name="stranger")
        await arena.direct(name, "CONFIG", "SET", "busy-reply-threshold", 50)
        hurt.strike()
        running = asyncio.create_task(wire.call("EVAL", script, 0, timeout_s=10))
        try:
            await asyncio.sleep(0.2)
            try:
                await arena.direct(name, "GET", "campaign")
            except EverbusError:
                hurt.bit = 1
            with suppress(EverbusError):
                await running
        finally:
            await wire.close()
            await until(lambda: _set_busy(arena, name), 10, "the script's end")

    await _may_switch(hurt, run())


async def _set_busy(arena: Arena, name: str) -> bool:
    with suppress(EverbusError):
        await arena.direct(name, "CONFIG", "SET", "busy-reply-threshold", 5000)
        return True
    return False


@fault("bus")
async def credentials_refused(hurt: Hurt) -> None:
    """
    The users of all clients are refused for a while.
    """
    arena = hurt.arena
    name = await _a_primary(hurt)
    wire = Wire(arena.servers[name].url, name="operator")

    async def refuse() -> None:
        await wire.call("PING")
        hurt.strike()
        await wire.call("ACL", "SETUSER", "default", "off")
        try:
            killed = await wire.call(
                "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"
            )
            hurt.bit = int(killed)
            await hurt.hold(0.3, 0.7)
        finally:
            await wire.call("ACL", "SETUSER", "default", "on")
            await wire.close()

    await _may_switch(hurt, refuse())


# ------------------------------------------------------------ streams


@fault("streams")
async def groups_destroyed(hurt: Hurt) -> None:
    hurt.strike()
    for mad in hurt.mads:
        for p in range(PARTITIONS):
            stream = keys.ingress(p, mad.name)
            with suppress(EverbusError):
                gone = await hurt.arena.wire.call(
                    "XGROUP", "DESTROY", stream, keys.GROUP
                )
                hurt.bit += int(gone)


@fault("streams")
async def foreign_reader(hurt: Hurt) -> None:
    """
    Somebody reads our groups by hand, and never acknowledges.
    """
    hurt.strike()
    until_s = time.monotonic() + 1.5
    while time.monotonic() < until_s and hurt.bit < 40:
        for mad in hurt.mads:
            for p in range(PARTITIONS):
                stream = keys.ingress(p, mad.name)
                with suppress(EverbusError):
                    read = await hurt.arena.wire.call(
                        *("XREADGROUP", "GROUP", keys.GROUP, "stranger", "COUNT", 10),
                        *("STREAMS", stream, ">"),
                    )
                    hurt.bit += sum(len(entries) for _, entries in read or ())
        await asyncio.sleep(0)


# ------------------------------------------------------------ clocks


@fault("clock", ("clocked",))
async def clock_step(hurt: Hurt) -> None:
    """
    The wall clock of the bus's host is set by up to an hour, and stays so.
    """
    arena = hurt.arena
    step_s = hurt.chance.choice([-3600, -300, 0, 300, 3600])
    before = await _clock(arena)
    hurt.strike()
    arena.set_clock(step_s)
    await hurt.hold(0.5, 1.0)
    hurt.bit = int(abs(await _clock(arena) - before) > 60)
    if not hurt.bit:
        arena.set_clock(-step_s or 3600)
        await hurt.hold(0.3, 0.5)
        hurt.bit = int(abs(await _clock(arena) - before) > 60)


@fault("clock", ("clocked",))
async def clock_step_and_dead_manager(hurt: Hurt) -> None:
    """
    The clock is set while a manager is dead.
    """
    name = hurt.chance.choice(hurt.arena.managers)
    await hurt.arena.parts[name].end(signal.SIGKILL)
    await clock_step(hurt)
    await hurt.arena.revive(name)


async def _clock(arena: Arena) -> int:
    return int((await arena.direct("bus", "TIME"))[0])
