"""
Key names of the bus.

`{p}` is the partition's hash tag, so that all keys of one commit lie in one slot. A MAD
knows only the keys in this file; keys that only a replica may touch are in
`gateway.store.key_names`.
"""

import zlib

CONFIG = "eb:config"
MADS = "eb:mads"
# A hint that lanes or MADs changed; losing it costs at most a second.
NEWS = "eb:news"
GROUP = "session-manager"
# The lane of heartbeats and leases; its name stands in place of a partition.
PRESENCE = "mads"
# The MAD name under which every edge publishes for its callers.
EDGE = "edge"
# The MAD name under which gateway and archiver publish: only they may write to its
# ingress, so its commands need no grant.
GATEWAY = "gateway"


def partition_of(session_id: str, partitions: int) -> int:
    """
    The partition of a session: CRC-32 (as in zlib) of its id modulo *partitions*.
    """
    return zlib.crc32(session_id.encode()) % partitions


def ingress(partition: int | str, mad: str) -> str:
    """
    Stream of the commands of *mad* in one partition; for PRESENCE, of its heartbeats.
    """
    return f"eb:{{{partition}}}:in:{mad}"


def reply(partition: int, mad: str, command_id: str, instance: str = "") -> str:
    """
    Stream of the one reply to one request.

    Several instances may use the same freely chosen id; each then has its own stream.
    """
    asked = f"{instance}:{command_id}" if instance else command_id

    return f"eb:{{{partition}}}:reply:{mad}:{asked}"


def wake(mad: str, instance: str) -> str:
    """
    Channel that notifies one MAD instance of its replies.
    """
    return f"eb:wake:{mad}:{instance}"


def token(mad: str) -> str:
    """
    Channel on which *mad* sends its token to the managers, once, for a grant.

    A channel, since its messages are stored nowhere: no stream, no AOF.
    """
    return f"eb:token:{mad}"
