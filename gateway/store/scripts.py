"""
The Lua scripts: one file per operation, run by the SHA-1 of its text.

Not a Functions library: that is database state, and loading a new one would
change older replicas in the middle of a rolling upgrade.
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import ResponseError

from everbus.bus.server_errors import refusal
from everbus.bus.wire import EXCHANGE_TIMEOUT_S, Argument, Command, Wire

_TEXTS = {
    name: (files("everbus.gateway") / "lua" / f"{name}.lua").read_bytes()
    for name in (
        "acquire",
        "admit",
        "ages",
        "beat",
        "claim",
        "commit",
        "confirm",
        "dismiss",
        "drop_letter",
        "evict",
        "fence",
        "forget_losses",
        "groups",
        "lineage",
        "lose",
        "mark",
        "memory",
        "prune",
        "read",
        "read_outbox",
        "redrive",
        "register",
        "release",
        "reopen",
        "renew",
        "shorten",
        "sizes",
        "sweep",
        "write",
    )
}
_SHAS = {
    name: hashlib.sha1(text, usedforsecurity=False).hexdigest()
    for name, text in _TEXTS.items()
}


def script(name: str, keys: Sequence[str], *arguments: Argument) -> Command:
    """
    The command that runs the script *name*; a wire must have loaded it.
    """
    return (*call_of(name), len(keys), *keys, *arguments)


def call_of(name: str) -> tuple[str, str]:
    """
    How the command of the script *name* begins; the number of its keys comes next.
    """
    return ("EVALSHA", _SHAS[name])


def load_command(name: str) -> Command:
    """
    The command that loads the script *name*; harmless if the server has it.
    """
    return ("SCRIPT", "LOAD", _TEXTS[name])


async def write_at_all_times(
    wire: Wire, *command: Argument, timeout_s: float = EXCHANGE_TIMEOUT_S
) -> Any:
    """
    The reply to one small write, also by a server that is out of memory.

    Raises:
        EverbusError: as `Wire.call`.
    """
    name, key, *rest = command
    writing = script("write", [str(key)], name, *rest)
    loading = load_command("write")
    _, reply = await wire.exchange([loading, writing], timeout_s=timeout_s)
    if isinstance(reply, ResponseError):
        raise refusal(reply)
    return reply


async def load_scripts(wire: Wire, *names: str) -> None:
    """
    Load the scripts *names* into the server, all of them by default; harmless if it has
    them.

    Raises:
        WireFailed: the connection broke.
        Unavailable: the server refuses for now.
        Forbidden: it refuses this user.
    """
    replies = await wire.exchange([load_command(name) for name in names or _TEXTS])
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise refusal(reply)
