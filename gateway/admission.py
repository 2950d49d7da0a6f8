"""
Making hot what the tiers below hold, and knowing since when hot copies can be trusted.
"""

from collections.abc import Mapping
from datetime import datetime

from bus.errors import EverbusError
from bus.messages import Session
from bus.wire import Command, Wire
from gateway.below import Loaded
from gateway.clock import Now
from gateway.errors import check_fenced
from gateway.lookup import Era
from gateway.store import hot, names
from gateway.store.newborn import stays_ms


class Admission:
    """
    The way from the tiers below into one partition's hot tier, while *owner* owns it.
    """

    def __init__(self, wire: Wire, partition: int, owner: str, ttl_ms: int) -> None:
        self._wire = wire
        self._partition = partition
        self._owner = owner
        self._ttl_ms = ttl_ms

    async def era(self, now: Now, *, tiers: bool) -> Era:
        """
        Since when the hot tier has lost nothing, as far as the server can tell.

        It has from now on if it is empty, or if a replica was promoted, which may
        have lagged behind: then hot copies are compared with MongoDB once.

        Raises:
            WireFailed: the connection broke.
        """
        key = names.born(self._partition)
        told = await self._wire.call("INFO", "replication")
        was = await self._wire.call("GET", key)
        identity = _promoted_from(told.decode())
        known, _, since = (was or b"").decode().rpartition(":")
        if was is None or known != identity:
            since = str(now.ms)
            await self._wire.call("SET", key, f"{identity}:{since}")
        return Era(int(since), self._ttl_ms, tiers)

    async def admit(self, loaded: Mapping[str, Loaded], now: Now) -> dict[str, Loaded]:
        """
        Make hot what was *loaded*; returns what now is true of each session.

        A hot copy that is there all the same, and not older, is what counts.

        Raises:
            Superseded: the lane has another owner; nothing was admitted.
            WireFailed: the connection broke.
        """
        found = {s: read for s, read in loaded.items() if isinstance(read, Session)}
        copies = await hot.load(self._wire, self._partition, _doubtful(loaded))
        commands: list[Command] = []
        true = dict(loaded)
        for session_id, copied in copies.items():
            copy, session = copied.session, found.get(session_id)
            if copy is not None and (session is None or _age(copy) >= _age(session)):
                true[session_id] = copy
                commands.append(self._keep(session_id, now))
            elif session is not None:
                commands.append(self._admit(session, now))
        for reply in await self._wire.exchange(commands) if commands else ():
            check_fenced(reply)
        return true

    def _admit(self, session: Session, now: Now) -> Command:
        return hot.admit_command(
            self._partition,
            self._owner,
            session,
            stays_ms(session.id, now.ms, self._ttl_ms),
            checked_ms=now.ms,
            replace=True,
        )

    def _keep(self, session_id: str, now: Now) -> Command:
        return hot.keep_command(self._partition, self._owner, session_id, now.ms)


def _doubtful(loaded: Mapping[str, Loaded]) -> list[str]:
    """
    The sessions that were answered for: of these a hot copy may be there as well.
    """
    return [s for s, read in loaded.items() if not isinstance(read, EverbusError)]


def _age(session: Session) -> tuple[datetime, int, int, int]:
    return session.created_at, session.version, session.last_seq, session.notices


def _promoted_from(replication: str) -> str:
    """
    What server this one followed before it was promoted; zeros if none.
    """
    for line in replication.splitlines():
        name, _, value = line.partition(":")
        if name == "master_replid2":
            return value.strip()
    return ""
