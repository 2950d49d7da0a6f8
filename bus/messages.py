"""
Messages on the wire: envelope, reply, and the values in replies.

Everything here is an immutable value without I/O; the meaning of commands is
`handlers`. Values are encoded with msgpack by msgspec; no pickle. A stream entry
carries one or more envelopes, each in a field `c`, in the order in which their
publisher issued them: one XADD is all or nothing, so a batch can never arrive with a
hole in it.
"""

import re
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from everbus.bus.arguments import MAX_DEPTH as MAX_DEPTH
from everbus.bus.arguments import MAX_INTEGER as MAX_INTEGER
from everbus.bus.arguments import check_json as check_json
from everbus.bus.arguments import invalid
from everbus.bus.errors import Invalid, Malformed, TooLarge
from everbus.bus.principal_names import check_name as check_name
from everbus.bus.quotation import quoted

SCHEMA = 1
MAX_COMMAND_BYTES = 256 * 1024
MAX_TOKEN_BYTES = 8 * 1024

State = Literal["active", "dormant", "archived"]
STATES: frozenset[str] = frozenset(get_args(State))
ArchivalStatus = Literal["ACTIVE", "S3"]
# When a write is replied to: after the commit in Redis; after its replicas have it,
# too; after MongoDB has it, acknowledged by majority and journal.
Durability = Literal["hot", "replicated", "warm"]
DURABILITIES: frozenset[str] = frozenset(get_args(Durability))

MAX_COMMAND_ID = 80
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_COMMAND_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_COMMAND_ID - 1}}}")
_MAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
COMMAND_FIELD = b"c"
REPLY_FIELD = b"r"


class OnBehalf(msgspec.Struct, frozen=True, kw_only=True):
    """
    Original sender of a command that the gateway publishes again.

    Attributes:
        mad: the MAD of the first ingress; author of the appended entries.
        principal: principal of the command.
        role: that principal's role.
        tenant: that principal's tenant.
    """

    mad: str
    principal: str
    role: str
    tenant: str = ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """
    One command on the wire; unknown fields are ignored, so it can grow.

    Attributes:
        v: schema number; a newer one than SCHEMA is refused.
        id: `<instance>.<partition>.<n>` for publishers that count their
            commands (the SDK), any other id of at most 80 characters else.
        kind: kind of the command, for example `session.update`.
        session: id of its session; decides the partition.
        body: the kind's own fields, msgpack.
        expected_version: refuse unless the session has this version.
        deadline_ms: milliseconds after the arrival of the stream entry, on the
            server's clock, from which on the command must not be applied.
        grant: the principal, sealed by the gateway for this instance's commands, or by
            the edge for this command (see `gateway.identity.grants`); never a bearer
            token.
        reply: whether the sender waits for a reply.
        trace: W3C traceparent, or empty.
        durability: one of DURABILITIES; how safe a write is before its reply.
        epoch: of the instance's lease; 0 if it has none. A command of an epoch that
            was declared lost is refused as `superseded`.
        on_behalf: original sender of a command that the gateway publishes again; valid
            on the gateway's own ingress only.
        wake: the instance that waits for the reply, if the id does not contain it.
    """

    v: int
    id: str
    kind: str
    session: str = ""
    body: msgspec.Raw = msgspec.Raw(b"\x80")
    expected_version: int | None = None
    deadline_ms: int | None = None
    grant: bytes = b""
    reply: bool = False
    trace: str = ""
    durability: str = "hot"
    epoch: int = 0
    on_behalf: OnBehalf | None = None
    wake: str = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """
    The outcome of one command; only the first reply ever exists.

    Attributes:
        id: the command's id.
        code: `ok`, or the code of a refusal (see `bus.errors`).
        message: text for people; empty if ok.
        details: fields for programs; empty if ok.
        body: the result's fields, msgpack; nil without a result.
        trace: W3C traceparent of the command, if it had one.
        fingerprint: hash of a command with a freely chosen id: another command under
            this id is refused.
    """

    id: str
    code: str = "ok"
    message: str = ""
    details: dict[str, Any] = {}  # JSON values
    body: msgspec.Raw = msgspec.Raw(b"\xc0")
    trace: str = ""
    fingerprint: bytes = b""


