"""
The words on the wire: envelope, reply, and the values that replies carry.

Everything here is an immutable value without I/O. The packing of these values
into stream entries is `bus.codec`; what a command means is `handlers`.
"""

import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, get_args

import msgspec

from bus.errors import Invalid

SCHEMA = 1
MAX_COMMAND_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_INTEGER = 2**53

State = Literal["active", "dormant", "archived"]
ArchivalStatus = Literal["ACTIVE", "S3"]
# When a write is replied to: after the commit in Redis; after its replicas have it,
# too; after MongoDB has it, acknowledged by majority and journal.
Durability = Literal["hot", "replicated", "warm"]
DURABILITIES: frozenset[str] = frozenset(get_args(Durability))

# Field names that were found sound: the same ones come again and again. Once it is
# full, others are looked at each time.
MAX_SOUND_KEYS = 4096
MAX_SOUND_KEY = 64
_sound_keys: set[object] = set()
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_COMMAND_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
_MAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_@.-]{0,63}")


class OnBehalf(msgspec.Struct, frozen=True, kw_only=True):
    """
    Who sent a command that the gateway publishes again, as it was judged then.

    Attributes:
        mad: the MAD on whose ingress it came first; the author of what it appends.
        principal: who asked.
        role: that principal's role.
        tenant: that principal's tenant.
    """

    mad: str
    principal: str
    role: str
    tenant: str = ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """
    One command as it travels; unknown fields are ignored, so it can grow.

    Attributes:
        v: schema number; a newer one than SCHEMA is refused.
        id: `<instance>.<partition>.<n>` for publishers that count their
            commands (the SDK), any other id of at most 80 characters else.
        kind: what to do, for example `session.update`.
        session: the session it is for; decides the partition.
        body: the kind's own fields, msgpack.
        expected_version: refuse unless the session has this version.
        deadline_ms: milliseconds after the arrival of the stream entry, on the
            server's clock, from which on the command must not be applied.
        grant: who asks, sealed by the gateway for this instance's commands, or by the
            edge for this one (see `gateway.identity.grants`); never a bearer token.
        reply: whether somebody waits for a reply.
        trace: W3C traceparent, or empty.
        durability: one of DURABILITIES; how safe a write is before its reply.
        epoch: of the instance's lease; 0 if it has none. A command of an epoch that
            was declared lost is refused as `superseded`.
        on_behalf: whose command the gateway publishes again; counts on the gateway's
            own ingress only.
        wake: the instance that waits for the reply, where the id does not tell it.
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
    What became of one command; the first reply is the only one there ever is.

    Attributes:
        id: the command's id.
        code: `ok`, or the code of a refusal (see `bus.errors`).
        message: empty if ok, else for people.
        details: empty if ok, else for programs.
        body: the result's fields, msgpack; nil if there is none.
        trace: W3C traceparent of the command, if it had one.
        fingerprint: of the command, where its id was made freely: another command
            under the same id is refused.
    """

    id: str
    code: str = "ok"
    message: str = ""
    details: dict[str, Any] = {}  # JSON values
    body: msgspec.Raw = msgspec.Raw(b"\xc0")
    trace: str = ""
    fingerprint: bytes = b""


class TimelineEntry(msgspec.Struct, frozen=True, gc=False):
    """
    One entry of a session's timeline.

    Attributes:
        seq: 1, 2, 3 … per session, in commit order, without gap or duplicate.
        at: when it was committed, on the bus server's clock.
        author: the MAD that published it.
        entry: what was appended; JSON-compatible.
    """

    seq: int
    at: datetime
    author: str
    entry: Any  # JSON value; pre-encoded bytes on the way out


class TimelinePage(msgspec.Struct, frozen=True):
    """
    Entries in ascending seq (descending if newest first was asked for).

    Attributes:
        next: the `after` of the next page (its `before`, if newest first); None at
            the end.
    """

    entries: tuple[TimelineEntry, ...]
    next: int | None = None


