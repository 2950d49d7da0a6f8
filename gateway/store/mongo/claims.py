"""
Claims of sessions in MongoDB, and the commands that a session brings along.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from everbus.bus.errors import Unavailable
from everbus.gateway.store.claims import (
    NO_LENGTH,
    Branch,
    Claim,
    Length,
    Settled,
    settled,
)
from everbus.gateway.store.mongo.deletions import Head, head_of
from everbus.gateway.store.mongo.documents import (
    EVENTS,
    NOTICES,
    PLACEHOLDER_S,
    SESSIONS,
    SUMMARY,
    TIMELINE,
    TOMBSTONE_DAYS,
    branch_fields,
    tombstone,
    warm_session_of,
)
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.operations import (
    Document,
    Insert,
    Operation,
    Update,
    counted,
)
from everbus.gateway.store.tiers import Claimed
from everbus.gateway.store.warm_roles import MOST_COMMANDS

# A placeholder is this much older than it says, so that it goes after PLACEHOLDER_S.
_KEPT_OF_PLACEHOLDERS = timedelta(days=TOMBSTONE_DAYS, seconds=-PLACEHOLDER_S)
# A claim loses its race to the archiver's writes of the same session, at most.
TRIES = 8
# Ids per look-up: SecantusDB compares each document with each id.
IDS_AT_ONCE = 100
# Collection, the field that numbers its documents, the field with the MAD.
_EFFECTS = (
    (TIMELINE, "seq", "author"),
    (EVENTS, "version", "mad"),
    (NOTICES, "notices", "mad"),
)


class Claims:
    """
    The claims of all sessions.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def claim(self, claims: Sequence[Claim]) -> dict[str, Claimed]:
        """
        Note the claims on their sessions' documents, of an unknown session on a
        tombstone of no generation, a placeholder that MongoDB removes after
        PLACEHOLDER_S.
        """
        left = list(claims)
        claimed: dict[str, Claimed] = {}
        for _ in range(TRIES):
            if not left:
                return claimed
            claimed |= await self._claim(left)
            left = [claim for claim in left if claim.session not in claimed]
        raise Unavailable("MongoDB: others write the same sessions; try again later")

    async def commands(
        self, session_id: str, generation: datetime, beyond: Length, since: datetime
    ) -> list[tuple[str, str]]:
        """
        MAD and command id of the newest effects behind *beyond*, from *since* on.
        """
        after = dict(zip(("version", "seq", "notices"), beyond[1:], strict=True))
        if beyond.generation != generation:
            after = dict.fromkeys(after, 0)
        effects: list[tuple[datetime, str, str]] = []
        for collection, count, mad in _EFFECTS:
            where = {"session": session_id, "life": generation}
            where |= {count: {"$gt": after[count]}}
            found = await self._mongo.find(
                collection,
                where,
                {mad: 1, "command": 1, "at": 1},
                sort=[(count, -1)],
                limit=MOST_COMMANDS,
            )
            effects += (
                (one["at"], one[mad], one["command"])
                for one in found
                if "command" in one and one["at"] >= since
            )
        effects.sort(reverse=True)

        return [(mad, command) for _, mad, command in effects[:MOST_COMMANDS]]

    async def _claim(self, claims: Sequence[Claim]) -> dict[str, Claimed]:
        """
        One attempt; claims that lost a race are left out.
        """
        documents = await self._documents([claim.session for claim in claims])
        claimed: dict[str, Claimed] = {}
        noting: dict[str, Operation] = {}
        for claim in claims:
            document = documents.get(claim.session)
            head = head_of(document) if document else None
            branch, length = (head.branch, head.length) if head else _UNHEARD_OF
            if branch.lineage > claim.lineage:
                claimed[claim.session] = Claimed(lineage=branch.lineage)
                continue
            end = settled(claim, branch, length)
            claimed[claim.session] = _claimed(claim, document, end)
            if end.branch is not None:
                noting[claim.session] = _noting(claim.session, head, end.branch)
        for session_id in await self._lost(noting):
            del claimed[session_id]

        return claimed

    async def _documents(self, session_ids: list[str]) -> dict[str, Document]:
        documents: dict[str, Document] = {}
        for first in range(0, len(session_ids), IDS_AT_ONCE):
            where = {"_id": {"$in": session_ids[first : first + IDS_AT_ONCE]}}
            found = await self._mongo.find(SESSIONS, where, SUMMARY)
            documents |= {document["_id"]: document for document in found}

        return documents

    async def _lost(self, noting: dict[str, Operation]) -> list[str]:
        """
        Run the operations; the sessions of which one may have found another document.

        A bulk tells how many matched, not which: then each is read once more, and a
        claim that is there already is a repeat.
        """
        if not noting:
            return []
        done = await self._mongo.bulk(SESSIONS, list(noting.values()))
        updates = sum(isinstance(one, Update) for one in noting.values())

        return list(noting) if done.taken or done.matched != updates else []


def _noting(session_id: str, head: Head | None, branch: Branch) -> Operation:
    """
    The operation that notes a claim, if the document is still as it was read.
    """
    if head is None:
        # The index counts from there.
        ended = datetime.now(UTC) - _KEPT_OF_PLACEHOLDERS
        return Insert(tombstone(session_id, NO_LENGTH.generation, ended, branch))
    return Update(_seen(session_id, head), {"$set": branch_fields(branch)})


_UNHEARD_OF = (Branch(), NO_LENGTH)


def _seen(session_id: str, head: Head) -> Document:
    seen: Document = {
        "_id": session_id,
        "created_at": head.generation,
        "lineage": counted(head.branch.lineage),
    }
    if head.ended:
        return seen
    counts = {"version": head.version, "last_seq": head.last_seq}

    return seen | counts | {"notices": counted(head.notices)}


def _claimed(claim: Claim, document: Document | None, end: Settled) -> Claimed:
    held = None
    if document is not None and "deleted_at" not in document:
        held = warm_session_of(document)

    return Claimed(
        lineage=claim.lineage,
        held=held,
        keeps_hot=end.keeps_hot,
        descends=end.descends,
        known=end.known,
    )
