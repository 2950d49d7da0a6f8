"""
Redis ACL rules: what each user of a bus may do, and no more.

The one place where they are made; `everbus acl` prints them and `everbus mads add`
sets them. They need Redis 7 or Valkey: a MAD's rights are selectors, so that what
may be read cannot be deleted, and what may be published cannot be read.
"""

from typing import Literal, get_args

from bus.errors import Invalid
from bus.keys import CONFIG, EDGE, GATEWAY, NEWS, ingress, reply, token, wake
from bus.messages import check_mad
from gateway.store.names import owner

Role = Literal["manager", "archiver", "edge"]
ROLES: tuple[Role, ...] = get_args(Role)

# Names of the gateway's own processes, and of the user that every server has.
RESERVED = frozenset({GATEWAY, EDGE, "default"})

# From nothing, whatever the user could do before; passwords are not of the rules.
_NOTHING = ("resetkeys", "resetchannels", "-@all", "clearselectors")
# redis-py names its connections, and ends the connection if it may not.
_CONNECTING = ("+client|setname", "+ping")
# Everything that is no danger to the server itself, on the bus's own keys.
_GATEWAYS = (
    "~eb:*",
    *("+@read", "+@write", "+@pubsub", "+@connection", "-@dangerous"),
    *("+evalsha", "+script|load", "+time", "+wait", "+info", "+config|get"),
)
# Patterns that are listened to have to be told as they are. Only managers hear the
# tokens of MADs.
_CHANNELS: dict[Role, tuple[str, ...]] = {
    "manager": (
        *("&eb:*", f"&{token('*')}"),
        *("&__keyspace@*__:eb:{mads}:lease:*", "&__keyevent@*__:expired"),
    ),
    "archiver": (f"&{wake('*', '*')}", f"&{NEWS}"),
}


def check_mad_user(mad: str) -> str:
    """
    *mad*, if it can be the name of a MAD's user.

    Raises:
        Invalid: it is no name of a MAD, or reserved.
    """
    if check_mad(mad) in RESERVED:
        raise Invalid(f"{mad} is no name for a MAD; choose another", field="mad")
    return mad


def mad_rules(mad: str, *, database: int = 0) -> tuple[str, ...]:
    """
    The rules of a MAD's user: what bus/README.md says that a MAD needs.

    The server always allows AUTH, HELLO, QUIT and RESET, to everybody.

    Args:
        database: the bus's; the MAD must choose it, unless it is the first.

    Raises:
        Invalid: *mad* cannot be a name, or is reserved.
    """
    # Its own token channel and no other: a forged event must not be possible.
    showing = f"(+publish resetchannels &{token(check_mad_user(mad))})"

    return (*_speaking(mad, database), showing)


def role_rules(role: Role, *, database: int = 0) -> tuple[str, ...]:
    """
    The rules of a gateway process's user: everything on the bus's keys, and nothing
    that could harm the server or what else lies on it. The edge's are those of a MAD:
    no session's key, and no token to show, since it seals its own grants.
    """
    if role == "edge":
        # And whether lanes are served, which its readiness tells of.
        return (*_speaking(EDGE, database), f"(+exists ~{_of_any_partition(owner(0))})")
    return (*_NOTHING, *_GATEWAYS, *_CHANNELS[role])


def wake_rule(mad: str) -> str:
    """
    The rule by which a MAD hears of its replies; by it the users of MADs are known.
    """
    return f"&{wake(mad, '*')}"


def _speaking(name: str, database: int) -> tuple[str, ...]:
    """
    What whoever publishes commands as *name* needs, and their replies.
    """
    ingresses = _of_any_partition(ingress(0, name))
    replies = _of_any_partition(reply(0, name, "*"))

    return (
        *_NOTHING,
        *_CONNECTING,
        *(("+select",) if database else ()),
        *("+hmget", f"%R~{CONFIG}"),
        *("+subscribe", wake_rule(name)),
        f"(+xadd %W~{ingresses})",
        f"(+xread +unlink ~{replies})",
    )


def _of_any_partition(key: str) -> str:
    return key.replace("{0}", "{*}", 1)
