"""
Redriving a dead letter: the check that it can be sent once more, and its command.

The gateway publishes the command on behalf of its first sender, so the same policy
decides it again. Its id follows from the letter's, so that the ledger knows it.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from everbus.bus.errors import Expired, Invalid, TooLarge, Unauthenticated
from everbus.bus.keys import GATEWAY, partition_of
from everbus.bus.messages import (
    SCHEMA,
    Envelope,
    OnBehalf,
    check_json,
    pack,
    pack_envelope,
    unpack,
)
from everbus.gateway.lane.connection import UndecodableRecord
from everbus.gateway.lane.fencing import LOST_KIND, InstanceLost
from everbus.gateway.store.dead_letters import Buried, DeadLetter
from everbus.handlers.routes import HANDLERS, Route


class NotRedrivable(Invalid):
    """
    This letter's command cannot be sent once more; the message says why.
    """


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """
    Changes of a command before it is sent once more.

    Attributes:
        body: replaces the command's own; None leaves it.
        kind: replaces the command's own; empty leaves it.
    """

    body: dict[str, Any] | None = None  # JSON values
    kind: str = ""


UNCHANGED = Edit()


def redriven(
    buried: Buried,
    partitions: int,
    edit: Edit = UNCHANGED,
    routes: Mapping[str, Route] = HANDLERS,
) -> Envelope:
    """
    The command that stands for the letter's from now on.

    It has no deadline and no reply any more, and no lease's epoch.

    Raises:
        NotRedrivable: there is no command in the letter, or it must not be applied.
        Invalid: the edit does not fit the kind.
    """
    letter = buried.letter
    dead = _envelope_in(letter)
    kind = edit.kind or dead.kind
    _check_kind(kind, letter, routes)
    _check_place(dead, kind, buried, partitions, routes)
    body = dead.body if edit.body is None else _edited(kind, edit.body, routes)
    envelope = Envelope(
        v=SCHEMA,
        id=f"redriven-{buried.id}",
        kind=kind,
        session=dead.session,
        body=body,
        expected_version=dead.expected_version,
        trace=dead.trace,
        on_behalf=_on_behalf(letter),
    )
    try:
        pack_envelope(envelope)
    except TooLarge as error:
        raise NotRedrivable(error.message) from error
    return envelope


def _envelope_in(letter: DeadLetter) -> Envelope:
    dead = letter.envelope
    if dead is None:
        raise NotRedrivable("there is no command in it; drop it")
    if letter.cause == Expired.code:
        raise NotRedrivable("its sender wanted it applied in time or not at all")
    if letter.cause == UndecodableRecord.cause:
        raise NotRedrivable(
            "nobody can tell whether it was applied before; look at its session, and "
            "let its MAD send it anew if it is not there"
        )
    if letter.cause == Unauthenticated.code:
        raise NotRedrivable(
            "its grant was refused, so nobody knows who asked; its MAD has to send it "
            "again with a good one"
        )
    return dead


def _check_kind(kind: str, letter: DeadLetter, routes: Mapping[str, Route]) -> None:
    if kind == LOST_KIND and letter.mad == GATEWAY:
        return
    route = routes.get(kind)
    if route is None:
        raise NotRedrivable(
            f"the managers know no kind {kind[:64]!a}; upgrade, or give it another by "
            "--as-kind with --edit"
        )
    if not route.writes:
        raise NotRedrivable("it only reads, and nobody waits for the answer any more")


def _check_place(
    dead: Envelope,
    kind: str,
    buried: Buried,
    partitions: int,
    routes: Mapping[str, Route],
) -> None:
    """
    Check that its session is of the letter's partition: only that lane can apply it.
    """
    if kind not in routes:
        return
    if partition_of(dead.session, partitions) != buried.id.partition:
        raise NotRedrivable(
            f"its session {dead.session[:80]!a} is of another partition than the "
            "stream that it came on"
        )


def _edited(
    kind: str, body: dict[str, Any], routes: Mapping[str, Route]
) -> msgspec.Raw:
    """
    *body* packed, checked against the kind's type as in a lane.
    """
    type_ = routes[kind].body if kind in routes else InstanceLost
    known = type_.__struct_fields__
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise Invalid(
            f"{kind} has no field {unknown[0][:64]!a}; it has: {', '.join(known)}",
            field=unknown[0][:64],
        )
    check_json(body, "body")
    packed = pack(body)
    try:
        unpack(packed, type_)
    except msgspec.ValidationError as error:
        raise Invalid(f"body of {kind}: {error}", field="body") from error
    return msgspec.Raw(packed)


def _on_behalf(letter: DeadLetter) -> OnBehalf | None:
    """
    The sender, as the lane found out; None if that was the gateway itself.

    The command's own claim of a sender does not count: any MAD could have written it,
    and somebody's `redrive --all` would have made it true.
    """
    if letter.mad == GATEWAY:
        return None
    return OnBehalf(
        mad=letter.mad,
        principal=letter.principal or letter.mad,
        role=letter.role or "mad",
        tenant=letter.tenant,
    )
