"""
Asking every lane something that needs nothing, to see how long a reply takes.

The question comes from the MAD `gateway`, needs no token and changes nothing; that
it is refused is an answer as well.
"""

import time
import uuid
from collections.abc import Sequence

import msgspec

from bus import keys
from bus.codec import COMMAND_FIELD, pack, pack_envelope
from bus.messages import SCHEMA, Envelope
from bus.wire import Command, Wire
from gateway.delivery import OUTCOME_KIND

WAIT_MS = 3_000
# Lanes that are asked; with more of them these stand for all.
MOST_LANES = 64


async def slowest_reply_ms(wire: Wire, lanes: Sequence[int]) -> float:
    """
    How long the last of these lanes took to reply; WAIT_MS or more if one did not.

    Raises:
        WireFailed: the bus is away.
        Forbidden: it does not let us publish as the gateway.
    """
    asked = {_question(): lane for lane in lanes[:MOST_LANES]}
    began = time.perf_counter()
    for reply in await wire.exchange([_publish(*one) for one in asked.items()]):
        if isinstance(reply, Exception):
            raise reply
    waiting = [keys.reply(p, keys.GATEWAY, name) for name, p in asked.items()]
    came = list(waiting)
    while waiting and (left_ms := WAIT_MS - _since_ms(began)) > 0:
        told = await wire.call(
            *("XREAD", "COUNT", 1, "BLOCK", max(1, round(left_ms)), "STREAMS"),
            *waiting,
            *(["0"] * len(waiting)),
            timeout_s=left_ms / 1000 + 2,
        )
        there = {stream.decode() for stream, _ in told or ()}
        waiting = [stream for stream in waiting if stream not in there]
    took_ms = _since_ms(began)
    await wire.call("UNLINK", *came)

    return took_ms


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

    # Never makes a stream: without one there is nobody who reads it.
    return ("XADD", stream, "NOMKSTREAM", "*", COMMAND_FIELD, pack_envelope(envelope))


def _since_ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000
