"""
Finding sessions in MongoDB, each way by an index.

Each question is plain conditions on fields, without `$or` and `$and`, for which some
servers read the whole collection; later pages are two questions.
"""

from datetime import datetime
from typing import get_args

from bus.messages import SessionPage, State
from gateway.store.finding import Place, checked, cursor_of, place_in, place_of
from gateway.store.mongo.documents import SESSIONS, SUMMARY, held_of
from gateway.store.mongo.driver import Mongo
from gateway.store.mongo.operations import Document, Sort, not_earlier
from gateway.store.tiers import Held, WarmCounts
from handlers.commands import ListSessions

_NEWEST: Sort = (("last_active", -1), ("_id", -1))
_OLDEST: Sort = (("last_active", 1), ("_id", 1))


class Search:
    """
    Sessions by what they are, in the order of their last activity.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def find(
        self, query: ListSessions, visible_to: str, tenant: str
    ) -> SessionPage:
        """
        Sessions that fit, latest activity first.

        Raises:
            Invalid: naming `cursor`, `limit` or `text`.
        """
        wanted = query.limit + 1
        found: list[Document] = []
        for where in _conditions(query, visible_to, tenant):
            limit = wanted - len(found)
            found += await self._mongo.find(
                SESSIONS, where, SUMMARY, sort=_NEWEST, limit=limit
            )
            if len(found) == wanted:
                break
        # Tombstones have no last activity, so at most the end of the list has some.
        found = [document for document in found if "deleted_at" not in document]
        sessions = tuple(held_of(document).session for document in found[: query.limit])
        more = len(found) == wanted

        return SessionPage(
            sessions, cursor_of(place_of(sessions[-1])) if more else None
        )

    async def explain(
        self, query: ListSessions, visible_to: str, tenant: str
    ) -> Document:
        """
        The winning plan of the (last) question that `find` asks.
        """
        where = _conditions(query, visible_to, tenant)[-1]
        told = await self._mongo.explain(
            SESSIONS, where, sort=_NEWEST, limit=query.limit + 1
        )
        plan: Document = told["queryPlanner"]["winningPlan"]

        return plan

    async def idle(
        self, before: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> list[Held]:
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

        return [held_of(document) for document in found[:limit]]

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
        "readers": visible_to or None,
        "participant_names": query.participant,
        "tags": query.tag,
        "state": query.state,
        # One word plainly: not every server uses an index for $all.
        "words": words[0] if len(words) == 1 else {"$all": words} if words else None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _earliest(place: Place, query: ListSessions) -> datetime:
    if query.active_before is None:
        return place.last_active
    return min(place.last_active, query.active_before)


def _within(place: Place, query: ListSessions) -> bool:
    since, before = query.active_since, query.active_before

    return (since is None or place.last_active >= since) and (
        before is None or place.last_active < before
    )
