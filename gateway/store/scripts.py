"""
The Lua scripts: one file an operation, run by the SHA-1 of its text.

Not a Functions library: that is database state, and loading a new one would
change older replicas in the middle of a rolling upgrade.
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import files

from bus.wire import Argument, Command, Wire

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


async def load_scripts(wire: Wire) -> None:
    """
    Make every script known to the server; harmless if it knows them.

    Raises:
        WireFailed: the connection broke.
        Unavailable: the server refuses for now.
    """
    for text in _TEXTS.values():
        await wire.call("SCRIPT", "LOAD", text)
