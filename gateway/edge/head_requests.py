"""
HEAD on every route of GET, with the same headers and no body (RFC 9110, 9.3.2).
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """
    ASGI middleware that serves HEAD by the route of GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Serve one ASGI connection.
        """
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        # A copy: the server itself needs to know that it was HEAD.
        asked = {**scope, "method": "GET"}
        answer = _HeadOnly(receive, send)
        try:
            await self._app(asked, answer.receive, answer.send)
        finally:
            # Metrics and log name the request by its route.
            if "route" in asked:
                scope["route"] = asked["route"]


class _HeadOnly:
    """
    The head of an answer; its end is also that of the client, for a live stream.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._complete = False

    async def receive(self) -> Message:
        """
        The next message of the client.
        """
        if self._complete:
            return {"type": "http.disconnect"}
        return await self._receive()

    async def send(self, message: Message) -> None:
        """
        Pass the head on, and an empty body once.
        """
        if self._complete:
            return
        if message["type"] == "http.response.body":
            self._complete = True
            message = {"type": message["type"], "body": b"", "more_body": False}
        await self._send(message)
