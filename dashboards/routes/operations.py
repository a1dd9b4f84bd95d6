"""`/metrics`, `/healthz`, `/readyz`: for machines that watch Nantucket."""

from fastapi import APIRouter
from starlette.responses import Response

from dashboards import metrics
from dashboards.answers import ALIVE, READY, answers
from dashboards.errors import StoreUnavailable
from dashboards.live import TICKLESS_SECONDS
from dashboards.problems import Json, problem
from dashboards.services import Given

router = APIRouter()

NOT_WATCHING = (
    f"no tick has come for {TICKLESS_SECONDS:g} s, expected one each second: no detect role runs, or it cannot write "
    "to the bus (is the disk full?). Nothing is found and nobody is paged meanwhile."
)


class OpenMetrics(Response):
    """What Prometheus reads."""

    media_type: str = metrics.CONTENT_TYPE


@router.get("/metrics", response_class=OpenMetrics, responses=answers(None, media_type=OpenMetrics.media_type))
async def openmetrics(given: Given) -> Response:
    """Answer Prometheus, in OpenMetrics."""
    return OpenMetrics(metrics.exposition(given.registry))


@router.get("/healthz", response_class=Json, responses=answers(ALIVE, 503))
async def alive(given: Given) -> Response:
    """Say whether the process does its work; if not, it wants to be started anew."""
    failure = given.live.failure or given.fan.failure
    if failure is not None:
        return problem(503, f"the live state has ended with {type(failure).__name__}; restart this process")
    return Json({"status": "alive"})


@router.get("/readyz", response_class=Json, responses=answers(READY, 503))
async def ready(given: Given) -> Response:
    """Say whether the bus and the store can be read, and the newest of the log is here.

    `watching` is false while no detector is seen to tick. That is no reason to take the page away: it is what the page
    must show.
    """
    lacking = []
    if not given.fan.available:
        lacking.append("the bus cannot be read")
    elif not given.fan.is_caught_up:
        lacking.append("the newest of the log is still being read")
    try:
        await given.incidents.ready()
    except StoreUnavailable as error:
        lacking.append(str(error))
    watching = given.live.watching()
    if lacking:
        return problem(503, "; ".join(lacking), {"Retry-After": "1"}, watching=watching)
    return Json({"status": "ready", "watching": watching, "detail": NOT_WATCHING if watching is False else None})
