"""
Key names that only replicas and the archiver may touch (DESIGN.md section 3).
"""

REPLICAS = "eb:replicas"
ARCHIVER_GROUP = "archiver"


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


def gone(partition: int, session_id: str) -> str:
    """
    Why a session is not hot: `deleted:…` until MongoDB knows it as well, or
    `elsewhere`, so that a young id is not taken for a new one.
    """
    return f"eb:{{{partition}}}:gone:{session_id}"


def born(partition: int) -> str:
    """
    `<server's identity>:<ms>`: since when this partition has lost nothing.
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
    Hash `<mad>:<instance>` → how far its commands are settled.
    """
    return f"eb:{{{partition}}}:publishers"


def outbox(partition: int) -> str:
    """
    The stream of what MongoDB must hold, one entry a commit.
    """
    return f"eb:{{{partition}}}:outbox"


def holder_of(owner: str) -> tuple[str, str]:
    """
    The replica, or archiver, and its life in an owner value `<epoch>:<name>/<life>`;
    empty in an empty one.
    """
    name, _, life = owner.partition(":")[2].rpartition("/")

    return name, life


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


def attempts(partition: int) -> str:
    """
    Hash `<mad>/<entry>/<index>` → which replicas tried a suspect alone.
    """
    return f"eb:{{{partition}}}:attempts"


def attached(partition: int) -> str:
    """
    Sorted set: which MAD instances are in which sessions (`store.attached`).
    """
    return f"eb:{{{partition}}}:attached"


def fences(partition: int) -> str:
    """
    Hash `<mad>:<instance>` → which of its epochs are over, and since when.
    """
    return f"eb:{{{partition}}}:fences"


def checkpoints(partition: int) -> str:
    """
    Hash MAD → the entry id below which its ingress is wholly settled.
    """
    return f"eb:{{{partition}}}:checkpoints"
