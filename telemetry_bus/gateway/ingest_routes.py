"""``POST /v1/train`` and ``POST /v1/metrics``: training rows as JSON, Prometheus remote write, OTLP (docs/ingest.md).

Everything is refused or durable as a whole. A body is unpacked and read in a thread, so that the loop goes on.
"""

import asyncio
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import APIRouter
from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from telemetry_bus.errors import BusError, BusUnavailable, FrameError, OutletFull
from telemetry_bus.gateway import otlp, remote_write, train_json
from telemetry_bus.gateway.bodies import Bound, Holding, gunzip, holding, identity, media_type, read_body, unpacker
from telemetry_bus.gateway.ingest import Ingest
from telemetry_bus.gateway.ingest_errors import IngestRefused, NoToken, UnknownBody, WrongToken
from telemetry_bus.gateway.latest_rows import LatestRows
from telemetry_bus.gateway.metric_rows import Placed, Samples, place
from telemetry_bus.gateway.pieces import Piece
from telemetry_bus.gateway.problems import problem
from telemetry_bus.gateway.series_cache import SeriesCache
from telemetry_bus.json_text import dumps

JSON, PROTOBUF = "application/json", "application/x-protobuf"
JOB_HEADER = "nantucket-job"
PRW1, PRW2 = "prometheus.WriteRequest", "io.prometheus.write.v2.Request"
NAMED = Bound(train_json.BODY_BYTES_MAX)
NAMELESS = Bound(train_json.NAMELESS_BYTES_MAX, "A larger one names its job in the header Nantucket-Job: JOB.")
UNAVAILABLE_SECONDS = 1
"""A bus that comes back is found within seconds; senders double the wait by themselves."""
_WRITTEN = "X-Prometheus-Remote-Write-{}-Written"

ANSWERS: dict[int | str, str] = {
    401: "no token",
    403: "not the token of this job, or of this gateway",
    408: "the body did not come in time",
    413: "more bytes, rows or samples than a request may have",
    415: "a content type or encoding that is not read here",
    422: "rows that cannot be taken: `errors` names row and field",
    429: "full: Retry-After says when to come again",
    503: "the bus is away: Retry-After says when to come again",
}

T = TypeVar("T")


def ingest_router(ingest: Ingest) -> APIRouter:
    """The routes, for the gateway's application."""
    router = APIRouter(tags=["ingest"])
    train, metrics = Train(ingest), Metrics(ingest)
    told: dict[int | str, dict[str, Any]] = {status: {"description": text} for status, text in ANSWERS.items()}
    router.add_api_route(
        "/v1/train",
        train.post,
        methods=["POST"],
        summary="Training rows as JSON",
        description="Rows of one job, with its token. Answered when they are durable.",
        responses={200: {"description": '`{"accepted": ROWS, "durable": true}`'}, **told},
        openapi_extra=_body_of(*sorted(train_json.JSON_TYPES | train_json.LINES_TYPES)),
    )
    router.add_api_route(
        "/v1/metrics",
        metrics.post,
        methods=["POST"],
        summary="Prometheus remote write and OTLP metrics",
        description="Samples of a site's scraper or of a job. Answered when they are durable.",
        responses={
            200: {"description": "OTLP: durable; `partial_success` says what has no place here"},
            204: {"description": "remote write: durable; headers say how much was written"},
            400: {"description": "not a message of its protocol"},
            **told,
        },
        openapi_extra=_body_of(PROTOBUF, JSON),
    )
    return router


def _body_of(*content_types: str) -> dict[str, Any]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": dict.fromkeys(content_types, schema)}}


