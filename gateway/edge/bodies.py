"""
What may be sent, field by field; anything beside it is refused by its name.

So nobody sets a version, an owner or a tenant by naming it. pydantic only here, at the
edge: what the values mean is judged where they are applied.
"""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from bus.messages import MAX_INTEGER, Durability, State

SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
MAD = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_@.-]{0,63}$"
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


class Body(BaseModel):
    """
    A JSON object that holds its fields, each of its type, and no others.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Query(BaseModel):
    """
    Query parameters: text that is read as its field's type, and no others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class NewSession(Body):
    """
    A session to begin.
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
    What has to be so.
    """

    expected_version: Expected = None


class NewParticipant(Body):
    """
    A MAD that is to take part.
    """

    mad: str = Field(pattern=MAD, examples=["fiedler"])
    role: str = Field("", max_length=256, examples=["host"])


class NewEntry(Body):
    """
    What is to be appended.
    """

    entry: Any = Field(
        description="Any JSON value, at most 32 levels deep.",
        examples=[{"role": "user", "text": "hello"}],
    )


class NewMessage(Body):
    """
    What is to be told to all who watch.
    """

    message: Any = Field(
        description="Any JSON value of at most 64 KiB.", examples=[{"typing": True}]
    )


class NewCheckpoint(Body):
    """
    A state to keep.
    """

    name: str = Field(default="", max_length=64, examples=["before the storm"])
    kind: Literal["full", "incremental"] = "full"


class SessionQuery(Query):
    """
    How much of a session.
    """

    full: bool = Field(False, description="With its full_context.")


class SessionFilters(Query):
    """
    Which sessions; all that is given has to hold.
    """

    owner: str | None = Field(None, pattern=NAME)
    participant: str | None = Field(None, pattern=MAD)
    state: State | None = None
    tag: str | None = Field(None, min_length=1, max_length=64)
    text: str | None = Field(
        None, min_length=1, max_length=256, description="Words that are in it."
    )
    active_since: AwareDatetime | None = None
    active_before: AwareDatetime | None = None
    cursor: str | None = Field(
        None, pattern=CURSOR, description="The `next` of the page before."
    )
    limit: Limit = 100


class TimelineBounds(Query):
    """
    Which entries: those within all bounds.
    """

    after: int = Field(0, ge=0, le=MAX_INTEGER, description="Behind this seq.")
    before: int | None = Field(
        None, ge=0, le=MAX_INTEGER, description="Ahead of this seq."
    )
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    newest_first: bool = False
    limit: Limit = 100


class CheckpointBounds(Query):
    """
    Which checkpoints, newest first.
    """

    before: str | None = Field(
        None, pattern=CURSOR, description="The `next` of the page before."
    )
    limit: Limit = 100


class Between(Query):
    """
    Two versions.
    """

    from_version: int = Field(ge=1, le=MAX_INTEGER)
    to_version: int = Field(ge=1, le=MAX_INTEGER)


class DeleteQuery(Query):
    """
    What has to be so, where a body is unusual.
    """

    expected_version: Expected = None


class ReadHeaders(BaseModel):
    """
    How long an answer may take.
    """

    everbus_timeout: float = Field(
        TIMEOUT_S,
        gt=0,
        le=MAX_TIMEOUT_S,
        allow_inf_nan=False,
        description="Seconds that the answer may take.",
    )


class WriteHeaders(ReadHeaders):
    """
    How a write is to be made.
    """

    everbus_durability: Durability | None = Field(
        None, description="How safe it is to be before the answer."
    )
    idempotency_key: str | None = Field(
        None,
        pattern=VISIBLE,
        description="The same for each repetition of one write: it takes effect once.",
    )


class ConditionalHeaders(WriteHeaders):
    """
    How a write is to be made, and on which version.
    """

    if_match: str | None = Field(
        None, max_length=64, description="The ETag that the session has to have."
    )
