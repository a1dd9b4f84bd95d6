"""Errors of the gateway's HTTP side as ``application/problem+json`` (RFC 9457)."""

import math
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from telemetry_bus.errors import BusUnavailable, FrameError, FrameFault, OutletFull
from telemetry_bus.gateway.gateway import AWAY_SECONDS
from telemetry_bus.json_text import dumps

MEDIA_TYPE = "application/problem+json"


class Refusal(Exception):
    """A request that is refused with ``status`` before its frame was looked at."""

    def __init__(self, status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers or {}


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **members: object) -> Response:
    """An error with ``status``; ``detail`` says what was expected, what was found, and what to do."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return Response(dumps(body).encode(), status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Let every error of ``app`` come out as a problem."""
    app.add_exception_handler(Refusal, _refusal)
    app.add_exception_handler(FrameError, _frame)
    app.add_exception_handler(BusUnavailable, _unavailable)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _fault)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return problem(error.status, str(error), error.headers)


async def _frame(request: Request, error: Exception) -> Response:
    assert isinstance(error, FrameError)
    too_large = error.reason is FrameFault.TOO_LARGE
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if too_large else HTTPStatus.UNPROCESSABLE_ENTITY
    return problem(status, str(error), reason=error.reason.value)


async def _unavailable(request: Request, error: Exception) -> Response:
    full = isinstance(error, OutletFull)
    status = HTTPStatus.TOO_MANY_REQUESTS if full else HTTPStatus.SERVICE_UNAVAILABLE
    seconds = error.retry_after_seconds if isinstance(error, OutletFull) else AWAY_SECONDS
    return problem(status, str(error), {"Retry-After": str(math.ceil(seconds))})


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {request.url.path}; /api/openapi.json lists what there is"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not allowed on {request.url.path}"
    return problem(error.status_code, detail, dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()
    )  # fmt: skip
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)


async def _fault(request: Request, error: Exception) -> Response:
    # The server logs the traceback; a stranger learns only that it was our fault.
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a fault of Nantucket; its log has the traceback")
