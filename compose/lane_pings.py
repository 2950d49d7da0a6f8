"""
A ping of every lane, to measure how long a reply takes.

The ping is a command of the MAD `gateway`. It needs no token and changes nothing; a
refusal is a reply as well.
"""

import time
import uuid
from collections.abc import Iterable, Sequence

import msgspec
from redis.exceptions import ResponseError

from everbus.bus import keys
from everbus.bus.errors import Forbidden
from everbus.bus.messages import COMMAND_FIELD, SCHEMA, Envelope, pack, pack_envelope
from everbus.bus.wire import Command, Wire
from everbus.gateway.health.readings import LaneReading
from everbus.gateway.lane.delivery import OUTCOME_KIND

WAIT_MS = 3_000
# At most so many lanes are pinged; these stand for all others.
MOST_LANES = 64


async def served_reply_ms(wire: Wire, lanes: Iterable[LaneReading]) -> float | None:
    """
    The reply time of the slowest lane with an owner; None without such a lane, or
    without the right to publish.

    Raises:
        WireFailed: the bus is away.
    """
    served = [int(one.name) for one in lanes if one.owner and one.name.isdecimal()]
    if not served:
        return None
    try:
        return await _slowest_reply_ms(wire, served)
    except (Forbidden, ResponseError):
        return None


async def _slowest_reply_ms(wire: Wire, lanes: Sequence[int]) -> float:
    """
    The reply time of the slowest of these lanes; WAIT_MS or more without a reply.

    Raises:
        WireFailed: the bus is away.
        Forbidden: this user may not publish as the gateway.
    """
    questions = {_question(): lane for lane in lanes[:MOST_LANES]}
    began = time.perf_counter()
    for reply in await wire.exchange([_publish(*one) for one in questions.items()]):
        if isinstance(reply, Exception):
            raise reply
    replies = [keys.reply(p, keys.GATEWAY, name) for name, p in questions.items()]
    groups = wire.group_by_slot(replies)
    # One group after the other: the others' replies come meanwhile.
    for group in groups:
        await _wait_for(wire, group, began)
    took_ms = _since_ms(began)
    await wire.exchange([("UNLINK", *group) for group in groups])

    return took_ms


async def _wait_for(wire: Wire, streams: Sequence[str], began: float) -> None:
    """
    Return when there is a reply on each of these streams, or WAIT_MS after *began*.
    """
    waiting = list(streams)
    while waiting and (left_ms := WAIT_MS - _since_ms(began)) > 0:
        replies = await wire.call(
            *("XREAD", "COUNT", 1, "BLOCK", max(1, round(left_ms)), "STREAMS"),
            *waiting,
            *(["0"] * len(waiting)),
            timeout_s=left_ms / 1000 + 2,
        )
        there = {stream.decode() for stream, _ in replies or ()}
        waiting = [stream for stream in waiting if stream not in there]


def _question() -> str:
    return f"ping-{uuid.uuid4()}"


def _publish(name: str, lane: int) -> Command:
    envelope = Envelope(
        v=SCHEMA,
        id=name,
        kind=OUTCOME_KIND,
        body=msgspec.Raw(pack({"command_id": name})),
        deadline_ms=WAIT_MS,
        reply=True,
    )
    stream = keys.ingress(lane, keys.GATEWAY)

    # NOMKSTREAM: without the stream nobody reads it either.
    return ("XADD", stream, "NOMKSTREAM", "*", COMMAND_FIELD, pack_envelope(envelope))


def _since_ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000
