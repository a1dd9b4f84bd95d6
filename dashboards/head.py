"""HEAD: what GET would answer, without its body."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Head:
    """ASGI middleware that has HEAD answered by the routes of GET.

    The web server leaves the body out. Of an answer without an end, the client counts as gone once its first piece is
    there: nothing is followed for nobody.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        begun = asyncio.Event()

        async def send_no_body(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
            elif not begun.is_set():
                begun.set()
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def receive_until_begun() -> Message:
            await begun.wait()
            return {"type": "http.disconnect"}

        await self._app({**scope, "method": "GET"}, receive_until_begun, send_no_body)
