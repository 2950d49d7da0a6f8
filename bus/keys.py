"""
The bus's key names: who writes which key is told in DESIGN.md section 3.

`{p}` is the partition's hash tag, so that everything one commit touches lies
in one slot. A MAD knows only the keys in this file; the names of what only a
replica may touch are in `gateway.store.names`.
"""

import zlib

CONFIG = "eb:config"
MADS = "eb:mads"
# A hint that lanes or MADs changed; losing it costs at most a second.
NEWS = "eb:news"
GROUP = "session-manager"
# The lane of heartbeats and leases; it stands where others have their number.
PRESENCE = "mads"
# The MAD name under which every edge publishes, for whoever asks there.
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
    The stream on which *mad* publishes its commands of one partition; of PRESENCE,
    its heartbeats.
    """
    return f"eb:{{{partition}}}:in:{mad}"


def reply(partition: int, mad: str, command_id: str, instance: str = "") -> str:
    """
    The stream on which the one reply to one request appears.

    Under an id that was made freely several instances may ask; then each has its own.
    """
    asked = f"{instance}:{command_id}" if instance else command_id

    return f"eb:{{{partition}}}:reply:{mad}:{asked}"


def wake(mad: str, instance: str) -> str:
    """
    The channel that tells one MAD instance which of its replies are there.
    """
    return f"eb:wake:{mad}:{instance}"


def token(mad: str) -> str:
    """
    The channel on which *mad* shows its token to the managers, once, for a grant.

    A channel, since what is said on one is written nowhere: no stream, no AOF.
    """
    return f"eb:token:{mad}"
