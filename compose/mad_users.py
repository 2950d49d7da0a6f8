"""
The Redis users of MADs: make, renew and end them, and warn of unsafe servers.

Each server of a bus has its own users, and a replica gets none from its primary. So a
MAD's user is made on every server: else a failover, or a slot that moves, locks it out.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from everbus.bus.bus_servers import BusServer
from everbus.bus.errors import AlreadyExists, Forbidden
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
        digests: of its passwords.
    """

    flags: frozenset[str]
    channels: frozenset[str]
    is_broad: bool = False
    digests: tuple[str, ...] = ()


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
        tuple(sorted(_words(fields.get(b"passwords", [])))),
    )


def is_user_of(user: User, mad: str) -> bool:
    """
    Whether `mads add` made this user for *mad*.
    """
    return user.channels == {wake_rule(mad)}


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


async def renew_user(
    wire: Wire, name: str, state: str, digests: Sequence[str], rules: Sequence[str]
) -> None:
    """
    Make the user with the passwords of *digests*, these rights and no others.

    Args:
        state: `on` or `off`.
    """
    passwords = [f"#{digest}" for digest in digests]
    await wire.call("ACL", "SETUSER", name, "reset", state, *passwords, *rules)
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
    return found


class UserOnBus:
    """
    The user of one MAD, on every server of the bus that answers.
    """

    def __init__(
        self, name: str, servers: Sequence[BusServer], users: Sequence[User | None]
    ) -> None:
        self._name = name
        self._servers = servers
        self._users = users

    @classmethod
    async def find(cls, name: str, servers: Sequence[BusServer]) -> "UserOnBus":
        """
        Look for the user on each of *servers*.

        Raises:
            Failed: a server has no ACLs.
            Forbidden: this connection may not read users.
        """
        users = [await find_user(one.wire, name) for one in servers]

        return cls(name, servers, users)

    @property
    def user(self) -> User | None:
        """
        The user, preferably a foreign one; None if no server has it.
        """
        known = [one for one in self._users if one is not None]
        foreign = [one for one in known if not is_user_of(one, self._name)]

        return next(iter((*foreign, *known)), None)

    @property
    def is_outdated(self) -> bool:
        """
        Whether a server lacks it, has other passwords or another state, or too broad
        rights.
        """
        logins = {
            None if one is None else ("on" in one.flags, one.digests)
            for one in self._users
        }
        return len(logins) > 1 or any(one and one.is_broad for one in self._users)

    async def make(self, password: str, rules: Sequence[str]) -> None:
        """
        Make or replace it on every server.

        Raises:
            Failed: a server does not understand the rules.
        """
        for one in self._servers:
            await set_user(one.wire, self._name, password, rules)

    async def renew(self, rules: Sequence[str]) -> None:
        """
        Give it these rights on every server, and make it where it is missing; the
        passwords of the first server that has it count, and off anywhere is off.
        """
        known = [one for one in self._users if one is not None]
        state = "off" if any("off" in one.flags for one in known) else "on"
        for one in self._servers:
            await renew_user(one.wire, self._name, state, known[0].digests, rules)

    async def end(self) -> list[str]:
        """
        Remove it from every server; returns the servers that keep users in no aclfile.
        """
        for one in self._servers:
            await end_user(one.wire, self._name)
        saved = [(one.address, await save_users(one.wire)) for one in self._servers]

        return [address for address, is_saved in saved if not is_saved]

    async def warnings(self) -> dict[str, list[str]]:
        """
        Warning → the servers that deserve it.
        """
        found: dict[str, list[str]] = {}
        for one in self._servers:
            for warning in await user_warnings(one.wire):
                found.setdefault(warning, []).append(one.address)
        return found


def _words(reply: Any) -> frozenset[str]:
    """
    The words of a reply: a list, or one text as in Redis 7.
    """
    words = reply.split() if isinstance(reply, bytes) else reply

    return frozenset(word.decode() for word in words)
