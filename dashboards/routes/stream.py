"""`/api/v1/stream`: everything that moves, as server-sent events."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query

from dashboards.answers import answers
from dashboards.heat import CHANNELS
from dashboards.services import Given, OwnedStream

router = APIRouter()


class EventStream(OwnedStream):
    """Server-sent events."""

    media_type = "text/event-stream"


ANSWERS = answers(None, 422, 503, media_type=EventStream.media_type)


@router.get("/api/v1/stream", response_class=EventStream, responses=ANSWERS)
async def stream(
    given: Given,
    heat: Annotated[
        str, Query(max_length=64, description="The heatmap's metric and fold, `power_watts:worst`; none if not given.")
    ] = "",
) -> EventStream:
    """Send a snapshot, then what changes: events `fleet`, `heat`, `jobs`, `curve`, `incidents`, `health`, `skipped`."""
    if heat and heat not in CHANNELS:
        raise HTTPException(422, f"heat is {heat!r}: expected one of {', '.join(CHANNELS)}, or none")
    given.broadcast.room()
    # A proxy that buffers would turn a live page into a slide show.
    return EventStream(given.broadcast.events(given.live.snapshot, heat), headers={"X-Accel-Buffering": "no"})
