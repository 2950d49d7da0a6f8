"""
Every server of a bus: its primaries, and the replicas of each.

Commands about keys find their node by themselves. This is for commands that each server
answers for itself: users, configuration, statistics, a walk over its keys. A plain
URL, Sentinels and a Cluster give the same list.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from redis.exceptions import ResponseError

from everbus.bus.cluster_routing import cluster_address, is_cluster
from everbus.bus.errors import EverbusError, Forbidden
from everbus.bus.known_nodes import ASK, KnownNodes, addresses_in, known_nodes
from everbus.bus.sentinel import is_sentinel, sentinel_address
from everbus.bus.server_errors import refusal
from everbus.bus.wire import Command, Wire, WireFailed

# Each server has so long to answer; all are asked at once.
ANSWER_WITHIN_S = 2.0
# Names also nodes without slots, and nodes that are away; Redis 7 and Valkey.
_SHARDS: Command = ("CLUSTER", "SHARDS")


class BusServer(NamedTuple):
    """
    One server of a bus.

    Attributes:
        address: `host:port` for people, without credentials.
        is_primary: whether it serves keys; else it is a replica, or a node of a Cluster
            without slots.
        wire: a connection to it, as the user in the URL of the bus.
        trouble: why it gives no answer; None if it answers.
    """

    address: str
    is_primary: bool
    wire: Wire
    trouble: EverbusError | None = None


@asynccontextmanager
async def bus_servers(
    url: str, *, name: str = "everbus"
) -> AsyncIterator[list[BusServer]]:
    """
    The servers of the bus at *url*, primaries first; their connections end with the
    block.

    Raises:
        WireFailed: no server tells of the others.
        Forbidden, Unauthenticated, Unavailable: that server refuses.
    """
    opened: list[BusServer] = []
    try:
        primaries, others = await _addresses(url, name, opened)
        for address in (*primaries, *others):
            if all(address != one.address for one in opened):
                wire = Wire(url_at(url, address), name=name)
                opened.append(BusServer(address, address in primaries, wire))
        yield list(await asyncio.gather(*map(_asked, opened)))
    finally:
        for one in opened:
            await one.wire.close()


def reachable(servers: list[BusServer]) -> list[BusServer]:
    """
    The servers that answer. Replicas may be missing among them, primaries may not.

    Raises:
        EverbusError: the trouble of a primary that gives no answer.
    """
    for one in servers:
        if one.is_primary and one.trouble is not None:
            raise one.trouble
    return [one for one in servers if one.trouble is None]


def url_at(url: str, address: str) -> str:
    """
    URL of the server at *address*, with the credentials and options of the bus's *url*.
    """
    if is_sentinel(url):
        return sentinel_address(url).server_url(address)
    if is_cluster(url):
        return cluster_address(url).url(address)
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")

    return parts._replace(netloc=f"{login}{at}{address}").geturl()


async def _asked(server: BusServer) -> BusServer:
    try:
        await server.wire.call("PING", timeout_s=ANSWER_WITHIN_S)
    except EverbusError as error:
        return server._replace(trouble=error)
    return server


async def _addresses(
    url: str, name: str, opened: list[BusServer]
) -> tuple[list[str], list[str]]:
    """
    Addresses of the primaries, and of all others; a connection that was needed to learn
    them is added to *opened*.
    """
    if is_cluster(url):
        return await _in_cluster(known_nodes(url), name)
    wire = Wire(url, name=name)
    opened.append(BusServer("", True, wire))
    try:
        info = await wire.call("INFO", "replication", timeout_s=ANSWER_WITHIN_S)
    except (Forbidden, ResponseError):
        info = b""  # the primary alone, then
    opened[0] = BusServer(wire.address, True, wire)

    return [wire.address], replicas_in(info.decode())


async def _in_cluster(nodes: KnownNodes, name: str) -> tuple[list[str], list[str]]:
    failed: EverbusError = WireFailed("the URL names no node")
    for address in nodes.candidates():
        wire = Wire(nodes.url(address), name=name)
        try:
            slots, shards = await wire.exchange(
                [ASK, _SHARDS], timeout_s=ANSWER_WITHIN_S
            )
        except EverbusError as error:
            nodes.note_away(address)
            failed = error
            continue
        finally:
            await wire.close()
        if isinstance(slots, ResponseError):
            raise refusal(slots)
        nodes.note_answer(address, slots)
        firsts = [[first, last, some] for first, last, some, *_ in slots]
        secure = nodes.url(address).startswith("rediss:")
        others = _of_shards(shards, address, "tls-port" if secure else "port")
        return addresses_in(firsts, address), [*addresses_in(slots, address), *others]
    raise failed


def replicas_in(info: str) -> list[str]:
    """
    Addresses of the replicas in a primary's INFO replication.
    """
    found = []
    for line in info.splitlines():
        name, _, value = line.partition(":")
        if name.startswith("slave") and name[5:].isdecimal():
            fields = dict(
                part.split("=", 1) for part in value.split(",") if "=" in part
            )
            host = f"[{fields['ip']}]" if ":" in fields["ip"] else fields["ip"]
            found.append(f"{host}:{fields['port']}")
    return found


def _of_shards(reply: Any, asked: str, port: str) -> list[str]:
    """
    Addresses in a reply to _SHARDS, each with the port of that name; none if the server
    does not know the command, or the user may not ask it.
    """
    if not isinstance(reply, list):
        return []
    own_host = asked.rpartition(":")[0]
    found = []
    for shard in reply:
        for node in map(_fields, _fields(shard).get("nodes", ())):
            host = _text(node.get("endpoint") or node.get("ip"))
            if port in node:
                found.append(f"{own_host if host in ('', '?') else host}:{node[port]}")
    return found


def _fields(pairs: list[Any]) -> dict[str, Any]:
    return {_text(k): v for k, v in zip(pairs[::2], pairs[1::2], strict=True)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