class _Entry:
    """What both entries do with a request."""

    path = ""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self._options = ingest.options

    async def post(self, request: Request) -> Response:
        """Answer one request, and count the answer."""
        try:
            async with holding(self._ingest.room) as held:
                response = await self._answer(request, held)
        except (IngestRefused, BusError) as error:
            response = self._refusal(request, error)
        except ClientDisconnect:
            response = Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it
        self._ingest.counters.requests[self.path, response.status_code] += 1
        return response

    async def _answer(self, request: Request, held: Holding) -> Response:
        raise NotImplementedError

    def _refusal(self, request: Request, error: Exception) -> Response:
        status, headers = _status_of(error)
        members = error.members if isinstance(error, IngestRefused) else {}
        return problem(status, str(error), headers, **members)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        async with self._ingest.readers:
            return await asyncio.to_thread(work)

    async def _make_durable(self, pieces: list[Piece], held: Holding) -> None:
        held.change_to(sum(piece.batch.nbytes for piece in pieces))
        await self._ingest.make_durable(pieces)


class Train(_Entry):
    """``POST /v1/train``."""

    path = "/v1/train"

    async def _answer(self, request: Request, held: Holding) -> Response:
        token = _bearer(request)
        if token is None:
            raise NoToken("the job's token, which 'nantucket job token JOB' prints")
        content_type = media_type(request)
        if content_type not in train_json.JSON_TYPES | train_json.LINES_TYPES:
            expected = " or ".join(sorted(train_json.JSON_TYPES | train_json.LINES_TYPES))
            raise UnknownBody("Content-Type", expected, content_type)
        job = request.headers.get(JOB_HEADER)
        if job is not None:
            self._check(job, token)
        bound = NAMELESS if job is None else NAMED
        unpack = unpacker(request, {"identity": identity, "gzip": gunzip(bound)})
        body = await read_body(request, held, bound)
        now = self._options.clock.now()

        def read() -> tuple[train_json.TrainRows, list[Piece]]:
            rows = train_json.read_rows(unpack(body), content_type, now, job)
            return rows, list(rows.pieces(now, self._options.region))

        rows, pieces = await self._in_thread(read)
        for named in sorted(rows.jobs):
            self._check(named, token)
        await self._make_durable(pieces, held)
        self._ingest.counters.train_rows += len(rows.rows) + len(rows.metrics)
        return Response(dumps({"accepted": rows.count, "durable": True}), media_type=JSON)

    def _check(self, job: str, token: str) -> None:
        if not self._options.check_job(job, token):
            said = f"the token is not that of job {job[:96]!a}; make one with: nantucket job token JOB"
            raise WrongToken(said)