class Session(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """
    The forever conversation as its callers see it.

    Attributes:
        tenant: whose it is beside its owner's; nobody of another tenant reaches it.
        version: 1 at creation; rises by one per change of state.
        last_seq: seq of the newest timeline entry; 0 if there is none.
        notices: how many events there were that moved neither of these: broadcasts,
            checkpoints. version + last_seq + notices numbers the session's events.
        acl: principals beside the owner who may work with it.
        participants: MAD name → what is known of its part.
        tags: words to find it by, at most 32.
        fields: what the application adds; typed by `EVERBUS_SESSION_FIELDS`.
        context_bytes: an upper bound of the size of `full_context`.
        recent_timeline: the newest entries, at most 20, oldest first;
            filled by `get_session` only.
        full_context: the whole context, which only the warm tier holds; filled by
            `get_session(full=True)` only.
        archival_status: `S3` for a session that lies in the cold tier, which only
            `list_sessions` ever shows: whatever touches one brings it back.
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
    Sessions in the order that was asked for, and the cursor of the next page.

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
    One step of a session's version: who did what, and when.

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
        patch: the merge patch that leads from the one state to the other.
        changes: the steps between, in ascending version; the newest 1,000.
    """

    from_version: int
    to_version: int
    patch: dict[str, Any]  # JSON values
    changes: tuple[SessionChange, ...]


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """
    A named state of a session that it can be brought back to.

    Attributes:
        id: the id of the command that made it.
        version: the session's version when it was made.
        kind: `full`, or `incremental`: kept as a patch to *parent*.
        sha256: of the state's canonical form, hexadecimal; checked when it is used.
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
    What one tier holds; *cost* is per month, in the currency of the settings.
    """

    sessions: int
    bytes: int
    cost: float = 0.0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """
    Counts over all sessions, and what each tier holds.

    Attributes:
        states: state → sessions in it; `archived` are those in the cold tier.
        tiers: `hot`, `warm`, `cold` → what it holds.
    """

    sessions: int
    states: dict[str, int]
    tiers: dict[str, TierStats]


class CommandOutcome(msgspec.Struct, frozen=True):
    """
    What is known of a command by its id.

    Attributes:
        state: `applied`; `rejected` (then *code* says why); `cancelled` (by its
            sender; it never will be applied); `pending` (read by a replica, not
            settled); `unknown` (never arrived, or forgotten).
        code: the first reply's code, empty if none is kept.
        message: the first reply's message, empty if none is kept.
    """

    state: Literal["applied", "rejected", "cancelled", "pending", "unknown"]
    code: str = ""
    message: str = ""


def check_session_id(value: str) -> str:
    """
    *value*, if it is 1 to 64 letters, digits, `_`, `.` or `-`.

    Raises:
        Invalid: naming the field `session`.
    """
    return _matching(_SESSION_ID, "session", value)


def check_command_id(value: str) -> str:
    """
    *value*, if it is 1 to 80 letters, digits, `_`, `.` or `-`.

    Raises:
        Invalid: naming the field `id`.
    """
    return _matching(_COMMAND_ID, "id", value)


def check_mad(value: str) -> str:
    """
    *value*, if it can name a MAD: 1 to 64 letters, digits, `_` or `-`.

    No dots, since names of MADs become keys of documents in MongoDB.

    Raises:
        Invalid: naming the field `mad`.
    """
    return _matching(_MAD, "mad", value)


def check_name(value: str, field: str) -> str:
    """
    *value*, if it can name a user or another principal; else *field* is named.

    Raises:
        Invalid: the name is empty, over 64 characters or has other characters.
    """
    return _matching(_NAME, field, value)


def check_json(value: object, field: str) -> None:
    """
    Accept *value* if every store of ours can hold it unchanged.

    That is: null, booleans, integers within ±2^53, finite floats, text without
    lone surrogates, lists, and objects whose keys are text without NUL or `.`
    and do not begin with `$` (MongoDB reads those as operators and paths), at
    most MAX_DEPTH deep. Walks without recursion, so depth cannot exhaust it.

    Raises:
        Invalid: naming *field* and what is wrong with its value.
    """
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        # Plain text is most of what there is, and nothing can be wrong with it.
        level = [
            child
            for item in level
            for child in _children(item, field)
            if not (type(child) is str and child.isascii())
        ]
        if not level:
            return
    # What is left lies in MAX_DEPTH containers; an empty one counts as well.
    for item in level:
        if isinstance(item, dict | list | tuple):
            raise _invalid(field, f"is nested deeper than {MAX_DEPTH} levels")
        _children(item, field)


def _children(item: object, field: str) -> Iterable[object]:
    kind = type(item)
    if kind is str:
        return _check_text(item, field)
    if kind is dict:
        return _check_keys(item, field)  # type: ignore[arg-type]
    if kind is list or kind is tuple:
        return item  # type: ignore[return-value]
    if item is None or kind is bool:
        return ()
    if kind is int:
        return _check_integer(item, field)  # type: ignore[arg-type]
    if kind is float and math.isfinite(item):  # type: ignore[arg-type]
        return ()
    raise _invalid(field, f"holds {_shown(item)}, which JSON cannot carry")


def _check_text(item: object, field: str) -> Iterable[object]:
    try:
        str(item).encode()
    except UnicodeEncodeError as error:
        raise _invalid(field, "holds text that is not valid Unicode") from error
    return ()


def _check_integer(item: int, field: str) -> Iterable[object]:
    if -MAX_INTEGER <= item <= MAX_INTEGER:
        return ()
    raise _invalid(field, "holds an integer beyond ±2^53; send it as text")


def _check_keys(item: dict[object, object], field: str) -> Iterable[object]:
    if item.keys() <= _sound_keys:
        return item.values()
    for key in item:
        if type(key) is str and key.isidentifier() and key.isascii():
            continue
        if type(key) is not str:
            raise _invalid(field, f"has a key {_shown(key)} that is not text")
        if "\0" in key or "." in key or key.startswith("$"):
            raise _invalid(
                field, f"has the key {_shown(key)}; no NUL, '.' or leading $"
            )
        _check_text(key, field)
    if len(_sound_keys) + len(item) <= MAX_SOUND_KEYS:
        _sound_keys.update(key for key in item if len(str(key)) <= MAX_SOUND_KEY)
    return item.values()


def _matching(pattern: re.Pattern[str], field: str, value: object) -> str:
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    raise _invalid(field, f"is {_shown(value)}; wanted {pattern.pattern}")


def _invalid(field: str, what: str) -> Invalid:
    return Invalid(f"{field} {what}", field=field)


def _shown(value: object) -> str:
    return ascii(value)[:80]
