"""
Statistics over HTTP, for operators and admins.
"""

from fastapi import APIRouter, Response

from everbus.gateway.edge import openapi
from everbus.gateway.edge.dependencies import Read, read_response
from everbus.gateway.edge.route import ApiRoute

router = APIRouter(route_class=ApiRoute, tags=["operation"])


@router.get(
    "/stats",
    response_model=None,
    responses=openapi.read("Stats"),
    summary="Count the sessions",
)
async def stats(read_request: Read) -> Response:
    """
    The number of sessions, and the size and cost of each tier.
    """
    answer = await read_request.run(lambda mad, timeout: mad.stats(timeout=timeout))

    return read_response(answer)
