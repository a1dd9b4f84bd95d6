"""`/api/v1/jobs`: the jobs and their curves."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query

from dashboards.answers import JOB_DETAIL, JOBS, answers
from dashboards.problems import Json
from dashboards.services import Given

router = APIRouter()


@router.get("/api/v1/jobs", response_class=Json, responses=answers(JOBS))
async def jobs(given: Given) -> Json:
    """List the jobs, those with the newest rows first, and count them all."""
    return Json(given.live.jobs_event(given.clock.now()))


@router.get("/api/v1/jobs/{job:path}", response_class=Json, responses=answers(JOB_DETAIL, 404, 422))
async def job(
    given: Given,
    job: Annotated[str, Path(max_length=1_024)],
    attempt: Annotated[str | None, Query(max_length=1_024, description="Its newest attempt if not given.")] = None,
) -> Json:
    """Show a job with the curve of one attempt, its first non-finite rows, and its named numbers."""
    found = given.live.job(job, attempt)
    if found is None:
        what = f"no job {job!r}" if attempt is None else f"no attempt {attempt!r} of a job {job!r}"
        raise HTTPException(404, f"{what} has sent a row lately; /api/v1/jobs lists those that have")
    return Json(found)
