"""
The route of turns: entries and a patch of one session, all or nothing.
"""

from fastapi import APIRouter, Response

from everbus.bus.messages import CommittedTurn
from everbus.gateway.edge import openapi
from everbus.gateway.edge.dependencies import ConditionalWrite, json_answer
from everbus.gateway.edge.etags import tag_of
from everbus.gateway.edge.idempotency import HttpAnswer
from everbus.gateway.edge.request_models import NewTurn, SessionId
from everbus.gateway.edge.route import ApiRoute

router = APIRouter(route_class=ApiRoute, tags=["timeline"])


@router.post(
    "/sessions/{session_id}/turns",
    status_code=201,
    response_model=None,
    responses=openapi.write(201, "TakenTurn", 404, 409, 412, headers=("ETag",)),
    summary="Take a turn",
)
async def take_turn(
    session_id: SessionId, body: NewTurn, write_request: ConditionalWrite
) -> Response:
    """
    Append entries and merge a patch, all or nothing; the version rises by one.
    """
    version = write_request.expected(body.expected_version)

    return await write_request.run(
        lambda mad, options: mad.turn(
            *(session_id, body.entries, body.patch),
            expected_version=version,
            expected_last_seq=body.expected_last_seq,
            turn_id=body.turn,
            **options,
        ),
        _turn_answer,
        version,
    )


def _turn_answer(taken: CommittedTurn, command_id: str) -> HttpAnswer:
    value = {
        "turn": taken.turn,
        "version": taken.version,
        "seqs": taken.seqs,
        "command_id": command_id,
    }
    return json_answer(value, 201, ETag=tag_of(taken.version))
