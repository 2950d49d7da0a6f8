"""
Routes of timelines: append an entry, read pages.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from everbus.gateway.edge import openapi
from everbus.gateway.edge.dependencies import (
    Read,
    Write,
    json_answer,
    next_page,
    read_response,
)
from everbus.gateway.edge.request_models import NewEntry, SessionId, TimelineBounds
from everbus.gateway.edge.route import ApiRoute

router = APIRouter(route_class=ApiRoute, tags=["timeline"])


@router.post(
    "/sessions/{session_id}/timeline",
    status_code=201,
    response_model=None,
    responses=openapi.write(201, "Appended", 404, 409),
    summary="Append an entry",
)
async def append(
    session_id: SessionId, body: NewEntry, write_request: Write
) -> Response:
    """
    Append an entry; you are its author. It neither needs nor changes a version.
    """
    return await write_request.run(
        lambda mad, options: mad.append_and_wait(
            *(session_id, body.entry),
            expected_last_seq=body.expected_last_seq,
            **options,
        ),
        lambda seq, command_id: json_answer(
            {"seq": seq, "command_id": command_id}, 201
        ),
    )


@router.get(
    "/sessions/{session_id}/timeline",
    response_model=None,
    responses=openapi.read("TimelinePage", 404, headers=("Link",)),
    summary="Read entries",
)
async def read_timeline(
    session_id: SessionId,
    bounds: Annotated[TimelineBounds, Query()],
    read_request: Read,
) -> Response:
    """
    Entries within all bounds, oldest or newest first.
    """
    wanted: dict[str, Any] = bounds.model_dump()
    answer = await read_request.run(
        lambda mad, timeout: mad.timeline(session_id, **wanted, timeout=timeout),
    )
    more = answer.value.next
    if more is None:
        return read_response(answer)
    bound = {"before" if bounds.newest_first else "after": more}

    return read_response(answer, next_page(read_request.request, **bound))
