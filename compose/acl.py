"""
Redis ACL rules: what each user of a bus may do, and no more.

The one place where they are made; `everbus acl` prints them and `everbus mads add`
sets them. They need Redis 7 or Valkey: a MAD's rights are selectors, so that what
may be read cannot be deleted, and what may be published cannot be read.
"""

from typing import Literal, get_args

from bus.errors import Invalid
from bus.keys import CONFIG, GATEWAY, ingress, reply, wake
from bus.messages import check_mad

Role = Literal["manager", "archiver"]
ROLES: tuple[Role, ...] = get_args(Role)

EDGE = "edge"
# Names of the gateway's own processes, and of the user that every server has.
RESERVED = frozenset({GATEWAY, EDGE, "default"})

# From nothing, whatever the user could do before; passwords are not of the rules.
_NOTHING = ("resetkeys", "resetchannels", "-@all", "clearselectors")
# redis-py names its connections, and ends the connection if it may not.
_CONNECTING = ("+client|setname", "+ping")
# Everything that is no danger to the server itself, on the bus's own keys.
_GATEWAYS = (
    *("~eb:*", "&eb:*"),
    *("+@read", "+@write", "+@pubsub", "+@connection", "-@dangerous"),
    *("+evalsha", "+script|load", "+time", "+wait", "+info", "+config|get"),
)
_LISTENING = ("&__keyspace@*__:eb:{mads}:lease:*", "&__keyevent@*__:expired")


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
    check_mad_user(mad)
    ingresses = _of_any_partition(ingress(0, mad))
    replies = _of_any_partition(reply(0, mad, "*"))

    return (
        *_NOTHING,
        *_CONNECTING,
        *(("+select",) if database else ()),
        *("+hmget", f"%R~{CONFIG}"),
        *("+subscribe", wake_rule(mad)),
        f"(+xadd %W~{ingresses})",
        f"(+xread +unlink ~{replies})",
    )


def role_rules(role: Role) -> tuple[str, ...]:
    """
    The rules of a gateway process's user: everything on the bus's keys, and nothing
    that could harm the server or what else lies on it.
    """
    listening = _LISTENING if role == "manager" else ()

    return (*_NOTHING, *_GATEWAYS, *listening)


def wake_rule(mad: str) -> str:
    """
    The rule by which a MAD hears of its replies; by it the users of MADs are known.
    """
    return f"&{wake(mad, '*')}"


def _of_any_partition(key: str) -> str:
    return key.replace("{0}", "{*}", 1)
