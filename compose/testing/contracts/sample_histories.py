"""
Records of whole sessions, as the gateway makes them: input for the checks.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from everbus.bus.messages import Session, TimelineEntry, pack
from everbus.gateway.store.hot_copy import Record
from everbus.handlers.history import difference, digest, state_of
from everbus.handlers.outcomes import Archived, Event, NewCheckpoint

BEGIN = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
MAD = "fiedler"


class SampleHistory:
    """
    One generation of one session: each method is a commit and returns its record.

    Time goes on by a second per commit.

    Attributes:
        session: as it is after the last commit.
        moves: how often it was archived or returned.
        commands: number of the last command.
    """

    def __init__(
        self,
        session_id: str,
        generation: datetime = BEGIN,
        owner: str = "ada",
        **fields: Any,
    ) -> None:
        self.session = Session(
            id=session_id,
            version=1,
            owner_id=owner,
            created_at=generation,
            last_active=generation,
            **fields,
        )
        self.moves = 0
        self.commands = 0

    @property
    def generation(self) -> datetime:
        return self.session.created_at

    def create(self) -> Record:
        """
        The session's first record.
        """
        first = state_of(self.session)

        return self._record(self._event("session.created", first), whole=True)

    def update(self, context: Any = ..., steps: int = 1, **fields: Any) -> Record:
        """
        Change *fields*, and the full context by a merge patch, in so many versions.
        """
        events = []
        for step in range(steps):
            changes = fields if step == steps - 1 else {}
            patch = self._changed(**changes)
            if context is not ... and step == 0:
                patch["full_context"] = context
            events.append(self._event("session.updated", patch))

        return self._record(*events, whole=True)

    def suspend(self) -> Record:
        """
        Let it rest.
        """
        patch = self._changed(state="dormant")

        return self._record(self._event("session.suspended", patch), whole=True)

    def append(self, *said: Any) -> Record:
        """
        Add entries; a session that rests is resumed.
        """
        events = []
        whole = self.session.state == "dormant"
        if whole:
            events.append(self._event("session.resumed", self._changed(state="active")))
        told, entries = self._said(said, "")
        record = self._record(*events, *told, whole=whole)

        return msgspec.structs.replace(record, entries=entries)

    def turn(self, turn: str, *said: Any, **fields: Any) -> Record:
        """
        Add entries and change *fields*, in one version.
        """
        told, entries = self._said(said, turn)
        end = self._event("session.turned", self._changed(**fields))
        # One command did all of it.
        events = [
            msgspec.structs.replace(one, command_id=end.command_id)
            for one in (*told, msgspec.structs.replace(end, turn=turn))
        ]
        record = self._record(*events, whole=True)

        return msgspec.structs.replace(record, entries=entries)

    def checkpoint(
        self, name: str, kind: Literal["full", "incremental"] = "full"
    ) -> Record:
        """
        Keep its present state.
        """
        event = self._noticed("checkpoint.created")
        state = state_of(self.session)
        new = NewCheckpoint(
            id=event.command_id,
            name=name,
            version=self.session.version,
            last_seq=self.session.last_seq,
            kind=kind,
            at=self.session.last_active,
            author=MAD,
            state=state,
            sha256=digest(state),
        )
        return msgspec.structs.replace(self._record(event), checkpoints=(new,))

    def broadcast(self, *messages: Any) -> Record:
        """
        Send a broadcast to the subscribers.
        """
        return self._record(
            *(
                msgspec.structs.replace(self._noticed("session.broadcast"), message=one)
                for one in messages
            )
        )

    def archive(self, pointer: str, size: int = 1000) -> Record:
        """
        Leave it to the cold tier.
        """
        archived = Archived(
            pointer=pointer,
            through=self.session.last_seq,
            bytes=size,
            moves=self.moves,
        )
        self.moves += 1
        record = self._record(self._event("session.archived", None))

        return msgspec.structs.replace(record, archived=archived)

    def delete(self) -> Record:
        """
        End it.
        """
        self._set(version=self.session.version + 1, last_active=self._later())
        record = self._record(self._event("session.deleted", None))

        return msgspec.structs.replace(record, deleted=True)

    def _said(
        self, said: tuple[Any, ...], turn: str
    ) -> tuple[list[Event], tuple[msgspec.Raw, ...]]:
        events, entries = [], []
        for entry in said:
            seq, at = self.session.last_seq + 1, self._later()
            self._set(last_seq=seq, last_active=at)
            packed = pack(TimelineEntry(seq, at, MAD, entry, turn))
            entries.append(msgspec.Raw(packed))
            events.append(
                msgspec.structs.replace(self._event("timeline.appended", None), at=None)
            )
        return events, tuple(entries)

    def _changed(self, **fields: Any) -> dict[str, Any]:
        before = state_of(self.session)
        at = self._later()
        self._set(version=self.session.version + 1, last_active=at, **fields)

        return difference(before, state_of(self.session))

    def _noticed(self, kind: str) -> Event:
        self._set(notices=self.session.notices + 1, last_active=self._later())

        return self._event(kind, None)

    def _event(self, kind: str, patch: dict[str, Any] | None) -> Event:
        self.commands += 1
        return Event(
            kind=kind,
            command_id=f"i{self.generation:%H%M%S}.0.{self.commands}",
            mad=MAD,
            principal="ada",
            version=self.session.version,
            seq=self.session.last_seq,
            notices=self.session.notices,
            at=self.session.last_active,
            patch=patch,
        )

    def _record(self, *events: Event, whole: bool = False) -> Record:
        session = self.session
        return Record(
            session=session.id,
            created_at=session.created_at,
            version=session.version,
            last_seq=session.last_seq,
            last_active=session.last_active,
            notices=session.notices,
            state=session if whole else None,
            events=events,
        )

    def _later(self) -> datetime:
        return self.session.last_active + timedelta(seconds=1)

    def _set(self, **fields: Any) -> None:
        self.session = msgspec.structs.replace(self.session, **fields)