class TimelineEntry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """
    One entry of a session's timeline.

    Attributes:
        seq: 1, 2, 3 … per session, in commit order, without gap or duplicate.
        at: when it was committed, on the bus server's clock.
        author: the MAD that published it.
        entry: the appended value; JSON-compatible.
        turn: the turn that it was committed in; empty for an entry by itself. The
            entries of one turn follow each other, with one author and one time.
    """

    seq: int
    at: datetime
    author: str
    entry: Any  # JSON value; pre-encoded bytes on the way out
    turn: str = ""


class CommittedTurn(msgspec.Struct, frozen=True, kw_only=True):
    """
    A turn as it was committed.

    Attributes:
        turn: the id that its entries carry.
        version: the session's version after it.
        seqs: of its entries, ascending without gap.
    """

    turn: str
    version: int
    seqs: tuple[int, ...]


class TimelinePage(msgspec.Struct, frozen=True):
    """
    Entries in ascending seq (descending if newest first was asked for), at most about
    4 MiB of them. It may end within a turn.

    Attributes:
        next: the `after` of the next page (its `before`, if newest first); None at
            the end.
    """

    entries: tuple[TimelineEntry, ...]
    next: int | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """
    The forever conversation as callers see it.

    Attributes:
        tenant: tenant of the session; other tenants cannot reach it.
        version: 1 at creation; rises by one per change of state.
        last_seq: seq of the newest timeline entry; 0 if there is none.
        notices: number of events that moved neither of these: broadcasts, checkpoints.
            version + last_seq + notices numbers the session's events.
        acl: principals, beside the owner, with access to the session: `user:ada`,
            `mad:fiedler`, `host:fiedler` (may add participants), `participant:fiedler`
            (was added), or a plain name, which admits a user and a MAD of that name.
        participants: MAD name → `joined_at` and `role`.
        tags: search words, at most 32.
        fields: the application's own fields; typed by `EVERBUS_SESSION_FIELDS`.
        context_bytes: an upper bound of the size of `full_context`.
        recent_timeline: the newest entries, at most 20, oldest first;
            filled by `get_session` only.
        full_context: the full context, which only the warm tier holds; filled by
            `get_session(full=True)` only.
        archival_status: `S3` for a session in the cold tier; only `list_sessions` shows
            it, since any access brings the session back.
    """

    id: str
    version: int
    owner_id: str
    created_at: datetime
    last_active: datetime
    tenant: str = ""
    state: State = "active"
    last_seq: int = 0
    notices: int = 0
    acl: tuple[str, ...] = ()
    participants: dict[str, dict[str, Any]] = {}  # JSON values
    work_in_progress: dict[str, Any] = {}  # JSON values
    context_summary: dict[str, Any] = {}  # JSON values
    tags: tuple[str, ...] = ()
    fields: dict[str, Any] = {}  # JSON values
    context_bytes: int = 0
    recent_timeline: tuple[Any, ...] = ()  # TimelineEntry; encoded inside a replica
    full_context: dict[str, Any] | None = None  # JSON values
    archival_status: ArchivalStatus = "ACTIVE"


class SessionPage(msgspec.Struct, frozen=True):
    """
    Sessions in the requested order, and the cursor of the next page.

    The sessions are summaries: neither recent timeline nor full context.
    """

    sessions: tuple[Session, ...]
    next: str | None = None


class Durable(msgspec.Struct, frozen=True):
    """
    How much of a session MongoDB holds, acknowledged by majority and journal.
    """

    version: int
    seq: int


