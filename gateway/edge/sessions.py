"""
Sessions over HTTP: begin, find, read, change, end.
"""

from typing import Annotated, Any

import uuid_utils
from fastapi import APIRouter, Header, Query, Response

from bus.messages import Session
from gateway.edge import openapi
from gateway.edge.bodies import (
    Condition,
    DeleteQuery,
    MadName,
    NewMessage,
    NewParticipant,
    NewSession,
    Patch,
    SessionFilters,
    SessionId,
    SessionQuery,
)
from gateway.edge.conditional import is_known, tag_of
from gateway.edge.errands import (
    AConditionalWrite,
    ARead,
    AWrite,
    found,
    next_page,
    sources,
    told,
    told_session,
)
from gateway.edge.idempotency import Told, session_id_of
from gateway.edge.reception import Reception

router = APIRouter(route_class=Reception, tags=["sessions"])

_CHANGED = openapi.write(200, "Session", 404, 409, 412, headers=("ETag",))
IfNoneMatch = Annotated[
    str | None, Header(max_length=1024, description="ETags that you have.")
]


@router.post(
    "/sessions",
    status_code=201,
    response_model=None,
    responses=openapi.write(201, "Session", 409, headers=("ETag", "Location")),
    summary="Begin a session",
)
async def create_session(body: NewSession, writing: AWrite) -> Response:
    """
    Begin a session owned by `user_id`, at version 1.
    """
    chosen = str(uuid_utils.uuid7())
    if writing.key is not None:
        chosen = session_id_of(writing.principal, writing.key)

    def begun(session: Session, command_id: str) -> Told:
        location = f"/sessions/{session.id}"
        return told(session, 201, ETag=tag_of(session.version), Location=location)

    return await writing.made(
        lambda mad, how: mad.create_session(body.user_id, session_id=chosen, **how),
        begun,
    )


@router.get(
    "/sessions",
    response_model=None,
    responses=openapi.read("SessionPage", headers=("Link",)),
    summary="Find sessions",
)
async def list_sessions(
    filters: Annotated[SessionFilters, Query()],
    reading: ARead,
) -> Response:
    """
    Sessions that you may see, latest activity first; summaries, as MongoDB has them.
    """
    wanted: dict[str, Any] = filters.model_dump()
    answer = await reading.ask(
        lambda mad, timeout: mad.list_sessions(**wanted, timeout=timeout),
    )
    more = answer.value.next
    link = {} if more is None else next_page(reading.request, cursor=more)

    return found(answer, link)


@router.get(
    "/sessions/{session_id}",
    response_model=None,
    responses=openapi.read("Session", 404, headers=("ETag",)) | openapi.not_modified(),
    summary="Read a session",
)
async def get_session(
    session_id: SessionId,
    query: Annotated[SessionQuery, Query()],
    reading: ARead,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """
    A session with its recent timeline. Its ETag is its version, which appends do not
    move: whoever waits for entries reads the timeline.
    """
    answer = await reading.ask(
        lambda mad, timeout: mad.get_session(
            session_id, full=query.full, timeout=timeout
        ),
    )
    tag = {"ETag": tag_of(answer.value.version)}
    if is_known(if_none_match, answer.value.version):
        return Response(status_code=304, headers={**sources(answer), **tag})

    return found(answer, tag)


@router.patch(
    "/sessions/{session_id}",
    response_model=None,
    responses=_CHANGED,
    summary="Change a session",
)
async def update_session(
    session_id: SessionId, body: Patch, writing: AConditionalWrite
) -> Response:
    """
    Merge a patch into the state; the version rises by one.
    """
    version = writing.expected(body.expected_version)

    return await writing.made(
        lambda mad, how: mad.update_session(
            session_id, body.patch, expected_version=version, **how
        ),
        told_session,
        version,
    )


@router.delete(
    "/sessions/{session_id}",
    status_code=204,
    response_model=None,
    responses=openapi.write(204, "", 400, 404, 409, 412, body=False),
    summary="End a session",
)
async def delete_session(
    session_id: SessionId,
    query: Annotated[DeleteQuery, Query()],
    writing: AConditionalWrite,
) -> Response:
    """
    End the session for good.
    """
    version = writing.expected(query.expected_version)

    return await writing.made(
        lambda mad, how: mad.delete_session(
            session_id, expected_version=version, **how
        ),
        lambda nothing, command_id: Told(204, b"", {}),
        version,
    )


@router.post(
    "/sessions/{session_id}/suspend",
    response_model=None,
    responses=_CHANGED,
    summary="Let a session rest",
)
async def suspend_session(
    session_id: SessionId,
    writing: AConditionalWrite,
    body: Condition | None = None,
) -> Response:
    """
    Let the session rest until the next change; answered when MongoDB has it.
    """
    version = writing.expected(body.expected_version if body else None)

    return await writing.made(
        lambda mad, how: mad.suspend_session(
            session_id, expected_version=version, **how
        ),
        told_session,
        version,
    )


@router.post(
    "/sessions/{session_id}/resume",
    response_model=None,
    responses=_CHANGED,
    summary="Wake a session",
)
async def resume_session(
    session_id: SessionId,
    writing: AConditionalWrite,
    body: Condition | None = None,
) -> Response:
    """
    Wake a session that rests.
    """
    version = writing.expected(body.expected_version if body else None)

    return await writing.made(
        lambda mad, how: mad.resume_session(
            session_id, expected_version=version, **how
        ),
        told_session,
        version,
    )


@router.post(
    "/sessions/{session_id}/broadcast",
    response_model=None,
    responses=openapi.write(200, "Told", 404),
    summary="Tell something to all who watch",
)
async def broadcast(
    session_id: SessionId,
    body: NewMessage,
    writing: AWrite,
) -> Response:
    """
    Tell a message to all who watch the session; it is kept as an event.
    """
    return await writing.made(
        lambda mad, how: mad.broadcast(session_id, body.message, **how),
        lambda told_as, command_id: told({"command_id": command_id}),
    )


@router.post(
    "/sessions/{session_id}/participants",
    response_model=None,
    responses=openapi.write(200, "Session", 404, headers=("ETag",)),
    summary="Let a MAD take part",
)
async def add_participant(
    session_id: SessionId,
    body: NewParticipant,
    writing: AWrite,
) -> Response:
    """
    Let a MAD take part, and into the ACL; twice is the same as once.
    """
    return await writing.made(
        lambda mad, how: mad.add_participant(
            session_id, body.mad, role=body.role, **how
        ),
        told_session,
    )


@router.delete(
    "/sessions/{session_id}/participants/{mad}",
    response_model=None,
    responses=openapi.write(200, "Session", 404, body=False, headers=("ETag",)),
    summary="End a MAD's part",
)
async def remove_participant(
    session_id: SessionId,
    mad: MadName,
    writing: AWrite,
) -> Response:
    """
    End the part of a MAD; its place in the ACL stays.
    """
    return await writing.made(
        lambda client, how: client.remove_participant(session_id, mad, **how),
        told_session,
    )
