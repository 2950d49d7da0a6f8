"""
The attachments of MAD instances to sessions: an index both ways, in one sorted set.

Members of equal score sort by their bytes, so all attachments of one instance, or of
one session, are a range.
"""

from everbus.bus.wire import Command
from everbus.gateway.store import key_names
from everbus.handlers.commands import Attachment

# Instances of one session beyond this number are ignored.
MAX_OF_SESSION = 1000


def of_session(partition: int, session: str) -> Command:
    """
    The command that reads the attachments of a session.
    """
    return _range(partition, f"s:{session}:", "", MAX_OF_SESSION)


def of_instance(
    partition: int, mad: str, instance: str, after: str, limit: int
) -> Command:
    """
    The command that reads the attachments of an instance, behind member *after*.
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
    key = key_names.attached(partition)

    return ("ZRANGEBYLEX", key, first, behind, "LIMIT", 0, limit)
