"""What the routes answer, as OpenAPI describes it: the keys of each object, and every error as a problem."""

from http import HTTPStatus
from typing import Any

from dashboards.problems import MEDIA_TYPE

Schema = dict[str, Any]
Answers = dict[int | str, dict[str, Any]]

NUMBER: Schema = {
    "anyOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}, {"type": "null"}],
    "description": "Absent is null; a non-finite number is one of three strings.",
}
TIME: Schema = {"type": "number", "description": "UTC seconds."}
COUNT: Schema = {"type": "integer", "minimum": 0}
COUNT_OR_NULL: Schema = {"type": ["integer", "null"], "minimum": 0}
TEXT: Schema = {"type": "string"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
FLAG_OR_NULL: Schema = {"type": ["boolean", "null"]}


def record(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object with these keys and maybe others."""
    return {"type": "object", "properties": required | optional, "required": list(required)}


def listed(items: Schema) -> Schema:
    """An array."""
    return {"type": "array", "items": items}


PROBLEM = record({"type": TEXT, "title": TEXT, "status": {"type": "integer"}, "detail": TEXT})
GPU_USER = record(
    {"instance": TEXT_OR_NULL, "origin": TEXT_OR_NULL, "job": TEXT_OR_NULL, "attempt": TEXT_OR_NULL}
    | {"rank": COUNT_OR_NULL, "pid": COUNT_OR_NULL, "pod": TEXT_OR_NULL, "slurm_job_id": TEXT_OR_NULL}
)
USERS: Schema = {
    "anyOf": [listed(GPU_USER), {"type": "null"}],
    "description": "Of the GPU and its MIG instances; null where no collector has told.",
}
GPU = record(
    {"node": TEXT, "gpu": COUNT, "simulated": {"type": "boolean"}, "last_seen": TIME, "uuid": TEXT_OR_NULL}
    | {"users": USERS, "users_left_out": COUNT}
)
FLEET = record(
    {"time": TIME, "gpus": COUNT, "reporting": COUNT, "stale": COUNT, "simulated": COUNT, "nodes": COUNT}
    | {"metrics": listed({"type": "object"}), "rows": listed(GPU)}
)
JOB = record(
    {"job": TEXT, "attempt": TEXT, "attempts": COUNT, "state": {"enum": ["running", "silent", "ended"]}}
    | {"loss": NUMBER, "grad_norm": NUMBER, "last_seen": TIME, "rows": COUNT}
)
JOBS = record({"time": TIME, "count": COUNT, "jobs": listed(JOB)})
CURVE = record({"step": listed({"type": "integer"}), "loss": listed(NUMBER), "grad_norm": listed(NUMBER)})
JOB_GPU = {"allOf": [GPU_USER, record({"node": TEXT, "gpu": COUNT_OR_NULL, "uuid": TEXT})]}
JOB_DETAIL: Schema = {
    "allOf": [JOB, record({"shown_attempt": TEXT, "curve": CURVE, "gpus": listed(JOB_GPU), "gpus_count": COUNT})]
}
INCIDENT = record(
    {"id": TEXT, "kind": TEXT, "severity": TEXT, "tier": {"enum": ["page", "ticket", "log"]}, "title": TEXT}
    | {"status": {"enum": ["firing", "resolved"]}},
    job=TEXT_OR_NULL,
    deliveries=listed({"type": "object"}),
)
INCIDENTS = record({"time": TIME, "open": record({}), "incidents": listed(INCIDENT)})
ALIVE = record({"status": {"const": "alive"}})
READY = record({"status": {"const": "ready"}, "watching": FLAG_OR_NULL, "detail": TEXT_OR_NULL})

_WHY = {
    401: "A token is needed.",
    404: "There is no such thing.",
    410: "That offset is no longer held.",
    421: "The server is not asked by this name.",
    422: "A parameter is not what it must be.",
    503: "It cannot be answered just now.",
}
EVERYWHERE = (401, 421)
"""The gate in front of all routes answers these; /healthz needs no token."""


def answers(schema: Schema | None, *errors: int, media_type: str = "application/json") -> Answers:
    """The description of a route that answers 200 with ``schema`` (``None``: no JSON) or one of ``errors``."""
    told: Answers = {200: {"description": "OK", "content": {media_type: {} if schema is None else {"schema": schema}}}}
    for status in sorted({*errors, *EVERYWHERE}):
        problem = {MEDIA_TYPE: {"schema": PROBLEM}}
        told[status] = {"description": _WHY.get(status, HTTPStatus(status).phrase), "content": problem}
    return told
