"""The gateway over HTTP, for whoever keeps no link: ``POST /v1/frames`` takes a frame and answers when it is durable.

Routers of other entries (training rows as JSON, metrics of scrapers) are handed in; each asks for its own credential.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request
from starlette.responses import Response

from telemetry_bus.errors import FrameError, FrameFault, OutletFull
from telemetry_bus.frames import FRAME_BYTES_MAX
from telemetry_bus.gateway.errors import CannotListen
from telemetry_bus.gateway.gateway import FULL_SECONDS, Gateway
from telemetry_bus.gateway.problems import Refusal, install, problem
from telemetry_bus.gateway.room import Room
from telemetry_bus.gateway.server import ListenOptions, check_doors
from telemetry_bus.gateway.tls import server_context
from telemetry_bus.gateway.wire import TEXT_BYTES_MAX, Answered
from telemetry_bus.runtime.http_server import NotStarted, bind, running
from telemetry_bus.runtime.secret import Secret

FRAME_TYPES = frozenset({"application/vnd.nantucket.frame", "application/octet-stream"})
"""No page in a browser can send these to another site without asking it first: nobody's browser writes to the bus."""
BODIES_BYTES_MAX = 128 * 1024 * 1024
"""Of all bodies that are coming in: eight of the largest."""
BODY_SECONDS_MAX = 30.0
ANSWERS = {
    401: "no token",
    403: "wrong token",
    413: "larger than any frame",
    415: "not the type of a frame",
    422: "no frame, or not one that is taken from below",
    429: "full: Retry-After says when to come again",
    503: "the bus is away: Retry-After says when to come again",
}
CONNECTIONS_MAX = 512
"""Whoever sends every second keeps a link; this is for the others."""


def make_gateway_app(
    gateway: Gateway, *, token: Secret[str] | None = None, routers: Sequence[APIRouter] = ()
) -> FastAPI:
    """The application. With ``token`` whoever posts frames has to show it; ``routers`` see to their own credentials."""
    app = FastAPI(
        title="Nantucket gateway", openapi_url="/api/openapi.json", docs_url=None, redoc_url=None, version="1"
    )
    install(app)
    app.include_router(_frames_router(gateway, token))
    app.include_router(_health_router(gateway))
    for router in routers:
        app.include_router(router)
    return app


@asynccontextmanager
async def serve_gateway_app(app: FastAPI, options: ListenOptions) -> AsyncIterator[str]:
    """Serve ``app`` while the block runs; gives its URL. Refuses what :class:`LinkServer` refuses."""
    check_doors(options)
    context = None
    if options.cert is not None:
        context = await asyncio.to_thread(server_context, options.cert, options.key, options.client_ca)
    try:
        listener = bind(options.host, options.port)
    except OSError as error:
        raise CannotListen(options.host, options.port, error) from error
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"{'http' if context is None else 'https'}://{host}:{listener.getsockname()[1]}"
    try:
        async with running(app, listener, tls=context, connections_max=CONNECTIONS_MAX):
            yield url
    except* NotStarted as error:
        raise CannotListen(options.host, options.port, OSError("the web server did not come up")) from error


def _frames_router(gateway: Gateway, token: Secret[str] | None) -> APIRouter:
    router = APIRouter(tags=["frames"])
    room = Room(BODIES_BYTES_MAX)
    may_send = _guard(token)
    answers: dict[int | str, dict[str, Any]] = {status: {"description": text} for status, text in ANSWERS.items()}

    @router.post("/v1/frames", status_code=HTTPStatus.NO_CONTENT, responses=answers)
    async def frames(
        request: Request,
        topic: Annotated[
            str, Query(max_length=TEXT_BYTES_MAX, description="Default: the live topic of the frame's schema.")
        ] = "",
        key: Annotated[str, Query(max_length=TEXT_BYTES_MAX, description="Partition key; default: the source's.")] = "",
        authorization: Annotated[str, Header()] = "",
        content_type: Annotated[str, Header()] = "",
    ) -> Response:
        """Take one frame, as it is on the bus. Answered when it is durable."""
        may_send(authorization)
        if content_type.partition(";")[0].strip().lower() not in FRAME_TYPES:
            expected = " or ".join(sorted(FRAME_TYPES))
            detail = f"Content-Type: expected {expected}, found {content_type[:80]!r}"
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)
        async with _body(request, gateway, room, topic) as payload:
            await gateway.take(topic, [payload], key)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    return router


def _health_router(gateway: Gateway) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {"description": "what stands behind the gateway is away"}})
    async def readyz() -> Response:
        """Whether frames are taken just now."""
        if (why := gateway.away()) is not None:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, why, {"Retry-After": "1"})
        return Response(b'{"status":"ready"}', media_type="application/json")

    return router


def _guard(token: Secret[str] | None) -> Callable[[str], None]:
    def may_send(authorization: str) -> None:
        if token is None:
            return
        kind, _, given = authorization.partition(" ")
        if kind.lower() != "bearer" or not given:
            detail = "a token is needed: send `Authorization: Bearer TOKEN` with this gateway's token"
            raise Refusal(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": 'Bearer realm="nantucket"'})
        if not hmac.compare_digest(given.strip().encode(), token.reveal().encode()):
            raise Refusal(HTTPStatus.FORBIDDEN, "this is not this gateway's token")

    return may_send


@asynccontextmanager
async def _body(request: Request, gateway: Gateway, room: Room, topic: str) -> AsyncIterator[bytes]:
    """The body, of which never more is held than there is room for; the room is kept while the block runs."""
    chunks: list[bytes] = []
    held = 0
    try:
        try:
            async with asyncio.timeout(BODY_SECONDS_MAX):
                async for chunk in request.stream():
                    if held + len(chunk) > FRAME_BYTES_MAX:
                        error = FrameError(FrameFault.TOO_LARGE, f"a body of more than {FRAME_BYTES_MAX} bytes")
                        gateway.refuse(topic, error, b"".join(chunks), held + len(chunk))
                        raise error
                    if not room.take(len(chunk)):
                        gateway.counters.put_off[Answered.FULL] += 1
                        raise OutletFull(gateway.url, f"{room.used} bytes of bodies are coming in", FULL_SECONDS)
                    held += len(chunk)
                    chunks.append(chunk)
        except TimeoutError as error:
            detail = f"the body did not come within {BODY_SECONDS_MAX:g} s"
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, detail, {"Connection": "close"}) from error
        yield b"".join(chunks)
    finally:
        room.give_back(held)
