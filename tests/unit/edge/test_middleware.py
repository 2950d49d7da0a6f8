"""
What befalls every request, around an application that can do anything.
"""

import json
from collections.abc import Awaitable, Callable

import httpx
import structlog
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from everbus.gateway.edge.middleware import RequestMiddleware

App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def well(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(scope["everbus.request_id"])(scope, receive, send)


async def badly(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("redis://:secret@host is away")


async def asked(app: App, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(RequestMiddleware(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        return await client.get("/", headers=headers)


async def test_an_unexpected_exception_is_logged_once_and_told_to_nobody():
    with capture_logs([structlog.contextvars.merge_contextvars]) as records:
        answer = await asked(badly)
    told = answer.json()
    [failed] = [one for one in records if one["event"] == "request.failed"]

    assert (answer.status_code, told["code"]) == (500, "defect")
    assert "secret" not in answer.text
    assert failed["exc_info"]
    assert failed["request"] == told["request_id"] == answer.headers["X-Request-Id"]


async def test_the_id_is_in_every_line_of_the_log():
    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        structlog.get_logger().info("anything")
        await well(scope, receive, send)

    with capture_logs([structlog.contextvars.merge_contextvars]) as records:
        await asked(telling, **{"X-Request-Id": "mine"})
        structlog.get_logger().info("later")

    assert [one.get("request") for one in records] == ["mine", "mine", None]


async def test_ids_that_would_forge_a_line_are_replaced():
    for given in ("", "a b", "x" * 200, "a\x1b[2J", "-rf", "<script>"):
        answer = await asked(well, **{"X-Request-Id": given})

        assert answer.text == answer.headers["X-Request-Id"] != given
        assert answer.text.isalnum()


async def test_heads_are_bounded_before_anything_else():
    many = {f"x-{n}": "1" for n in range(70)}
    for headers in (many, {"x": "1" * 20_000}):
        answer = await asked(badly, **headers)

        assert answer.status_code == 431
        assert json.loads(answer.content)["code"] == "too_large"


async def test_an_answer_that_has_begun_is_not_answered_again():
    sent = []

    async def halfway(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("broke")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": [], "query_string": b""}
    with capture_logs():
        try:
            await RequestMiddleware(halfway)(scope, None, send)
        except RuntimeError:
            sent.append("cut")

    assert [one if one == "cut" else one["status"] for one in sent] == [200, "cut"]
