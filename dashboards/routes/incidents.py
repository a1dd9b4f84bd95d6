"""`/api/v1/incidents`: what alerting has made of the findings."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query

from dashboards.answers import INCIDENT, INCIDENTS, answers
from dashboards.incidents import INCIDENTS_MAX
from dashboards.problems import Json
from dashboards.services import Given

router = APIRouter()


@router.get("/api/v1/incidents", response_class=Json, responses=answers(INCIDENTS, 422, 503))
async def incidents(
    given: Given,
    limit: Annotated[int, Query(ge=1, le=INCIDENTS_MAX, description="At most so many.")] = INCIDENTS_MAX,
    open: Annotated[bool, Query(description="Only those that are firing.")] = False,  # noqa: A002
) -> Json:
    """List the incidents, newest first, straight from the store."""
    found = await given.incidents.incidents(limit=limit, open_only=open)
    return Json({"time": given.clock.now(), "open": given.feed.open_by_tier(), "incidents": found})


@router.get("/api/v1/incidents/{incident_id}", response_class=Json, responses=answers(INCIDENT, 404, 422, 503))
async def incident(given: Given, incident_id: Annotated[str, Path(max_length=64)]) -> Json:
    """Show one incident."""
    found = await given.incidents.incident(incident_id)
    if found is None:
        raise HTTPException(404, f"no incident {incident_id!r}; /api/v1/incidents lists the newest")
    return Json(found)
