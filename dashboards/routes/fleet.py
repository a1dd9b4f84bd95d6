"""`/api/v1/fleet`: the newest reading of every GPU."""

from typing import Annotated

from fastapi import APIRouter, Query

from dashboards import views
from dashboards.answers import FLEET, answers
from dashboards.problems import Json
from dashboards.services import Given

router = APIRouter()

ROWS_MAX = 4_096
"""Some 1 MB of JSON; a larger fleet is asked for node by node, or read as Arrow."""


@router.get("/api/v1/fleet", response_class=Json, responses=answers(FLEET, 422))
async def fleet(
    given: Given,
    node: Annotated[str | None, Query(max_length=256, description="Only this node's GPUs.")] = None,
    limit: Annotated[int, Query(ge=1, le=ROWS_MAX, description="At most so many GPUs.")] = ROWS_MAX,
) -> Json:
    """Count the fleet, and list its GPUs with their newest readings and who uses them; absent is null."""
    state, now = given.live.fleet, given.clock.now()
    stale = int(state.stale(now).sum())
    return Json(
        {
            "time": now,
            "gpus": state.count,
            "reporting": state.count - stale,
            "stale": stale,
            "simulated": int(state.columns.simulated[: state.count].sum()),
            "nodes": len(state.nodes),
            "metrics": views.metric_choices(state),
            "rows": views.fleet_rows(state, given.live.gpu_users, now, node, limit),
        }
    )
