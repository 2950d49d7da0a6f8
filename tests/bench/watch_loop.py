"""
The yardstick: the customer's pseudo-code, WATCH/MULTI/EXEC per command.

Does the same for each command as our commit (version check, changed fields,
outbox, acknowledgement) with redis-py, the same handler and 16 lanes: four round
trips a command, or three and a hundredth if it reads a hundred at a time.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any

import redis.asyncio as redis
from redis.exceptions import WatchError

from everbus.bus.messages import Session, pack, unpack
from everbus.gateway.store import hot_copy
from everbus.handlers.commands import Command, UpdateSession
from everbus.handlers.routes import update_session

LANES = 16
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _stream(lane: int) -> str:
    return f"watch:in:{lane}"


async def prepare(client: Any, session_ids: list[str], count: int, body: bytes) -> None:
    """
    Create sessions and queue *count* updates, spread over the lanes.
    """
    pipe = client.pipeline(transaction=False)
    for i, session_id in enumerate(session_ids):
        session = Session(
            id=session_id, version=1, owner_id="ada", created_at=NOW, last_active=NOW
        )
        fields = hot_copy.field_arguments(None, session)
        pipe.hset(f"watch:session:{session_id}", items=fields)
        if i < LANES:
            pipe.xgroup_create(_stream(i), "g", "0", mkstream=True)
    await pipe.execute()
    for first in range(0, count, 1000):
        for i in range(first, min(first + 1000, count)):
            session_id = session_ids[i % len(session_ids)]
            lane = i % len(session_ids) % LANES
            pipe.xadd(_stream(lane), {"s": session_id, "c": body})
        await pipe.execute()


async def run(client: Any, at_once: int) -> int:
    """
    Apply everything that is queued, read *at_once* entries at a time; how many.
    """
    lanes = (_lane(client, lane, at_once) for lane in range(LANES))

    return sum(await asyncio.gather(*lanes))


async def forget(client: Any) -> None:
    """
    Remove everything that `prepare` and `run` made.
    """
    stale = [key async for key in client.scan_iter("watch:*", count=1000)]
    await client.unlink(*stale)


async def _lane(client: Any, lane: int, at_once: int) -> int:
    done = 0
    while True:
        found = await client.xreadgroup("g", "c", {_stream(lane): ">"}, count=at_once)
        entries = found[0][1] if found else []
        if not entries:
            return done
        for identifier, fields in entries:
            await _apply(client, lane, identifier, fields)
            done += 1


async def _apply(
    client: Any, lane: int, identifier: bytes, fields: dict[bytes, bytes]
) -> None:
    session_id = fields[b"s"].decode()
    key = f"watch:session:{session_id}"
    command = Command(
        id="",
        kind="session.update",
        session_id=session_id,
        mad="m",
        principal="m",
        body=unpack(fields[b"c"], UpdateSession),
    )
    async with client.pipeline(transaction=True) as pipe:
        while True:
            try:
                await pipe.watch(key)
                values = [*await pipe.hmget(key, hot_copy.FIELDS), None]
                before = hot_copy.found_in(session_id, (values, (), None)).session
                outcome = update_session(before, command, NOW)
                after = outcome.session
                if after is None:
                    raise AssertionError("an update leaves a session")
                pipe.multi()
                pipe.hset(key, items=hot_copy.field_arguments(before, after))
                pipe.xadd("watch:outbox", {"b": pack([after, outcome.events])})
                pipe.xack(_stream(lane), "g", identifier)
                await pipe.execute()
            except WatchError:
                continue
            else:
                return


def client_for(url: str) -> Any:
    """
    A redis-py client as its documentation advises.
    """
    return redis.Redis.from_url(url, max_connections=LANES * 2)
