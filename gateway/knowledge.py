"""
What a lane knows: sessions, publishers, first replies.

All of it is true while the lane's epoch is, since nobody else writes any of it,
and each commit checks that this still holds.
"""

from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from bus.codec import ordinal_of, unpack
from bus.messages import CommandOutcome, Reply, Session
from gateway.delivery import CANCEL_KIND, OUTCOME_KIND, Work
from gateway.fencing import Fences
from gateway.progress import Progress

MAX_SESSIONS = 2_000
MAX_PUBLISHERS = 10_000
_ABOUT_COMMANDS = frozenset({OUTCOME_KIND, CANCEL_KIND})
_STATES = {"ok": "applied", "cancelled": "cancelled"}


class RequestOutcome(msgspec.Struct, frozen=True):
    """
    Body of `request.outcome` and `request.cancel`: the id of the command meant.
    """

    command_id: str


class Known(OrderedDict[str, Any]):
    """
    What was loaded or made, least recently used first, at most *limit* of it.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def shrink(self) -> None:
        """
        Forget the least recently used beyond the limit.
        """
        while len(self) > self._limit:
            self.popitem(last=False)


class Knowledge:
    """
    What was loaded of one partition, kept up to date by every judgement.

    Attributes:
        sessions: session id → Session, or None where there is none.
        progress: publisher → how far its commands are settled.
        firsts: `<mad>:<command id>` → first reply as loaded, or None.
        fences: publisher → which of its epochs are over, of those not seen yet.
        fresh_after: a session last written before may have left the hot tier.
    """

    def __init__(self) -> None:
        self.fresh_after = datetime.fromtimestamp(0, UTC)
        self.sessions: Known = Known(MAX_SESSIONS)
        self.progress: Known = Known(MAX_PUBLISHERS)
        self.firsts: dict[str, bytes | None] = {}
        self.fences: dict[str, Fences] = {}

    def forget(self) -> None:
        """
        Drop all that is known, because it may not be true any more.
        """
        self.sessions.clear()
        self.progress.clear()
        self.firsts.clear()

    def knows(self, session_id: str) -> bool:
        """
        Whether what is known of a session is surely still true.
        """
        if session_id not in self.sessions:
            return not session_id
        session: Session | None = self.sessions[session_id]
        if session is None:
            return True
        # A session that rests leaves the hot tier as soon as MongoDB holds it.
        return session.state == "active" and session.last_active > self.fresh_after

    def shrink(self, *, progress: bool) -> None:
        """
        Forget the least recently used, between batches only.
        """
        self.sessions.shrink()
        if progress:
            self.progress.shrink()

    def settled_before(self, work: Work) -> bool:
        """
        Whether an earlier delivery of the same command was settled.
        """
        if work.envelope is None:
            return False
        if work.ordinal is None:
            return self.firsts.get(work.command) is not None
        known: Progress | None = self.progress.get(work.publisher or "")
        return known is not None and known.settled(work.ordinal.n)

    def sight(self, work: Work) -> Progress | None:
        """
        The progress of the work's publisher, begun at this command if unknown.

        Must see a publisher's commands in their order: the first one decides
        which numbers count as gone.
        """
        if work.ordinal is None or work.publisher is None:
            return None
        known: Progress | None = self.progress.get(work.publisher)
        if known is None:
            known = Progress.starting_at(work.ordinal.n)
            known.fences = self.fences.get(work.publisher, ())
            self.progress[work.publisher] = known
        return known

    def outcome(
        self, mad: str, asked: str, kept: Mapping[str, bytes]
    ) -> CommandOutcome:
        command = f"{mad}:{asked}"
        first = kept.get(command) or self.firsts.get(command)
        if first is not None:
            reply = unpack(first, Reply)
            state = _STATES.get(reply.code, "rejected")
            return CommandOutcome(state, reply.code, reply.message)  # type: ignore[arg-type]
        ordinal = ordinal_of(asked)
        if ordinal is None:
            return CommandOutcome("unknown")
        known: Progress | None = self.progress.get(f"{mad}:{ordinal.instance}")
        if known is None or ordinal.n > known.mark:
            return CommandOutcome("unknown")
        return CommandOutcome("applied" if known.settled(ordinal.n) else "pending")


def asked_of(work: Work) -> str | None:
    """
    The command id that a `request.outcome` or `request.cancel` is about, else None.
    """
    envelope = work.envelope
    if envelope is None or envelope.kind not in _ABOUT_COMMANDS or work.trouble:
        return None
    try:
        return str(unpack(envelope.body, RequestOutcome).command_id)
    except msgspec.ValidationError:
        return None
