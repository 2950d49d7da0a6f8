"""
Redis ACL rules: the rights of each user of a bus, and no more.

Only this module makes the rules; `everbus acl` prints them and `everbus mads add`
sets them. They need Redis 7 or Valkey: a MAD's rights are selectors, so that it
cannot read what it publishes, nor delete what it only reads.
"""

from typing import Literal, get_args

from everbus.bus.errors import Invalid
from everbus.bus.keys import (
    CONFIG,
    EDGE,
    GATEWAY,
    NEWS,
    PRESENCE,
    ingress,
    reply,
    token,
    wake,
)
from everbus.bus.messages import check_mad
from everbus.gateway.identity.token_revocations import LIST
from everbus.gateway.store.key_names import owner

Role = Literal["manager", "archiver", "edge"]
ROLES: tuple[Role, ...] = get_args(Role)

# Names of the gateway's own processes, and of the user that exists on every server.
RESERVED = frozenset({GATEWAY, EDGE, "default"})

# Partitions of a bus that nobody configured.
PARTITIONS = 16

# First take all earlier rights away; passwords are not part of the rules.
_NOTHING = ("resetkeys", "resetchannels", "-@all", "clearselectors")
# redis-py names its connections, and closes one that it may not name.
# On a Cluster a client asks for the nodes, so that it outlives those in its URL.
_CONNECTING = ("+client|setname", "+ping", "+cluster|slots")
# All commands that cannot harm the server itself, on the keys of the bus.
_GATEWAYS = (
    "~eb:*",
    *("+@read", "+@write", "+@pubsub", "+@connection", "-@dangerous"),
    *("+evalsha", "+script|load", "+time", "+wait", "+info", "+config|get"),
    *("+cluster|slots", "+cluster|shards"),
)
# A rule must name a subscribed pattern literally. Only managers receive the tokens
# of MADs.
# A manager disables the user of a MAD that is above its quota, and tells of users that
# are missing on a server.
_USERS = (
    *("+acl|getuser", "+acl|setuser", "+acl|users"),
    *("+client|kill", "+client|list"),
)
_CHANNELS: dict[Role, tuple[str, ...]] = {
    "manager": (
        *("&eb:*", f"&{token('*')}"),
        *("&__keyspace@*__:eb:{mads}:lease:*", "&__keyevent@*__:expired"),
    ),
    "archiver": (f"&{wake('*', '*')}", f"&{NEWS}"),
}


def check_mad_user(mad: str) -> str:
    """
    *mad*, if it is a valid name for a MAD's user.

    Raises:
        Invalid: the name is malformed or reserved.
    """
    if check_mad(mad) in RESERVED:
        raise Invalid(f"{mad} is no name for a MAD; choose another", field="mad")
    return mad


def mad_rules(
    mad: str, *, database: int = 0, partitions: int = PARTITIONS
) -> tuple[str, ...]:
    """
    The rules of a MAD's user: the needs of a MAD as in bus/README.md.

    The server always allows AUTH, HELLO, QUIT and RESET to every user.

    Args:
        database: the number of the bus's database; unless 0, the MAD selects it.
        partitions: of the bus. Each ingress is named: a pattern would fit streams
            that no lane reads, and the MAD could fill the bus with them.

    Raises:
        Invalid: the name *mad* is malformed or reserved.
    """
    # Its own token channel and no other: a forged event must not be possible.
    showing = f"(+publish resetchannels &{token(check_mad_user(mad))})"

    return (*_publisher_rules(mad, database, partitions), showing)


def role_rules(
    role: Role, *, database: int = 0, partitions: int = PARTITIONS
) -> tuple[str, ...]:
    """
    The rules of a gateway process's user: all rights on the keys of the bus, no
    command that could harm the server, no other key. A manager also sets users, since
    it disables MADs above their quota; without that right it only reports them. An edge
    has the rights of a MAD: no key of a session, and no token channel, since it seals
    its own grants; beside them it reads the list of revoked tokens.
    """
    if role == "edge":
        # EXISTS of a lane's owner key is for its readiness check.
        return (
            *_publisher_rules(EDGE, database, partitions),
            f"(+exists ~{_of_any_partition(owner(0))})",
            f"(+hget +hgetall %R~{LIST})",
        )
    users = _USERS if role == "manager" else ()

    return (*_NOTHING, *_GATEWAYS, *users, *_CHANNELS[role])


def wake_rule(mad: str) -> str:
    """
    The rule for a MAD's wake channel; it also identifies the user as a MAD's.
    """
    return f"&{wake(mad, '*')}"


def _publisher_rules(name: str, database: int, partitions: int) -> tuple[str, ...]:
    """
    Rights to publish commands as *name* and to read their replies.
    """
    streams = (*range(partitions), PRESENCE)
    ingresses = " ".join(f"%W~{ingress(one, name)}" for one in streams)
    replies = _of_any_partition(reply(0, name, "*"))

    return (
        *_NOTHING,
        *_CONNECTING,
        *(("+select",) if database else ()),
        *("+hmget", f"%R~{CONFIG}"),
        *("+subscribe", wake_rule(name)),
        f"(+xadd {ingresses})",
        f"(+xread +unlink ~{replies})",
    )


def _of_any_partition(key: str) -> str:
    return key.replace("{0}", "{*}", 1)
