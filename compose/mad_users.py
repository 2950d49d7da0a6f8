"""
The Redis users of MADs: made, renewed, ended, and what else their safety hangs on.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from bus.errors import AlreadyExists, Forbidden, Unavailable
from bus.wire import Wire
from compose.acl import wake_rule
from compose.exits import USAGE, Failed


class User(NamedTuple):
    """
    A user of the server, as far as we ask.
    """

    flags: frozenset[str]
    channels: frozenset[str]


async def find_user(wire: Wire, name: str) -> User | None:
    """
    The user of that name; None if there is none.

    Raises:
        Failed: the server has no ACLs.
        Forbidden: we may not look.
    """
    try:
        told = await wire.call("ACL", "GETUSER", name)
    except ResponseError as error:
        raise Failed(
            f"the server has no ACLs as we need them ({error}); use --no-acl, and "
            "know that every MAD may then do everything",
            USAGE,
        ) from error
    if told is None:
        return None
    fields: dict[bytes, Any] = dict(zip(told[::2], told[1::2], strict=True))

    return User(_words(fields[b"flags"]), _words(fields[b"channels"]))


def check_replaceable(user: User | None, mad: str, *, rotate: bool) -> None:
    """
    See that nobody's user is taken away by giving *mad* one.

    Raises:
        AlreadyExists: there is a user of that name, and it is to stay as it is.
    """
    if user is None:
        return
    if not is_mads(user, mad):
        raise AlreadyExists(
            f"the server has a user {mad} that is no MAD's; choose another name"
        )
    if not rotate:
        raise AlreadyExists(
            f"MAD {mad} has a user; its URL was shown once. --rotate gives it a new "
            "password, and the old one ends"
        )


def is_mads(user: User, mad: str) -> bool:
    """
    Whether it is the user that `mads add` makes for *mad*.
    """
    return user.channels == {wake_rule(mad)}


async def set_user(wire: Wire, name: str, password: str, rules: Sequence[str]) -> None:
    """
    Make the user anew, whatever it was before; its password does not travel.

    Raises:
        Failed: the server does not understand the rules.
        Forbidden: we may not.
    """
    digest = hashlib.sha256(password.encode()).hexdigest()
    try:
        await wire.call("ACL", "SETUSER", name, "reset", "on", f"#{digest}", *rules)
    except ResponseError as error:
        raise Failed(
            f"the server refuses the rules ({error}); they need Redis 7 or Valkey",
            USAGE,
        ) from error


async def end_user(wire: Wire, name: str) -> None:
    """
    Remove the user, if it is there; its connections are closed.
    """
    await wire.call("ACL", "DELUSER", name)


async def save_users(wire: Wire) -> bool:
    """
    Have the server write its users to its aclfile; whether it has one and did.
    """
    try:
        await wire.call("ACL", "SAVE")
    except (ResponseError, Forbidden):
        return False
    return True


async def weaknesses(wire: Wire) -> list[str]:
    """
    What has to be known of the users on this server, each with its remedy.
    """
    found = []
    if not await save_users(wire):
        found.append(
            "the server keeps its users in memory only, so a restart forgets this "
            "one: give it an aclfile, or run CONFIG REWRITE on it now"
        )
    default = await find_user(wire, "default")
    if default is not None and default.flags >= {"on", "nopass"}:
        found.append(
            "the user default needs no password, so anybody may do anything there: "
            "ACL SETUSER default off, once no part of yours uses it"
        )
    if await _has_followers(wire):
        found.append(
            "users are not replicated: give each replica the same, by the line that "
            "ACL LIST shows here, or a failover locks this MAD out"
        )
    return found


async def _has_followers(wire: Wire) -> bool:
    try:
        told = await wire.call("INFO", "replication")
    except (ResponseError, Forbidden, Unavailable):
        return False
    return b"connected_slaves:0" not in told


def _words(told: Any) -> frozenset[str]:
    """
    A list of words, or one text of them, as Redis 7 has it.
    """
    words = told.split() if isinstance(told, bytes) else told

    return frozenset(word.decode() for word in words)
