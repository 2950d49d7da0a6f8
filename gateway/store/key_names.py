"""
Keys that only replicas and the archiver may touch (DESIGN.md section 3).
"""

REPLICAS = "eb:replicas"
ARCHIVER_GROUP = "archiver"
# Hash: key id → wrapped data key, see `gateway.sealing`.
DATA_KEYS = "eb:data_keys"


def owner(partition: int | str) -> str:
    """
    The lane's owner, `<epoch>:<replica>`, with a TTL.
    """
    return f"eb:{{{partition}}}:owner"


def epoch(partition: int | str) -> str:
    """
    The last epoch given out; outlives every owner.
    """
    return f"eb:{{{partition}}}:epoch"


def session(partition: int, session_id: str) -> str:
    """
    The hot state of one session, a hash.
    """
    return f"eb:{{{partition}}}:session:{session_id}"


def recent(partition: int, session_id: str) -> str:
    """
    The newest timeline entries of one session, a list, oldest first.
    """
    return f"eb:{{{partition}}}:recent:{session_id}"


def tombstone(partition: int, session_id: str) -> str:
    """
    The tombstone of a hot copy: `deleted:…` until MongoDB knows of the deletion, or
    `elsewhere` for a session in a tier below; without it a young id would count as new.
    """
    return f"eb:{{{partition}}}:gone:{session_id}"


def lineage(partition: int) -> str:
    """
    Hash: the lineage of this partition's hot data, the server that it belongs to, and
    since when that has lost nothing.
    """
    return f"eb:{{{partition}}}:lineage"


def born(partition: int) -> str:
    """
    `<server's identity>:<ms>`, as managers that are older than lineages read it.
    """
    return f"eb:{{{partition}}}:born"


def ledger(partition: int, command: str) -> str:
    """
    The first reply to one command, a string with a TTL.

    *command* is `<mad>:<command id>`: a MAD that uses another one's command id
    must not be given that one's reply.
    """
    return f"eb:{{{partition}}}:ledger:{command}"


def publishers(partition: int) -> str:
    """
    Hash `<mad>:<instance>` → the window of its settled commands.
    """
    return f"eb:{{{partition}}}:publishers"


def outbox(partition: int) -> str:
    """
    The stream of what MongoDB must hold, one entry a commit.
    """
    return f"eb:{{{partition}}}:outbox"


def holder_of(owner: str) -> tuple[str, str]:
    """
    Name and incarnation of the replica, or archiver, in an owner value
    `<epoch>:<name>/<incarnation>`; both empty in an empty one.
    """
    name, _, incarnation = owner.partition(":")[2].rpartition("/")

    return name, incarnation


def backlog(partition: int) -> str:
    """
    How many outbox records the archiver has not confirmed yet.
    """
    return f"eb:{{{partition}}}:backlog"


def drainer(partition: int) -> str:
    """
    On a Redis Cluster: the archiver that may read this partition's outbox.
    """
    return f"eb:{{{partition}}}:drainer"


def dead(partition: int) -> str:
    """
    The stream of dead letters.
    """
    return f"eb:{{{partition}}}:dead"


def dead_index(partition: int) -> str:
    """
    Sorted set of the dead letters by MAD, oldest first; see commit.lua.
    """
    return f"{dead(partition)}:index"


def dead_bytes(partition: int) -> str:
    """
    Hash MAD → bytes of its dead letters.
    """
    return f"{dead(partition)}:bytes"


def attempts(partition: int) -> str:
    """
    Hash `<mad>/<entry>/<index>` → the replicas that tried a suspect alone.
    """
    return f"eb:{{{partition}}}:attempts"


def attached(partition: int) -> str:
    """
    Sorted set of attachments of MAD instances to sessions (`store.attachments`).
    """
    return f"eb:{{{partition}}}:attached"


def fences(partition: int) -> str:
    """
    Hash `<mad>:<instance>` → its highest ended epoch, and the time of its end.
    """
    return f"eb:{{{partition}}}:fences"


def trim_points(partition: int) -> str:
    """
    Hash MAD → the entry id below which its ingress is settled and may be trimmed.
    """
    return f"eb:{{{partition}}}:checkpoints"


def replication_mark(partition: int) -> str:
    """
    String, TTL: written behind a commit, for the replicas to have.
    """
    return f"eb:{{{partition}}}:replicated"
