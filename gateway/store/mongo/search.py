"""
Finding sessions in MongoDB, each way by an index.

Each question is plain conditions on fields, without `$or` and `$and`, for which some
servers read the whole collection; later pages are two questions.
"""

from datetime import datetime
from typing import get_args

from everbus.bus.messages import SessionPage, State, pack
from everbus.gateway.store.catalogue_query import (
    PageCursor,
    checked,
    cursor_of,
    place_in,
    place_of,
)
from everbus.gateway.store.mongo.documents import SESSIONS, SUMMARY, warm_session_of
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.operations import Document, Sort, Update, not_earlier
from everbus.gateway.store.read_bound import Meter, ReadBound
from everbus.gateway.store.search_words import WORDS_VERSION, words_of
from everbus.gateway.store.tiers import WarmCounts, WarmSession
from everbus.handlers.access_list import entries_admitting
from everbus.handlers.commands import ListSessions

_NEWEST: Sort = (("last_active", -1), ("_id", -1))
_OLDEST: Sort = (("last_active", 1), ("_id", 1))
_BY_ID: Sort = (("_id", 1),)


class Search:
    """
    Finds and counts sessions, in the order of their last activity.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def find(
        self,
        query: ListSessions,
        visible_to: str,
        tenant: str,
        bound: ReadBound | None = None,
    ) -> SessionPage:
        """
        Sessions that fit, latest activity first.

        Raises:
            Invalid: naming `cursor`, `limit` or `text`.
        """
        wanted = query.limit + 1
        full = _Full(bound)
        found: list[Document] = []
        for where in _conditions(query, visible_to, tenant):
            limit = wanted - len(found)
            found += await self._mongo.find(
                SESSIONS,
                where,
                SUMMARY,
                sort=_NEWEST,
                limit=limit,
                goes_on=full.goes_on,
            )
            if len(found) == wanted or full.reached:
                break
        # Tombstones have no last activity, so at most the end of the list has some.
        found = [document for document in found if "deleted_at" not in document]
        sessions = tuple(
            warm_session_of(document).session for document in found[: query.limit]
        )
        more = len(found) == wanted or full.reached

        return SessionPage(
            sessions, cursor_of(place_of(sessions[-1])) if more else None
        )

    async def every(self, after: str, limit: int) -> list[WarmSession]:
        """
        The sessions behind the id *after*, in ascending order of their ids.
        """
        found: list[WarmSession] = []
        while len(found) < limit:
            documents = await self._mongo.find(
                SESSIONS, {"_id": {"$gt": after}}, SUMMARY, sort=_BY_ID, limit=limit
            )
            found += [warm_session_of(one) for one in documents if _is_session(one)]
            if len(documents) < limit:
                break
            after = documents[-1]["_id"]
        return found[:limit]

    async def renew_words(self, limit: int) -> int:
        """
        Make the words of at most *limit* sessions anew, unless they change meanwhile:
        then their next state brings them.
        """
        older = {"words_version": None, "archival_status": "ACTIVE"}
        documents = await self._mongo.find(SESSIONS, older, SUMMARY, limit=limit)
        changes = [
            Update(
                {"_id": one["_id"], "version": one["version"], **older},
                {"$set": _words(one)},
            )
            for one in documents
            if _is_session(one)
        ]
        if changes:
            await self._mongo.bulk(SESSIONS, changes)
        return len(changes)

    async def explain(
        self, query: ListSessions, visible_to: str, tenant: str
    ) -> Document:
        """
        The winning plan of the (last) question that `find` asks.
        """
        where = _conditions(query, visible_to, tenant)[-1]
        explained = await self._mongo.explain(
            SESSIONS, where, sort=_NEWEST, limit=query.limit + 1
        )
        plan: Document = explained["queryPlanner"]["winningPlan"]

        return plan

    async def idle(
        self, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> list[WarmSession]:
        """
        Sessions last active earlier than *before*, no stubs, the longest idle first.
        """
        wheres = _spans(before, after)
        found: list[Document] = []
        for state in ("active", "dormant"):
            of_state: list[Document] = []
            for where in wheres:
                of_state += await self._mongo.find(
                    SESSIONS,
                    {"state": state, **where},
                    SUMMARY,
                    sort=_OLDEST,
                    limit=limit - len(of_state),
                )
                if len(of_state) >= limit:
                    break
            found += of_state
        found.sort(key=lambda document: (document["last_active"], document["_id"]))

        return [warm_session_of(document) for document in found[:limit]]

    async def counts(self) -> WarmCounts:
        """
        What there is; counts by the index of states, sums only what has an archive.
        """
        states = {state: await self._count(state) for state in get_args(State)}
        returned = {"$cond": [{"$eq": ["$archival_status", "ACTIVE"]}, 1, 0]}
        sums: Document = {
            "_id": None,
            "cold": {"$sum": "$cold_bytes"},
            "returned": {"$sum": returned},
        }
        archived = {"$match": {"s3_pointer": {"$gt": ""}}}
        found = await self._mongo.aggregate(SESSIONS, [archived, {"$group": sums}])

        return WarmCounts(
            states={state: count for state, count in states.items() if count},
            bytes=await self._mongo.size(),
            cold_bytes=sum(group["cold"] for group in found),
            returned=sum(group["returned"] for group in found),
        )

    async def _count(self, state: str) -> int:
        stages: list[Document] = [{"$match": {"state": state}}, {"$count": "sessions"}]
        found = await self._mongo.aggregate(SESSIONS, stages)

        return int(found[0]["sessions"]) if found else 0


class _Full:
    """
    Whether a page is full in bytes.
    """

    def __init__(self, bound: ReadBound | None) -> None:
        self.reached = False
        self._meter = None if bound is None else Meter(bound.most_bytes)

    def goes_on(self, document: Document) -> bool:
        """
        Add a document; whether there is room for another one.
        """
        if self._meter is None or "deleted_at" in document:
            return True
        size = len(pack(warm_session_of(document).session))
        self.reached = not self._meter.add(size)

        return not self.reached


def _spans(before: datetime, after: tuple[datetime, str] | None) -> list[Document]:
    """
    The times earlier than *before* and behind *after*, in order. Two plain questions
    instead of one with `$or`, for which some servers read the whole collection.
    """
    if after is None:
        return [{"last_active": {"$lt": before}}]
    at, behind = after
    same: list[Document] = [{"last_active": at, "_id": {"$gt": behind}}]
    rest = {"last_active": {"$gt": at, "$lt": before}}

    return [*(same if at < before else ()), rest]


def _conditions(query: ListSessions, visible_to: str, tenant: str) -> list[Document]:
    """
    What `find` asks, in order: on later pages first the rest of the sessions that
    were last active with the one before.
    """
    # Documents of no tenant have no such field: null finds what is not there.
    fits = {"tenant": tenant or None, **_fits(query, visible_to)}
    bounds: Document = {}
    if query.active_since is not None:
        bounds |= not_earlier(query.active_since)
    if query.active_before is not None:
        bounds["$lt"] = query.active_before
    if query.cursor is None:
        timed = {"last_active": bounds} if bounds else {}
        return [fits | timed]
    place = place_in(query.cursor)
    earlier = fits | {"last_active": bounds | {"$lt": _earliest(place, query)}}
    if not _within(place, query):
        return [earlier]
    same = fits | {"last_active": place.last_active, "_id": {"$lt": place.id}}

    return [same, earlier]


def _fits(query: ListSessions, visible_to: str) -> Document:
    words = checked(query)
    wanted: Document = {
        "owner_id": query.owner,
        "readers": _readers(visible_to) if visible_to else None,
        "participant_names": query.participant,
        "tags": query.tag,
        "state": query.state,
        # One word plainly: not every server uses an index for $all.
        "words": words[0] if len(words) == 1 else {"$all": words} if words else None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _readers(visible_to: str) -> str | Document:
    entries = entries_admitting(visible_to)

    return entries[0] if len(entries) == 1 else {"$in": list(entries)}


def _earliest(place: PageCursor, query: ListSessions) -> datetime:
    if query.active_before is None:
        return place.last_active
    return min(place.last_active, query.active_before)


def _within(place: PageCursor, query: ListSessions) -> bool:
    since, before = query.active_since, query.active_before

    return (since is None or place.last_active >= since) and (
        before is None or place.last_active < before
    )


def _is_session(document: Document) -> bool:
    """
    Whether a document is no tombstone, nor a claim of a session that is not held.
    """
    return "deleted_at" not in document and "version" in document


def _words(document: Document) -> Document:
    session = warm_session_of(document).session

    return {"words": words_of(session), "words_version": WORDS_VERSION}
