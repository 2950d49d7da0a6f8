"""
The indexes of the warm tier in MongoDB.
"""

from everbus.gateway.store.mongo.documents import (
    CHECKPOINT_KEY,
    CHECKPOINT_PLACE,
    CHECKPOINTS,
    ENTRY_KEY,
    EVENT_KEY,
    EVENTS,
    NOTICE_KEY,
    NOTICES,
    SESSIONS,
    SNAPSHOT_KEY,
    SNAPSHOTS,
    TIMELINE,
    TOMBSTONE_DAYS,
)
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.operations import Sort

_DAY_S = 86_400
_NEWEST: Sort = (("last_active", -1), ("_id", -1))

# Each way of finding sessions of a tenant, latest activity first. Words, of which a
# session may have many, are indexed without it: with the last activity beside them,
# each append would renew every key. A search for words sorts its matches instead.
_TENANT = ("tenant", 1)
FINDING: tuple[Sort, ...] = (
    (_TENANT, *_NEWEST),
    *(
        (_TENANT, (name, 1), *_NEWEST)
        for name in ("owner_id", "readers", "participant_names", "tags", "state")
    ),
    (_TENANT, ("words", 1)),
)
# What the archiver and the statistics look for, in the sessions of all tenants.
_OF_ALL: tuple[Sort, ...] = (_NEWEST, (("state", 1),))


async def make_indexes(mongo: Mongo) -> None:
    """
    Create missing indexes.
    """
    index = mongo.index
    for collection, key in (
        (TIMELINE, ENTRY_KEY),
        (EVENTS, EVENT_KEY),
        (NOTICES, NOTICE_KEY),
        (SNAPSHOTS, SNAPSHOT_KEY),
        (CHECKPOINTS, CHECKPOINT_KEY),
        (CHECKPOINTS, CHECKPOINT_PLACE),
    ):
        await index(collection, [(name, 1) for name in key], unique=True)
    by_time = [("session", 1), ("life", 1), ("at", 1), ("seq", 1)]
    await index(TIMELINE, by_time)
    for keys in (*FINDING, *_OF_ALL):
        await index(SESSIONS, keys)
    for mark in ("unpurged", "unrestored", "s3_pointer"):
        await index(SESSIONS, [(mark, 1)], sparse=True)
    kept_s = TOMBSTONE_DAYS * _DAY_S
    await index(SESSIONS, [("deleted_at", 1)], sparse=True, expireAfterSeconds=kept_s)
