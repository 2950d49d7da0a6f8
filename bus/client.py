"""
The SDK: what a MAD's author calls.
"""

from bus.calls import DEFAULT_TIMEOUT_S as DEFAULT_TIMEOUT_S
from bus.calls import session_in
from bus.codec import unpack
from bus.history_calls import HistoryCalls
from bus.live_calls import LiveCalls
from bus.messages import CommandOutcome, Durability, Session, check_mad
from bus.requests import Acting
from bus.session_calls import SessionCalls
from bus.timeline_calls import TimelineCalls


class Mad(SessionCalls, TimelineCalls, HistoryCalls, LiveCalls):
    """
    One instance of a MAD, connected to the bus; made by `connect`.

    Every call that waits is bounded by `timeout` seconds. Writes carry an id and
    a number, so repeating one, here or on the bus, never applies it twice. When
    a call ends in ReplyTimeout its effect is unknown until `outcome` is asked.

    Writes take `durability`: reply after the commit in Redis (`hot`), after its
    replicas have it, too (`replicated`), or after MongoDB has it (`warm`).
    """

    @property
    def waiting(self) -> int:
        """
        How many commands are not on the bus yet.
        """
        return self._requests.waiting

    @property
    def grant(self) -> bytes:
        """
        Who asks, as a manager sealed it; for those who publish by themselves.
        """
        return self._requests.grant

    @property
    def losses(self) -> int:
        """
        How often this instance had to join anew, since it was unheard for too long.
        """
        return 0 if self._lease is None else self._lease.losses

    async def add_participant(
        self,
        session_id: str,
        mad: str,
        *,
        role: str = "",
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Let *mad* take part in the session; twice is the same as once.
        """
        body = {"mad": check_mad(mad), "role": role}

        return session_in(
            await self._ask(
                "participant.add", session_id, body, timeout, durability=durability
            )
        )

    async def remove_participant(
        self,
        session_id: str,
        mad: str,
        *,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        End the part of *mad* in the session; twice is the same as once.
        """
        body = {"mad": check_mad(mad)}

        return session_in(
            await self._ask(
                "participant.remove", session_id, body, timeout, durability=durability
            )
        )

    async def join(
        self,
        session_id: str,
        *,
        role: str = "",
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Take part in the session.
        """
        return await self.add_participant(
            session_id, self.name, role=role, durability=durability, timeout=timeout
        )

    async def leave(
        self,
        session_id: str,
        *,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Take part no longer.
        """
        return await self.remove_participant(
            session_id, self.name, durability=durability, timeout=timeout
        )

    async def outcome(
        self, command_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> CommandOutcome:
        """
        What became of a command of this MAD, by its id.

        Exact for the ledger's horizon (10 minutes by default); a command that
        was rejected earlier than that is told as applied.
        """
        return await self._told("request.outcome", command_id, timeout)

    async def cancel(
        self, command_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> CommandOutcome:
        """
        See to it that a command of this MAD is not applied any more, if it can be.

        The state is `cancelled` if it never will be, `applied` or `rejected` if
        it was settled before: then it is too late. `unknown`: it has not arrived,
        or was forgotten.
        """
        return await self._told("request.cancel", command_id, timeout)

    def acting(self, acting: Acting) -> "Mad":
        """
        The same instance, for somebody else: for the edge, see `bus.requests`.
        """
        requests = self._requests.acting(acting._replace(instance=self.instance))

        return Mad(self.name, requests, instance=self.instance, lease=self._lease)

    async def _told(self, kind: str, command_id: str, timeout: float) -> CommandOutcome:
        reply = await self._requests.ask_about(kind, command_id, timeout)
        outcome: CommandOutcome = unpack(reply.body, CommandOutcome)

        return outcome
