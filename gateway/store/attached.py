"""
Which MAD instances are in which sessions: an index both ways, in one sorted set.

Members of equal score are in the order of their bytes, so that all of one instance,
or all of one session, are a range.
"""

from bus.wire import Command
from gateway.store import names
from handlers.commands import Attachment

# More instances than that in one session are not looked at.
MAX_OF_SESSION = 1000


def of_session(partition: int, session: str) -> Command:
    """
    The command that reads who is attached to a session.
    """
    return _range(partition, f"s:{session}:", "", MAX_OF_SESSION)


def of_instance(
    partition: int, mad: str, instance: str, after: str, limit: int
) -> Command:
    """
    The command that reads what an instance is attached to, behind member *after*.
    """
    return _range(partition, f"i:{mad}:{instance}:", after, limit)


def attachment_in(member: bytes) -> Attachment:
    """
    The attachment that a member of the index stands for.
    """
    kind, *parts, epoch = member.decode().split(":")
    if kind == "i":
        mad, instance, session = parts
    else:
        session, mad, instance = parts
    return Attachment(mad, instance, session, int(epoch))


def _range(partition: int, prefix: str, after: str, limit: int) -> Command:
    # `;` is the character behind `:`, and no name has either.
    first = f"({after}" if after.startswith(prefix) else f"[{prefix}"
    behind = f"({prefix[:-1]};"
    key = names.attached(partition)

    return ("ZRANGEBYLEX", key, first, behind, "LIMIT", 0, limit)
