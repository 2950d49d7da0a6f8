"""
Routes of sessions: create, find, read, change, end.
"""

from typing import Annotated, Any

import uuid_utils
from fastapi import APIRouter, Header, Query, Response

from everbus.bus.messages import Session
from everbus.gateway.edge import openapi
from everbus.gateway.edge.dependencies import (
    ConditionalWrite,
    Read,
    Write,
    json_answer,
    next_page,
    read_response,
    session_answer,
    source_headers,
)
from everbus.gateway.edge.etags import is_known, tag_of
from everbus.gateway.edge.idempotency import HttpAnswer, session_id_of
from everbus.gateway.edge.request_models import (
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
from everbus.gateway.edge.route import ApiRoute

router = APIRouter(route_class=ApiRoute, tags=["sessions"])

_CHANGED = openapi.write(200, "Session", 404, 409, 412, headers=("ETag",))
IfNoneMatch = Annotated[
    str | None, Header(max_length=1024, description="ETags of your copies.")
]


@router.post(
    "/sessions",
    status_code=201,
    response_model=None,
    responses=openapi.write(201, "Session", 409, headers=("ETag", "Location")),
    summary="Create a session",
)
async def create_session(body: NewSession, write_request: Write) -> Response:
    """
    Create a session owned by `user_id`, at version 1.
    """
    session_id = str(uuid_utils.uuid7())
    if write_request.key is not None:
        session_id = session_id_of(write_request.principal, write_request.key)

    def created(session: Session, command_id: str) -> HttpAnswer:
        location = f"/sessions/{session.id}"
        return json_answer(
            session, 201, ETag=tag_of(session.version), Location=location
        )

    return await write_request.run(
        lambda mad, options: mad.create_session(
            body.user_id, session_id=session_id, **options
        ),
        created,
    )


@router.get(
    "/sessions",
    response_model=None,
    responses=openapi.read("SessionPage", headers=("Link",)),
    summary="Find sessions",
)
async def list_sessions(
    filters: Annotated[SessionFilters, Query()],
    read_request: Read,
) -> Response:
    """
    Sessions visible to you, latest activity first; summaries from MongoDB.
    """
    wanted: dict[str, Any] = filters.model_dump()
    answer = await read_request.run(
        lambda mad, timeout: mad.list_sessions(**wanted, timeout=timeout),
    )
    more = answer.value.next
    link = {} if more is None else next_page(read_request.request, cursor=more)

    return read_response(answer, link)


@router.get(
    "/sessions/{session_id}",
    response_model=None,
    responses=openapi.read("Session", 404, headers=("ETag",)) | openapi.not_modified(),
    summary="Read a session",
)
async def get_session(
    session_id: SessionId,
    query: Annotated[SessionQuery, Query()],
    read_request: Read,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """
    A session with its recent timeline. Its ETag is its version, which appends do not
    change: read the timeline to see new entries.
    """
    answer = await read_request.run(
        lambda mad, timeout: mad.get_session(
            session_id, full=query.full, timeout=timeout
        ),
    )
    tag = {"ETag": tag_of(answer.value.version)}
    if is_known(if_none_match, answer.value.version):
        return Response(status_code=304, headers={**source_headers(answer), **tag})

    return read_response(answer, tag)


@router.patch(
    "/sessions/{session_id}",
    response_model=None,
    responses=_CHANGED,
    summary="Change a session",
)
async def update_session(
    session_id: SessionId, body: Patch, write_request: ConditionalWrite
) -> Response:
    """
    Merge a patch into the state; the version rises by one.
    """
    version = write_request.expected(body.expected_version)

    return await write_request.run(
        lambda mad, options: mad.update_session(
            session_id, body.patch, expected_version=version, **options
        ),
        session_answer,
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
    write_request: ConditionalWrite,
) -> Response:
    """
    End the session for good.
    """
    version = write_request.expected(query.expected_version)

    return await write_request.run(
        lambda mad, options: mad.delete_session(
            session_id, expected_version=version, **options
        ),
        lambda nothing, command_id: HttpAnswer(204, b"", {}),
        version,
    )


@router.post(
    "/sessions/{session_id}/suspend",
    response_model=None,
    responses=_CHANGED,
    summary="Suspend a session",
)
async def suspend_session(
    session_id: SessionId,
    write_request: ConditionalWrite,
    body: Condition | None = None,
) -> Response:
    """
    Suspend the session until the next change; answered when MongoDB has it.
    """
    version = write_request.expected(body.expected_version if body else None)

    return await write_request.run(
        lambda mad, options: mad.suspend_session(
            session_id, expected_version=version, **options
        ),
        session_answer,
        version,
    )


@router.post(
    "/sessions/{session_id}/resume",
    response_model=None,
    responses=_CHANGED,
    summary="Resume a session",
)
async def resume_session(
    session_id: SessionId,
    write_request: ConditionalWrite,
    body: Condition | None = None,
) -> Response:
    """
    Resume a suspended session.
    """
    version = write_request.expected(body.expected_version if body else None)

    return await write_request.run(
        lambda mad, options: mad.resume_session(
            session_id, expected_version=version, **options
        ),
        session_answer,
        version,
    )


@router.post(
    "/sessions/{session_id}/broadcast",
    response_model=None,
    responses=openapi.write(200, "Told", 404),
    summary="Broadcast a message",
)
async def broadcast(
    session_id: SessionId,
    body: NewMessage,
    write_request: Write,
) -> Response:
    """
    Send a message to all subscribers of the session; it is kept as an event.
    """
    return await write_request.run(
        lambda mad, options: mad.broadcast(session_id, body.message, **options),
        lambda told_as, command_id: json_answer({"command_id": command_id}),
    )


@router.post(
    "/sessions/{session_id}/participants",
    response_model=None,
    responses=openapi.write(200, "Session", 404, headers=("ETag",)),
    summary="Add a participant",
)
async def add_participant(
    session_id: SessionId,
    body: NewParticipant,
    write_request: Write,
) -> Response:
    """
    Make a MAD a participant; idempotent. If the ACL does not admit it, it gets an
    entry there, for which you need the right to share.
    """
    return await write_request.run(
        lambda mad, options: mad.add_participant(
            session_id, body.mad, role=body.role, **options
        ),
        session_answer,
    )


@router.delete(
    "/sessions/{session_id}/participants/{mad}",
    response_model=None,
    responses=openapi.write(200, "Session", 404, body=False, headers=("ETag",)),
    summary="Remove a participant",
)
async def remove_participant(
    session_id: SessionId,
    mad: MadName,
    write_request: Write,
) -> Response:
    """
    Remove a MAD from the participants; the access that adding it gave ends.
    """
    return await write_request.run(
        lambda client, options: client.remove_participant(session_id, mad, **options),
        session_answer,
    )
