"""
Counts over HTTP, for operators and admins.
"""

from fastapi import APIRouter, Response

from gateway.edge import openapi
from gateway.edge.errands import ARead, found
from gateway.edge.reception import Reception

router = APIRouter(route_class=Reception, tags=["operation"])


@router.get(
    "/stats",
    response_model=None,
    responses=openapi.read("Stats"),
    summary="Count the sessions",
)
async def stats(reading: ARead) -> Response:
    """
    How many sessions there are, and what each tier holds and costs.
    """
    answer = await reading.ask(lambda mad, timeout: mad.stats(timeout=timeout))

    return found(answer)
