"""
Routes of a session's history: checkpoints, versions and the changes between them.
"""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from everbus.gateway.edge import openapi
from everbus.gateway.edge.dependencies import (
    ConditionalWrite,
    Read,
    Write,
    json_answer,
    next_page,
    read_response,
    session_answer,
)
from everbus.gateway.edge.etags import tag_of
from everbus.gateway.edge.request_models import (
    Between,
    CheckpointBody,
    CheckpointBounds,
    CheckpointId,
    Condition,
    SessionId,
    Version,
)
from everbus.gateway.edge.route import ApiRoute

router = APIRouter(route_class=ApiRoute, tags=["history"])


@router.post(
    "/sessions/{session_id}/checkpoints",
    status_code=201,
    response_model=None,
    responses=openapi.write(201, "Checkpoint", 404),
    summary="Create a checkpoint",
)
async def create_checkpoint(
    session_id: SessionId,
    write_request: Write,
    body: CheckpointBody | None = None,
) -> Response:
    """
    Keep the present state under a name; the version does not change.
    """
    wanted = body or CheckpointBody()

    return await write_request.run(
        lambda mad, options: mad.create_checkpoint(
            session_id, name=wanted.name, kind=wanted.kind, **options
        ),
        lambda checkpoint, command_id: json_answer(checkpoint, 201),
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
    read_request: Read,
) -> Response:
    """
    The session's checkpoints, newest first.
    """
    answer = await read_request.run(
        lambda mad, timeout: mad.checkpoints(
            session_id, before=bounds.before, limit=bounds.limit, timeout=timeout
        ),
    )
    more = answer.value.next
    link = {} if more is None else next_page(read_request.request, before=more)

    return read_response(answer, link)


@router.post(
    "/sessions/{session_id}/checkpoints/{checkpoint_id}/restore",
    response_model=None,
    responses=openapi.write(200, "Session", 404, 409, 412, headers=("ETag",)),
    summary="Restore a checkpoint",
)
async def restore_checkpoint(
    session_id: SessionId,
    checkpoint_id: CheckpointId,
    write_request: ConditionalWrite,
    body: Condition | None = None,
) -> Response:
    """
    Restore summary, work in progress, tags and fields, as a new version.
    """
    version = write_request.expected(body.expected_version if body else None)

    return await write_request.run(
        lambda mad, options: mad.restore_checkpoint(
            session_id, checkpoint_id, expected_version=version, **options
        ),
        session_answer,
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
    read_request: Read,
) -> Response:
    """
    The session's state at a version, without its timeline.
    """
    answer = await read_request.run(
        lambda mad, timeout: mad.session_at(session_id, version, timeout=timeout),
    )

    return read_response(answer, {"ETag": tag_of(answer.value.version)})


@router.get(
    "/sessions/{session_id}/diff",
    response_model=None,
    responses=openapi.read("Difference", 404),
    summary="Compare two versions",
)
async def diff(
    session_id: SessionId,
    between: Annotated[Between, Query()],
    read_request: Read,
) -> Response:
    """
    The changes between two versions, with their authors.
    """
    answer = await read_request.run(
        lambda mad, timeout: mad.diff(
            session_id, between.from_version, between.to_version, timeout=timeout
        ),
    )

    return read_response(answer)
