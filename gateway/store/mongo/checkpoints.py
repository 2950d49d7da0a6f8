"""
Checkpoints in MongoDB, numbered in sequence for each session.
"""

from datetime import datetime
from typing import Any

import msgspec

from everbus.bus.messages import Checkpoint, CheckpointPage
from everbus.gateway.store.catalogue_query import checkpoint_place
from everbus.gateway.store.mongo.documents import (
    CHECKPOINT_KEY,
    CHECKPOINT_PLACE,
    CHECKPOINTS,
    checkpoint_of,
)
from everbus.gateway.store.mongo.driver import Mongo
from everbus.gateway.store.mongo.operations import Document, Insert, LostRace
from everbus.gateway.store.record_effects import linked
from everbus.handlers.outcomes import NewCheckpoint
from everbus.handlers.patches import merge

State = dict[str, Any]  # JSON values


class Checkpoints:
    """
    The checkpoints of all sessions.
    """

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo

    async def keep(
        self, session: str, generation: datetime, new: NewCheckpoint, tenant: str = ""
    ) -> str:
        """
        Append *new* to the session's checkpoints; returns MongoDB's reason of a
        refusal, else empty. *tenant*: whose key seals it, see `Record.tenant`.

        Raises:
            LostRace: another checkpoint took its number.
        """
        where = {"session": session, "life": generation}
        if await self._mongo.look(CHECKPOINTS, {**where, "id": new.id}, limit=1):
            return ""
        newest = await self._mongo.look(CHECKPOINTS, where, sort=[("n", -1)], limit=1)
        document = {**where, **await self._linked(new, newest[0] if newest else None)}
        if tenant:
            document["tenant"] = tenant
        keys = (CHECKPOINT_KEY, CHECKPOINT_PLACE)
        done = await self._mongo.bulk(CHECKPOINTS, [Insert(document)], own=keys)
        if done.taken:
            raise LostRace

        return done.refused.get(0, "")

    async def page(
        self, session: str, generation: datetime, before: str | None, limit: int
    ) -> CheckpointPage:
        """
        Checkpoints, newest first.

        Raises:
            Invalid: *before* is not the `next` of a page.
        """
        where: Document = {"session": session, "life": generation}
        if before is not None:
            where["n"] = {"$lt": checkpoint_place(before)}
        newest = [("n", -1)]
        found = await self._mongo.find(
            CHECKPOINTS, where, {"kept": 0}, sort=newest, limit=limit + 1
        )
        page = found[:limit]
        more = str(page[-1]["n"]) if len(found) > limit and page else None

        return CheckpointPage(tuple(map(checkpoint_of, page)), more)

    async def get(
        self, session: str, generation: datetime, checkpoint_id: str
    ) -> tuple[Checkpoint, State] | None:
        """
        A checkpoint, and its state (full) or its patch to the parent's state.
        """
        where = {"session": session, "life": generation, "id": checkpoint_id}
        found = await self._mongo.find(CHECKPOINTS, where, limit=1)

        return (checkpoint_of(found[0]), found[0]["kept"]) if found else None

    async def _linked(self, new: NewCheckpoint, newest: Document | None) -> Document:
        """
        The fields of the document that keeps *new* behind *newest*.
        """
        parent = checkpoint_of(newest) if newest else None
        links = newest["links"] if newest else 0
        state = {}
        if newest is not None and new.kind == "incremental":
            state = await self._state(newest)
        checkpoint, kept = linked(new, parent, links, state)
        fields = msgspec.structs.asdict(checkpoint)
        behind = links + 1 if checkpoint.kind == "incremental" else 0
        place = newest["n"] + 1 if newest else 1

        return {**fields, "kept": kept, "n": place, "links": behind}

    async def _state(self, newest: Document) -> State:
        """
        The state of a checkpoint, from the full one at the beginning of its chain.
        """
        where = {"session": newest["session"], "life": newest["life"]}
        first = newest["n"] - newest["links"]
        chain = await self._mongo.look(
            CHECKPOINTS,
            {**where, "n": {"$gte": first, "$lte": newest["n"]}},
            {"kept": 1},
            sort=[("n", 1)],
        )
        state: State = {}
        for document in chain:
            state = merge(state, document["kept"])
        return state
