"""
Runs Lua scripts on the bus, also after a server lost its script cache.
"""

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from everbus.bus.server_errors import error_word, refusal
from everbus.bus.wire import EXCHANGE_TIMEOUT_S, Command, Wire
from everbus.gateway.store.scripts import load_scripts


async def run(
    wire: Wire, commands: Sequence[Command], *, timeout_s: float = EXCHANGE_TIMEOUT_S
) -> list[Any]:
    """
    The replies to *commands*, in order; unknown scripts are loaded and run again, which
    is safe: they did not run.

    Raises:
        WireFailed: the connection broke; every command may have taken effect.
        Unavailable, Overloaded, RightsRefused, CredentialsRefused, CommandRefused: by
            `bus.server_errors`, of the first that was refused; the others have taken
            effect.
    """
    replies = await wire.exchange(commands, timeout_s=timeout_s)
    unknown = [i for i, reply in enumerate(replies) if _is_unknown(reply)]
    if unknown:
        await load_scripts(wire)
        again = await wire.exchange([commands[i] for i in unknown], timeout_s=timeout_s)
        for i, reply in zip(unknown, again, strict=True):
            replies[i] = reply
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise refusal(reply)
    return replies


def _is_unknown(reply: Any) -> bool:
    return isinstance(reply, ResponseError) and error_word(reply) == "NOSCRIPT"
