"""
A session's past over HTTP: checkpoints, versions, and what changed between them.
"""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from gateway.edge import openapi
from gateway.edge.bodies import (
    Between,
    CheckpointBounds,
    CheckpointId,
    Condition,
    NewCheckpoint,
    SessionId,
    Version,
)
from gateway.edge.conditional import tag_of
from gateway.edge.errands import (
    AConditionalWrite,
    ARead,
    AWrite,
    found,
    next_page,
    told,
    told_session,
)
from gateway.edge.reception import Reception

router = APIRouter(route_class=Reception, tags=["history"])


@router.post(
    "/sessions/{session_id}/checkpoints",
    status_code=201,
    response_model=None,
    responses=openapi.write(201, "Checkpoint", 404),
    summary="Keep the present state",
)
async def create_checkpoint(
    session_id: SessionId,
    writing: AWrite,
    body: NewCheckpoint | None = None,
) -> Response:
    """
    Keep the present state under a name; the version does not move.
    """
    wanted = body or NewCheckpoint()

    return await writing.made(
        lambda mad, how: mad.create_checkpoint(
            session_id, name=wanted.name, kind=wanted.kind, **how
        ),
        lambda checkpoint, command_id: told(checkpoint, 201),
    )


@router.get(
    "/sessions/{session_id}/checkpoints",
    response_model=None,
    responses=openapi.read("CheckpointPage", 404, headers=("Link",)),
    summary="List checkpoints",
)
async def list_checkpoints(
    session_id: SessionId,
    bounds: Annotated[CheckpointBounds, Query()],
    reading: ARead,
) -> Response:
    """
    The session's checkpoints, newest first.
    """
    answer = await reading.ask(
        lambda mad, timeout: mad.checkpoints(
            session_id, before=bounds.before, limit=bounds.limit, timeout=timeout
        ),
    )
    more = answer.value.next
    link = {} if more is None else next_page(reading.request, before=more)

    return found(answer, link)


@router.post(
    "/sessions/{session_id}/checkpoints/{checkpoint_id}/restore",
    response_model=None,
    responses=openapi.write(200, "Session", 404, 409, 412, headers=("ETag",)),
    summary="Bring a state back",
)
async def restore_checkpoint(
    session_id: SessionId,
    checkpoint_id: CheckpointId,
    writing: AConditionalWrite,
    body: Condition | None = None,
) -> Response:
    """
    Bring summary, work in progress, tags and fields back, as a new version.
    """
    version = writing.expected(body.expected_version if body else None)

    return await writing.made(
        lambda mad, how: mad.restore_checkpoint(
            session_id, checkpoint_id, expected_version=version, **how
        ),
        told_session,
        version,
    )


@router.get(
    "/sessions/{session_id}/versions/{version}",
    response_model=None,
    responses=openapi.read("Session", 404, headers=("ETag",)),
    summary="Read an earlier version",
)
async def session_at(
    session_id: SessionId,
    version: Version,
    reading: ARead,
) -> Response:
    """
    The session's state as it was at a version, without its timeline.
    """
    answer = await reading.ask(
        lambda mad, timeout: mad.session_at(session_id, version, timeout=timeout),
    )

    return found(answer, {"ETag": tag_of(answer.value.version)})


@router.get(
    "/sessions/{session_id}/diff",
    response_model=None,
    responses=openapi.read("Difference", 404),
    summary="Compare two versions",
)
async def diff(
    session_id: SessionId,
    between: Annotated[Between, Query()],
    reading: ARead,
) -> Response:
    """
    What changed between two versions, and who changed it.
    """
    answer = await reading.ask(
        lambda mad, timeout: mad.diff(
            session_id, between.from_version, between.to_version, timeout=timeout
        ),
    )

    return found(answer)
