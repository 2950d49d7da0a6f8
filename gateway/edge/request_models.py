"""
Models of request bodies, queries and headers; an unknown field is refused by name.

So no client sets a version, an owner or a tenant by naming it. pydantic is used only
here, at the edge: the handlers check what the values mean.
"""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from everbus.bus.messages import MAX_INTEGER, Durability, State

SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
MAD = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
# As wide as a pattern can say it: `check_name` has the rule.
NAME = r"^[^\x00-\x20\x7f*{}]{1,255}$"
COMMAND_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"
CURSOR = r"^[\x21-\x7e]{1,1024}$"
VISIBLE = r"^[\x21-\x7e]{1,255}$"
MAX_PAGE = 1000
MAX_TIMEOUT_S = 60
TIMEOUT_S = 10.0

SessionId = Annotated[str, Path(pattern=SESSION_ID, description="The session.")]
MadName = Annotated[str, Path(pattern=MAD, description="The MAD.")]
CheckpointId = Annotated[str, Path(pattern=COMMAND_ID, description="The checkpoint.")]
Version = Annotated[int, Path(ge=1, le=MAX_INTEGER, description="From 1.")]
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE)]
Expected = Annotated[
    int | None,
    Field(
        ge=0,
        le=MAX_INTEGER,
        description="Refuse unless the session has this version; as If-Match.",
    ),
]
ExpectedLastSeq = Annotated[
    int | None,
    Field(
        ge=0,
        le=MAX_INTEGER,
        description="Refuse unless the session's newest entry has this seq.",
    ),
]


class Body(BaseModel):
    """
    A JSON object with exactly its fields, strictly typed.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Query(BaseModel):
    """
    Query parameters, converted to their fields' types; no others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class NewSession(Body):
    """
    A session to create.
    """

    user_id: str = Field(pattern=NAME, examples=["ada"], description="Its owner.")


class Patch(Body):
    """
    A JSON merge patch (RFC 7396).
    """

    patch: dict[str, Any] = Field(
        description="Over acl, context_summary, fields, full_context, tags and "
        "work_in_progress.",
        examples=[{"context_summary": {"topic": "tides"}}],
    )
    expected_version: Expected = None


class Condition(Body):
    """
    A condition on the session's version.
    """

    expected_version: Expected = None


class NewParticipant(Body):
    """
    A MAD that joins a session.
    """

    mad: str = Field(pattern=MAD, examples=["fiedler"])
    role: str = Field("", max_length=256, examples=["host"])


class NewEntry(Body):
    """
    An entry to append.
    """

    entry: Any = Field(
        description="Any JSON value, at most 32 levels deep.",
        examples=[{"role": "user", "text": "hello"}],
    )
    expected_last_seq: ExpectedLastSeq = None


class NewTurn(Body):
    """
    A turn to take: entries, a patch, or both.
    """

    entries: list[Any] = Field(
        [],
        description="JSON values, each at most 32 levels deep, in their order.",
        examples=[[{"role": "user", "text": "hello"}]],
    )
    patch: dict[str, Any] | None = Field(
        None,
        description="A JSON merge patch (RFC 7396), as of PATCH.",
        examples=[{"context_summary": {"topic": "tides"}}],
    )
    turn: str | None = Field(
        None,
        pattern=COMMAND_ID,
        description="Id of the turn, on each of its entries; else the command's.",
    )
    expected_version: Expected = None
    expected_last_seq: ExpectedLastSeq = None


class NewMessage(Body):
    """
    A message to broadcast.
    """

    message: Any = Field(
        description="Any JSON value of at most 64 KiB.", examples=[{"typing": True}]
    )


class CheckpointBody(Body):
    """
    A checkpoint to create.
    """

    name: str = Field(default="", max_length=64, examples=["before the storm"])
    kind: Literal["full", "incremental"] = "full"


class SessionQuery(Query):
    """
    Parts of a session to read.
    """

    full: bool = Field(False, description="With its full_context.")


class SessionFilters(Query):
    """
    Filters of sessions; all given ones must match.
    """

    owner: str | None = Field(None, pattern=NAME)
    participant: str | None = Field(None, pattern=MAD)
    state: State | None = None
    tag: str | None = Field(None, min_length=1, max_length=64)
    text: str | None = Field(
        None, min_length=1, max_length=256, description="Words in the session."
    )
    active_since: AwareDatetime | None = None
    active_before: AwareDatetime | None = None
    cursor: str | None = Field(
        None, pattern=CURSOR, description="`next` of the previous page."
    )
    limit: Limit = 100


class TimelineBounds(Query):
    """
    Bounds of timeline entries; all must hold.
    """

    after: int = Field(0, ge=0, le=MAX_INTEGER, description="After this seq.")
    before: int | None = Field(
        None, ge=0, le=MAX_INTEGER, description="Before this seq."
    )
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    newest_first: bool = False
    limit: Limit = 100


class CheckpointBounds(Query):
    """
    A page of checkpoints, newest first.
    """

    before: str | None = Field(
        None, pattern=CURSOR, description="`next` of the previous page."
    )
    limit: Limit = 100


class Between(Query):
    """
    Two versions to compare.
    """

    from_version: int = Field(ge=1, le=MAX_INTEGER)
    to_version: int = Field(ge=1, le=MAX_INTEGER)


class DeleteQuery(Query):
    """
    A condition on the version as a query parameter: DELETE has no body.
    """

    expected_version: Expected = None


class ReadHeaders(BaseModel):
    """
    Headers of a read: its deadline.
    """

    everbus_timeout: float = Field(
        TIMEOUT_S,
        gt=0,
        le=MAX_TIMEOUT_S,
        allow_inf_nan=False,
        description="Deadline of the answer, in seconds.",
    )


class WriteHeaders(ReadHeaders):
    """
    Headers of a write.
    """

    everbus_durability: Durability | None = Field(
        None, description="Durability of the write before its answer."
    )
    idempotency_key: str | None = Field(
        None,
        pattern=VISIBLE,
        description="The same for each repetition of a write, which is applied once.",
    )


class ConditionalHeaders(WriteHeaders):
    """
    Headers of a write with an optional condition on the version.
    """

    if_match: str | None = Field(
        None, max_length=64, description="The expected ETag of the session."
    )