class SessionChange(msgspec.Struct, frozen=True, kw_only=True):
    """
    One step of a session's version, with author and time.

    Attributes:
        version: the session's version after it.
        seq: the timeline's last seq after it.
        patch: the merge patch (RFC 7396) from the state before to the one after.
    """

    version: int
    seq: int
    kind: str
    at: datetime
    mad: str
    principal: str
    command_id: str
    patch: dict[str, Any] = {}  # JSON values


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """
    What changed between two versions of a session.

    Attributes:
        patch: merge patch from the first state to the second.
        changes: the steps between, ascending version: the newest 1,000 that fit in
            4 MiB.
        next: the higher version of the next difference, with the earlier changes; None
            if there are none.
    """

    from_version: int
    to_version: int
    patch: dict[str, Any]  # JSON values
    changes: tuple[SessionChange, ...]
    next: int | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    A stored state of a session that can be restored.

    Attributes:
        id: id of the command that created it, or derived from it if it was chosen
            freely.
        version: the session's version at that time.
        kind: `full`, or `incremental`: kept as a patch to *parent*.
        sha256: hash of the state's canonical form, hexadecimal; checked before use.
    """

    id: str
    name: str
    version: int
    last_seq: int
    kind: Literal["full", "incremental"]
    at: datetime
    author: str
    sha256: str
    parent: str = ""


class CheckpointPage(msgspec.Struct, frozen=True):
    """
    Checkpoints, newest first, and the `before` of the next page (None: the end).
    """

    checkpoints: tuple[Checkpoint, ...]
    next: str | None = None


class TierStats(msgspec.Struct, frozen=True, kw_only=True):
    """
    Content of one tier; *cost* is per month, in the currency of the settings.
    """

    sessions: int
    bytes: int
    cost: float = 0.0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """
    Counts over all sessions, and content of each tier.

    Attributes:
        states: state → number of sessions; `archived` sessions are in the cold tier.
        tiers: `hot`, `warm`, `cold` → its content.
    """

    sessions: int
    states: dict[str, int]
    tiers: dict[str, TierStats]


class CommandOutcome(msgspec.Struct, frozen=True):
    """
    Outcome of a command, by its id.

    Attributes:
        state: `applied`; `rejected` (*code* says why); `cancelled` (by its sender,
            never applied); `pending` (read by a replica, not settled); `unknown` (never
            arrived, or forgotten).
        code: the first reply's code; empty if the reply is not kept.
        message: the first reply's message; empty if the reply is not kept.
    """

    state: Literal["applied", "rejected", "cancelled", "pending", "unknown"]
    code: str = ""
    message: str = ""


def check_session_id(value: str) -> str:
    """
    Return *value* if it has 1 to 64 letters, digits, `_`, `.` or `-`.

    Raises:
        Invalid: naming the field `session`.
    """
    return _matching(_SESSION_ID, "session", value)


def check_command_id(value: str) -> str:
    """
    Return *value* if it has 1 to 80 letters, digits, `_`, `.` or `-`.

    Raises:
        Invalid: naming the field `id`.
    """
    return _matching(_COMMAND_ID, "id", value)


def check_free_id(value: str, field: str = "id") -> str:
    """
    Return *value* if it is a command id that no publisher counts.

    Raises:
        Invalid: naming *field*.
    """
    if ordinal_of(_matching(_COMMAND_ID, field, value)) is None:
        return value
    raise invalid(
        field, f"{quoted(value)} is a publisher's number; choose an id without dots"
    )


def check_turn(value: str) -> str:
    """
    Return *value* if it is the id of a turn: as a command's id.

    Raises:
        Invalid: naming the field `turn`.
    """
    return _matching(_COMMAND_ID, "turn", value)


def check_mad(value: str) -> str:
    """
    Return *value* if it is a MAD's name: 1 to 64 letters, digits, `_` or `-`.

    No dots, since names of MADs become keys of documents in MongoDB.

    Raises:
        Invalid: naming the field `mad`.
    """
    return _matching(_MAD, "mad", value)


def _matching(pattern: re.Pattern[str], field: str, value: object) -> str:
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    raise invalid(field, f"is {quoted(value)}; wanted {pattern.pattern}")


def _plain(value: object) -> object:
    """
    The JSON value of a subclass that msgspec does not know, as `json.dumps` writes it.

    Raises:
        NotImplementedError: it is no text and no number.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise NotImplementedError(f"{type(value).__name__} is no JSON value")


