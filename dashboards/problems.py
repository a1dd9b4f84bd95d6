"""Errors as `application/problem+json` (RFC 9457), and JSON in which a NaN is not lost."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from dashboards.errors import StoreUnavailable
from telemetry_bus.cursor import WrongCursor, cursor_text
from telemetry_bus.errors import BusUnavailable
from telemetry_bus.fanout import OffsetGone, ReadersFull
from telemetry_bus.json_text import dumps

MEDIA_TYPE = "application/problem+json"


class Json(JSONResponse):
    """A JSON answer made by our own encoder: FastAPI's answers 500 for a NaN, pydantic's makes it null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """``content`` as strict JSON, non-finite numbers as strings."""
        return dumps(content).encode()


class ProblemJson(Json):
    """An error's body."""

    media_type = MEDIA_TYPE


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **members: Any) -> Response:
    """An error with ``status``; ``detail`` says what was expected, what was found, and what to do."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return ProblemJson(body, status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Let every error of ``app`` come out as a problem."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ReadersFull, _full)
    app.add_exception_handler(OffsetGone, _gone)
    app.add_exception_handler(WrongCursor, _wrong_cursor)
    app.add_exception_handler(BusUnavailable, _unavailable)
    app.add_exception_handler(StoreUnavailable, _unavailable)
    app.add_exception_handler(Exception, _fault)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"there is nothing at {request.url.path}; /api/openapi.json lists what there is"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not allowed on {request.url.path}; everything here is read with GET or HEAD"
    return problem(error.status_code, detail, dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [
        {"in": ".".join(str(part) for part in fault["loc"]), "message": str(fault["msg"])} for fault in error.errors()
    ]
    detail = "; ".join(f"{fault['in']}: {fault['message']}" for fault in faults)
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=faults)


async def _full(request: Request, error: Exception) -> Response:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": "5"})


async def _gone(request: Request, error: Exception) -> Response:
    assert isinstance(error, OffsetGone)
    earliest = error.earliest
    told = earliest[0] if earliest.keys() == {0} else cursor_text(earliest)
    return problem(HTTPStatus.GONE, str(error), earliest=told)


async def _wrong_cursor(request: Request, error: Exception) -> Response:
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))


async def _unavailable(request: Request, error: Exception) -> Response:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": "1"})


async def _fault(request: Request, error: Exception) -> Response:
    # The server logs the traceback; a stranger learns only that it was our fault.
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a fault of Nantucket; its log has the traceback")
