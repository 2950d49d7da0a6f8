"""
The Redis users of MADs: make, renew and end them, and warn of unsafe servers.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from everbus.bus.errors import AlreadyExists, Forbidden, Unavailable
from everbus.bus.wire import Wire
from everbus.compose.acl import wake_rule
from everbus.compose.exit_codes import USAGE, Failed

# Of rules made before each ingress was named.
_ANY_PARTITION = "eb:{*}:in:"


class User(NamedTuple):
    """
    The flags and channels of a Redis user.

    Attributes:
        is_broad: it may write streams of partitions that do not exist.
    """

    flags: frozenset[str]
    channels: frozenset[str]
    is_broad: bool = False


async def find_user(wire: Wire, name: str) -> User | None:
    """
    The user of that name; None if there is none.

    Raises:
        Failed: the server has no ACLs.
        Forbidden: this connection may not read users.
    """
    try:
        reply = await wire.call("ACL", "GETUSER", name)
    except ResponseError as error:
        raise Failed(
            f"the server has no ACLs of the needed form ({error}); use --no-acl, and "
            "know that every MAD may then do everything",
            USAGE,
        ) from error
    if reply is None:
        return None
    fields: dict[bytes, Any] = dict(zip(reply[::2], reply[1::2], strict=True))

    return User(
        _words(fields[b"flags"]),
        _words(fields[b"channels"]),
        _ANY_PARTITION in repr(fields.get(b"selectors")),
    )


def check_replaceable(user: User | None, mad: str, *, rotate: bool) -> None:
    """
    Check that a new user for *mad* replaces no user that must stay.

    Raises:
        AlreadyExists: a user of that name exists and must stay as it is.
    """
    if user is None:
        return
    if not is_user_of(user, mad):
        raise AlreadyExists(
            f"the server has a user {mad} that is no MAD's; choose another name"
        )
    if not rotate:
        raise AlreadyExists(
            f"MAD {mad} has a user; its URL was shown once. --rotate gives it a new "
            "password, and the old one ends"
        )


def is_user_of(user: User, mad: str) -> bool:
    """
    Whether `mads add` made this user for *mad*.
    """
    return user.channels == {wake_rule(mad)}


async def set_user(wire: Wire, name: str, password: str, rules: Sequence[str]) -> None:
    """
    Make the user, or replace it; only a hash of the password is sent.

    Raises:
        Failed: the server does not understand the rules.
        Forbidden: this connection may not set users.
    """
    digest = hashlib.sha256(password.encode()).hexdigest()
    try:
        await wire.call("ACL", "SETUSER", name, "reset", "on", f"#{digest}", *rules)
    except ResponseError as error:
        raise Failed(
            f"the server refuses the rules ({error}); they need Redis 7 or Valkey",
            USAGE,
        ) from error


async def renew_user(wire: Wire, name: str, rules: Sequence[str]) -> None:
    """
    Give the user these rights and no others; its passwords stay.
    """
    await wire.call("ACL", "SETUSER", name, *rules)
    await save_users(wire)


async def end_user(wire: Wire, name: str) -> None:
    """
    Remove the user, if it exists; the server closes its connections.
    """
    await wire.call("ACL", "DELUSER", name)


async def save_users(wire: Wire) -> bool:
    """
    Make the server save its users to its aclfile; False without an aclfile.
    """
    try:
        await wire.call("ACL", "SAVE")
    except (ResponseError, Forbidden):
        return False
    return True


async def user_warnings(wire: Wire) -> list[str]:
    """
    Warnings about the users of this server, each with its remedy.
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
            "the user default needs no password, so everybody has all rights: "
            "ACL SETUSER default off, once no process of yours uses it"
        )
    if await _has_followers(wire):
        found.append(
            "users are not replicated: copy the line of ACL LIST to each replica, or "
            "a failover locks this MAD out"
        )
    return found


async def _has_followers(wire: Wire) -> bool:
    try:
        reply = await wire.call("INFO", "replication")
    except (ResponseError, Forbidden, Unavailable):
        return False
    return b"connected_slaves:0" not in reply


def _words(reply: Any) -> frozenset[str]:
    """
    The words of a reply: a list, or one text as in Redis 7.
    """
    words = reply.split() if isinstance(reply, bytes) else reply

    return frozenset(word.decode() for word in words)
