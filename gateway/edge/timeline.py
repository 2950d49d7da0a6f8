"""
Timelines over HTTP: append an entry, read pages.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from gateway.edge import openapi
from gateway.edge.bodies import NewEntry, SessionId, TimelineBounds
from gateway.edge.errands import ARead, AWrite, found, next_page, told
from gateway.edge.reception import Reception

router = APIRouter(route_class=Reception, tags=["timeline"])


@router.post(
    "/sessions/{session_id}/timeline",
    status_code=201,
    response_model=None,
    responses=openapi.write(201, "Appended", 404),
    summary="Append an entry",
)
async def append(session_id: SessionId, body: NewEntry, writing: AWrite) -> Response:
    """
    Append an entry; you are its author. It neither needs nor moves a version.
    """
    return await writing.made(
        lambda mad, how: mad.append_and_wait(session_id, body.entry, **how),
        lambda seq, command_id: told({"seq": seq, "command_id": command_id}, 201),
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
    reading: ARead,
) -> Response:
    """
    Entries within all bounds, oldest or newest first.
    """
    wanted: dict[str, Any] = bounds.model_dump()
    answer = await reading.ask(
        lambda mad, timeout: mad.timeline(session_id, **wanted, timeout=timeout),
    )
    more = answer.value.next
    if more is None:
        return found(answer)
    bound = {"before" if bounds.newest_first else "after": more}

    return found(answer, next_page(reading.request, **bound))
