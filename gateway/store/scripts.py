"""
The Lua scripts: one file an operation, run by the SHA-1 of its text.

Not a Functions library: that is database state, and loading a new one would
change older replicas in the middle of a rolling upgrade.
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import files

from redis.exceptions import ResponseError

from bus.wire import Argument, Command, Wire, refusal

_TEXTS = {
    name: (files("gateway") / "lua" / f"{name}.lua").read_bytes()
    for name in (
        "acquire",
        "admit",
        "ages",
        "beat",
        "commit",
        "confirm",
        "dismiss",
        "evict",
        "fence",
        "lose",
        "mark",
        "prune",
        "read",
        "redrive",
        "register",
        "release",
        "renew",
        "sweep",
        "told",
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
    return ("EVALSHA", _SHAS[name], len(keys), *keys, *arguments)


async def load_scripts(wire: Wire, *names: str) -> None:
    """
    Make the scripts of these *names* known to the server, if none is given all of them;
    harmless if it knows them.

    Raises:
        WireFailed: the connection broke.
        Unavailable: the server refuses for now.
        Forbidden: it refuses this user.
    """
    texts = [_TEXTS[name] for name in names or _TEXTS]
    replies = await wire.exchange([("SCRIPT", "LOAD", text) for text in texts])
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise refusal(reply)