pack = msgspec.msgpack.Encoder(enc_hook=_plain).encode
_envelope = msgspec.msgpack.Decoder(Envelope)
_reply = msgspec.msgpack.Decoder(Reply)
# So that a forged count stays a 64-bit number.
MAX_DIGITS = 18
_ORDINAL = re.compile(r"([^.]+)\.(0|[1-9][0-9]{0,17})\.([1-9][0-9]{0,17})")


class Ordinal(NamedTuple):
    """
    The place of a command in its publisher's count, read from its id.
    """

    instance: str
    partition: int
    n: int


def pack_envelope(envelope: Envelope) -> bytes:
    """
    Encode *envelope* for the wire.

    Raises:
        TooLarge: it exceeds MAX_COMMAND_BYTES.
    """
    packed = pack(envelope)
    if len(packed) > MAX_COMMAND_BYTES:
        raise TooLarge(
            f"command of {len(packed)} bytes; the limit is {MAX_COMMAND_BYTES}. "
            "Store large things elsewhere and append a reference",
            size=len(packed),
            limit=MAX_COMMAND_BYTES,
        )
    return packed


def unpack_envelope(packed: bytes) -> Envelope:
    """
    Decode an envelope.

    Raises:
        Malformed: too large, not msgpack, a wrong type, or a newer schema; the
            detail `cause` says which.
    """
    if len(packed) > MAX_COMMAND_BYTES:
        raise Malformed(
            f"command of {len(packed)} bytes; the limit is {MAX_COMMAND_BYTES}",
            cause="too_large",
        )
    try:
        envelope = _envelope.decode(packed)
    # RecursionError is how msgspec refuses a value nested too deep.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"not an envelope: {error}", cause="undecodable") from error
    if envelope.v > SCHEMA:
        raise Malformed(
            f"schema {envelope.v} is newer than {SCHEMA}; upgrade this replica",
            cause="newer_schema",
            command_id=envelope.id,
        )
    return envelope


def unpack_reply(packed: bytes) -> Reply:
    """
    Decode a reply.
    """
    return _reply.decode(packed)


def unpack(packed: bytes, kind: type[Any]) -> Any:
    """
    Decode a value of type *kind*.

    Raises:
        msgspec.ValidationError: another type, not msgpack, or nested too deep.
    """
    try:
        # mypy takes a type for unhashable.
        return _decoder(kind).decode(packed)  # type: ignore[arg-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if isinstance(error, msgspec.ValidationError):
            raise
        raise msgspec.ValidationError(f"not msgpack: {error}") from error


@lru_cache(maxsize=256)
def _decoder(kind: type[Any]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def unpack_body(packed: bytes, kind: type[Any]) -> Any:
    """
    Decode a command's body of type *kind*.

    Raises:
        Invalid: *packed* is not such a body; names the field.
    """
    try:
        return unpack(packed, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or "body"
        raise Invalid(f"{field}: {what}", field=field) from error


def command_id(instance: str, partition: int, n: int) -> str:
    """
    Id of the *n*-th command (from 1) of an instance in one partition.
    """
    return f"{instance}.{partition}.{n}"


def ordinal_of(identifier: str) -> Ordinal | None:
    """
    Ordinal in a command id; None for an id that the sender chose freely.

    No two ids have the same ordinal: `i.0.7` has one, `i.0.07` has none.
    """
    found = _ORDINAL.fullmatch(identifier)
    if found is None:
        return None
    return Ordinal(found[1], int(found[2]), int(found[3]))
