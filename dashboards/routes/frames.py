"""`/api/v1/frames/{topic}`: a topic's rows as an Arrow IPC stream."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query

from dashboards import arrow_stream
from dashboards.answers import answers
from dashboards.services import Given, OwnedStream
from telemetry_bus.cursor import CURSOR_CHARACTERS_MAX
from telemetry_bus.topics import TOPIC_SCHEMAS, Topic

router = APIRouter()

RECORDS_MAX = 100_000
"""A bounded answer ends here at the latest; the next one goes on at ``next_offset``."""


class ArrowStream(OwnedStream):
    """One Arrow IPC stream."""

    media_type = arrow_stream.MEDIA_TYPE


ANSWERS = answers(None, 410, 422, 503, media_type=arrow_stream.MEDIA_TYPE)


@router.get("/api/v1/frames/{topic}", response_class=ArrowStream, responses=ANSWERS)
async def frames(
    given: Given,
    topic: Topic,
    offset: Annotated[
        str | None,
        Query(
            max_length=CURSOR_CHARACTERS_MAX,
            description="Where to begin: a batch's `cursor` (0:120,1:98), or a number where the topic has one "
            "partition. Else the oldest held.",
        ),
    ] = None,
    limit: Annotated[int | None, Query(ge=1, le=RECORDS_MAX, description="At most so many records.")] = None,
    follow: Annotated[bool, Query(description="Go on with what comes, until the client leaves.")] = False,
    schema: Annotated[str | None, Query(max_length=64, description="Which schema, for a topic of several.")] = None,
) -> ArrowStream:
    """Send a topic's newest frames; `offset` resumes at a batch's `cursor`."""
    schema_id = _schema_of(topic, schema)
    given.fan.room()
    reader = given.fan.oldest(topic) if offset is None else given.fan.reader(topic, given.fan.cursor_of(topic, offset))
    until = None if follow else given.fan.end_position(topic)
    most = limit if follow or limit is not None else RECORDS_MAX
    return ArrowStream(given.arrow.stream(reader, topic, schema_id, until=until, limit=most))


def _schema_of(topic: Topic, schema: str | None) -> str:
    carried = sorted(TOPIC_SCHEMAS[topic])
    if schema is None and len(carried) == 1:
        return carried[0]
    if schema not in carried:
        found = "none was given" if schema is None else f"found {schema!r}"
        raise HTTPException(
            422, f"an Arrow stream has one schema, {topic} carries {', '.join(carried)}: {found}; add ?schema="
        )
    return schema
