"""
The SDK: the calls for authors of MADs.
"""

from collections.abc import Mapping
from typing import Any

from everbus.bus.arguments import check_optional_text, check_text
from everbus.bus.errors import Unavailable
from everbus.bus.history_calls import HistoryCalls
from everbus.bus.live_calls import LiveCalls
from everbus.bus.mad_calls import DEFAULT_TIMEOUT_S as DEFAULT_TIMEOUT_S
from everbus.bus.messages import CommandOutcome, Durability, Session, check_mad, unpack
from everbus.bus.requests import Delegation
from everbus.bus.session_calls import SessionCalls, session_in
from everbus.bus.timeline_calls import TimelineCalls
from everbus.bus.turn_calls import TurnCalls


class Mad(SessionCalls, TimelineCalls, TurnCalls, HistoryCalls, LiveCalls):
    """
    One instance of a MAD, connected to the bus; made by `connect`.

    Every call that waits is bounded by `timeout` seconds. Writes carry an id and
    a number, so repeating one, here or on the bus, never applies it twice. When
    a call ends in ReplyTimeout its effect is unknown until `outcome` is asked.

    Writes that wait take `command_id`, an id of your own of at most 80 letters, digits,
    `_`, `.` or `-`: a repetition of the same write under it, by any instance of this
    MAD, gets the first reply and changes nothing, for ten minutes; another write under
    it is Invalid. Repeat it after an error that passes (ReplyTimeout, Unavailable,
    Overloaded, Expired), which may be about an earlier attempt.

    Writes take `durability`: reply after the commit in Redis (`hot`), after its
    replicas have it, too (`replicated`), or after MongoDB has it (`warm`).
    """

    @property
    def waiting(self) -> int:
        """
        Number of commands that are not on the bus yet.
        """
        return self._requests.waiting

    @property
    def trouble(self) -> str:
        """
        Why no call can succeed now, for example for want of rights; empty while they
        can. For a readiness check of the MAD's own process.
        """
        return self._requests.trouble

    @property
    def broken(self) -> bool:
        """
        Whether no call can succeed any more, whatever the bus does: connect anew.
        """
        return self._requests.broken

    @property
    def grant(self) -> bytes:
        """
        The current grant, sealed by a manager; for programs with their own publisher.
        """
        return self._requests.grant

    @property
    def losses(self) -> int:
        """
        How often this instance lost its lease and had to join again.
        """
        return 0 if self._lease is None else self._lease.losses

    async def add_participant(
        self,
        session_id: str,
        mad: str,
        *,
        role: str = "",
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Make *mad* a participant; idempotent. If the ACL does not admit it, it gets the
        entry `participant:<mad>` there, for which the caller needs the right to share.

        Returns the session after the change.

        Raises:
            NotFound: there is no such session.
            Forbidden: the principal may not change it, or not share it.
            Invalid: *mad* is not a valid name, or the ACL is full.
        """
        check_optional_text(role=role)
        body = {"mad": check_mad(mad), "role": role}

        return session_in(
            await self._ask(
                "participant.add",
                session_id,
                body,
                timeout,
                command_id=command_id,
                durability=durability,
            )
        )

    async def remove_participant(
        self,
        session_id: str,
        mad: str,
        *,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Remove *mad* from the participants; idempotent. The access that adding it gave
        ends, and its watches with it; a MAD that leaves by itself keeps it.

        Returns the session after the change.
        """
        body = {"mad": check_mad(mad)}

        return session_in(
            await self._ask(
                "participant.remove",
                session_id,
                body,
                timeout,
                command_id=command_id,
                durability=durability,
            )
        )

    async def join(
        self,
        session_id: str,
        *,
        role: str = "",
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Make this MAD a participant; as `add_participant`.
        """
        return await self.add_participant(
            session_id,
            self.name,
            role=role,
            command_id=command_id,
            durability=durability,
            timeout=timeout,
        )

    async def leave(
        self,
        session_id: str,
        *,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Session:
        """
        Remove this MAD from the participants; as `remove_participant`.
        """
        return await self.remove_participant(
            session_id,
            self.name,
            command_id=command_id,
            durability=durability,
            timeout=timeout,
        )

    async def outcome(
        self, command_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> CommandOutcome:
        """
        Outcome of a command of this MAD, by the command's id; changes nothing.

        Exact for the ledger's horizon (10 minutes by default); a command that was
        rejected earlier is reported as applied. `unknown` after the bus lost writes:
        MongoDB does not have it either, if this instance sent it and got no reply.
        """
        outcome = await self._outcome_of("request.outcome", command_id, timeout)
        session = self._requests.session_of(command_id)
        # A refusal as `unavailable` may be about the second time it was sent.
        open_still = outcome.state == "unknown" or outcome.code == Unavailable.code
        if not session or not open_still:
            return outcome
        return await self._outcome_of("request.outcome", command_id, timeout, session)

    async def call(
        self,
        kind: str,
        session_id: str = "",
        body: Mapping[str, Any] | None = None,
        *,
        expected_version: int | None = None,
        command_id: str | None = None,
        durability: Durability = "hot",
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Any:
        """
        Send a command of any kind; return the value in its reply, without a type.

        For kinds that have no call of their own, such as those of a newer manager. The
        contract of the bus (docs/reference/asyncapi.yaml) has the kinds and bodies.

        Args:
            session_id: empty for kinds without a session.
            body: for a kind `request.…` only its `command_id` is sent.
            command_id: an id of your own, for a write of a session.

        Raises:
            EverbusError: the refusal in the reply, as the exception of its code.
        """
        fields = dict(body or {})
        if check_text(kind, "kind").startswith("request."):
            about = fields.get("command_id", "")
            reply = await self._requests.ask_about(kind, about, timeout)
        elif session_id:
            reply = await self._ask(
                *(kind, session_id, fields, timeout, expected_version),
                command_id=command_id,
                durability=durability,
            )
        else:
            reply = await self._requests.ask_anyone(kind, fields, timeout)

        return unpack(reply.body, Any)

    async def cancel(
        self, command_id: str, *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> CommandOutcome:
        """
        Cancel a command of this MAD, if it is not settled yet; idempotent.

        State `cancelled`: the command never takes effect. `applied` or `rejected`:
        too late, it was settled before. `unknown`: it has not arrived, or the ledger
        has forgotten it.
        """
        return await self._outcome_of("request.cancel", command_id, timeout)

    def acting(self, acting: Delegation) -> "Mad":
        """
        The same instance, for somebody else: for the edge, see `bus.requests`.
        """
        requests = self._requests.acting(acting._replace(instance=self.instance))

        return Mad(
            self.name,
            requests,
            instance=self.instance,
            lease=self._lease,
            address=self._address,
        )

    async def _outcome_of(
        self, kind: str, command_id: str, timeout: float, session_id: str = ""
    ) -> CommandOutcome:
        reply = await self._requests.ask_about(
            kind, command_id, timeout, session_id=session_id
        )
        outcome: CommandOutcome = unpack(reply.body, CommandOutcome)

        return outcome