class Metrics(_Entry):
    """``POST /v1/metrics``."""

    path = "/v1/metrics"

    def __init__(self, ingest: Ingest) -> None:
        super().__init__(ingest)
        self._latest = LatestRows()
        self._series = {protocol: SeriesCache() for protocol in (PRW1, PRW2, "otlp")}

    async def _answer(self, request: Request, held: Holding) -> Response:
        job = self._job(request)
        if _is_remote_write(request):
            return await self._remote_write(request, held, job)
        return await self._otlp(request, held, job)

    def _job(self, request: Request) -> str | None:
        """The one job that may be written, or ``None`` for whoever has this gateway's token."""
        token, job = _bearer(request), request.headers.get(JOB_HEADER)
        if job is not None:
            if token is None:
                raise NoToken(f"the token of the job that the header {JOB_HEADER} names")
            if not self._options.check_job(job, token):
                raise WrongToken(f"the token is not that of job {job[:96]!a}, which the header {JOB_HEADER} names")
            return job
        if not self._options.check_gateway(token):
            if token is None:
                raise NoToken(f"this gateway's token (or a job's, with the header {JOB_HEADER})")
            raise WrongToken(f"the token is not that of this gateway; a job's token needs the header {JOB_HEADER}: JOB")
        return None

    async def _remote_write(self, request: Request, held: Holding, job: str | None) -> Response:
        protocol = _remote_write_message(request)
        parse = remote_write.read_request_2 if protocol == PRW2 else remote_write.read_write_request
        unpack = unpacker(request, {"snappy": remote_write.unsnap})
        body = await read_body(request, held, Bound(remote_write.DECODED_BYTES_MAX))
        placed = await self._placed(lambda: parse(unpack(body), self._series[protocol]), held, job)
        headers = {_WRITTEN.format("Samples"): str(placed.accepted + placed.absent)}
        headers |= {_WRITTEN.format(kind): "0" for kind in ("Histograms", "Exemplars")}
        headers["Nantucket-Samples-Unmapped"] = _summary(placed)
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)

    async def _otlp(self, request: Request, held: Holding, job: str | None) -> Response:
        kind = media_type(request)
        if kind not in (PROTOBUF, JSON):
            raise UnknownBody("Content-Type", f"{PROTOBUF} or {JSON}", kind)
        bound = Bound(otlp.DECODED_BYTES_MAX)
        unpack = unpacker(request, {"identity": identity, "gzip": gunzip(bound)})
        body = await read_body(request, held, bound)
        parse = otlp.parse_json if kind == JSON else otlp.parse_protobuf
        placed = await self._placed(lambda: otlp.samples_of(parse(unpack(body)), self._series["otlp"]), held, job)
        return _message(request, HTTPStatus.OK, otlp.answer(placed))

    async def _placed(self, read: Callable[[], Samples], held: Holding, job: str | None) -> Placed:
        now, region = self._options.clock.now(), self._options.region
        placed = await self._in_thread(lambda: place(read(), now, region, job, self._latest))
        await self._make_durable(placed.pieces, held)
        counters = self._ingest.counters
        counters.samples += placed.accepted
        counters.absent += placed.absent
        counters.unmapped.update(placed.unmapped)
        return placed

    def _refusal(self, request: Request, error: Exception) -> Response:
        """OTLP has errors of its own form, in the form of its request."""
        if _is_remote_write(request) or media_type(request) not in (PROTOBUF, JSON):
            return super()._refusal(request, error)
        status, headers = _status_of(error)
        code = otlp.UNAVAILABLE if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) else None
        told = otlp.Status(code=code or otlp.INVALID_ARGUMENT, message=str(error))
        return _message(request, status, told, headers)


def _status_of(error: Exception) -> tuple[HTTPStatus, dict[str, str]]:
    if isinstance(error, IngestRefused):
        return error.status, dict(error.headers)
    if isinstance(error, OutletFull):
        wait = max(1, math.ceil(error.retry_after_seconds))
        return HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": str(wait)}
    if isinstance(error, BusUnavailable):
        return HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(UNAVAILABLE_SECONDS)}
    if isinstance(error, FrameError):
        return HTTPStatus.UNPROCESSABLE_ENTITY, {}
    raise error


def _message(request: Request, status: int, message: Message, headers: dict[str, str] | None = None) -> Response:
    """A protobuf message in the form in which the request came."""
    if media_type(request) == JSON:
        return Response(json_format.MessageToJson(message, indent=None), status, headers, JSON)
    return Response(message.SerializeToString(), status, headers, PROTOBUF)


def _bearer(request: Request) -> str | None:
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise WrongToken("the header Authorization: expected 'Bearer TOKEN', found another scheme")
    return token.strip()


def _is_remote_write(request: Request) -> bool:
    headers = request.headers
    return "x-prometheus-remote-write-version" in headers or headers.get("content-encoding", "").lower() == "snappy"


def _remote_write_message(request: Request) -> str:
    """Which of the two messages the content type names; without ``proto`` it is 1.0's."""
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    named = dict(part.strip().partition("=")[::2] for part in parameters.split(";") if part.strip())
    message = named.get("proto", PRW1).strip('"')
    if kind.strip().lower() != PROTOBUF or message not in (PRW1, PRW2):
        raise UnknownBody("Content-Type", f"{PROTOBUF}, with ;proto={PRW2} for 2.0", f"{kind};{parameters}")
    return message


def _summary(placed: Placed) -> str:
    """How many samples have no place here, and why, in a header."""
    reasons = [f"{reason.value}={count}" for reason, count in sorted(placed.unmapped.items())]
    return ", ".join([str(sum(placed.unmapped.values())), *reasons])
