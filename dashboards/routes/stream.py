"""`/api/v1/stream`: everything that moves, as server-sent events."""

from fastapi import APIRouter

from dashboards.answers import answers
from dashboards.services import Given, OwnedStream

router = APIRouter()


class EventStream(OwnedStream):
    """Server-sent events."""

    media_type = "text/event-stream"


ANSWERS = answers(None, 503, media_type=EventStream.media_type)


@router.get("/api/v1/stream", response_class=EventStream, responses=ANSWERS)
async def stream(given: Given) -> EventStream:
    """Send a snapshot, then what changes: events `fleet`, `jobs`, `curve`, `incidents`, `health` and `skipped`."""
    given.broadcast.room()
    # A proxy that buffers would turn a live page into a slide show.
    return EventStream(given.broadcast.events(given.live.snapshot), headers={"X-Accel-Buffering": "no"})
