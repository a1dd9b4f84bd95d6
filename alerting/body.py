"""What is said of an incident to the outside: the body of the generic webhook, version 1. Pure.

``docs/webhook.md`` describes it for those who receive it. Times are UTC seconds since 1970.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from alerting.cost import USD_PER_GPU_HOUR, cost_of
from alerting.errors import BadSetting
from alerting.incident import Incident
from telemetry_bus.json_text import dumps

VERSION = 1


@dataclass(frozen=True, slots=True)
class Presentation:
    """What a reader of an incident is told besides the incident itself.

    ``base_url`` is where people reach the dashboard, ``runbook_base_url`` where the runbooks lie (one page per kind);
    links that cannot be built are null.
    """

    usd_per_gpu_hour: float = USD_PER_GPU_HOUR
    base_url: str | None = None
    runbook_base_url: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.usd_per_gpu_hour < 1e6:
            raise BadSetting(
                "usd_per_gpu_hour", repr(self.usd_per_gpu_hour), "US dollars, 0 or more and below a million"
            )
        for key, value in (("serve.public_url", self.base_url), ("alert.runbooks", self.runbook_base_url)):
            if value is not None and not value.startswith(("http://", "https://")):
                raise BadSetting(key, repr(value), "a URL that begins with http:// or https://")


def incident_object(incident: Incident, shown: Presentation, blind: Sequence[str], now: float) -> dict[str, Any]:
    """The ``incident`` object. ``blind`` says in words what Nantucket cannot see just now; ``now`` is for the cost."""
    return {
        "id": incident.id,
        "paging_key": incident.paging_key,
        "kind": incident.kind.value,
        "severity": incident.severity.value,
        "tier": incident.tier.value,
        "title": incident.title,
        "message": incident.message,
        "simulated": incident.scope.simulated,
        "job": incident.job,
        "attempt": incident.scope.attempt,
        "region": incident.region,
        "onset_step": incident.onset_step,
        "onset_time": incident.onset_time,
        "detected_step": incident.detected_step,
        "detected_time": incident.detected_time,
        "resolved_time": incident.resolved_time,
        "where": asdict(incident.where),
        "evidence": dict(incident.evidence),
        "likely_causes": list(incident.causes),
        "ranks_affected": incident.ranks_affected,
        "gpus_affected": incident.gpus_affected,
        "last_good_checkpoint": _checkpoint(incident),
        "cost": asdict(cost_of(incident, shown.usd_per_gpu_hour, now)),
        "blind": list(blind),
        "links": _links(incident, shown),
    }


def body_text(status: str, incident: dict[str, Any]) -> str:
    """The body of a delivery: strict JSON, non-finite numbers as strings. ``status`` is a ``Turn``."""
    return dumps({"version": VERSION, "status": status, "incident": incident})


def _checkpoint(incident: Incident) -> dict[str, Any] | None:
    """The last good checkpoint, where a detector has proven one."""
    found = incident.evidence.get("last_good_checkpoint")
    if not isinstance(found, dict) or found.get("step") is None:
        return None
    return {"step": found["step"], "path": found.get("path")}


def _links(incident: Incident, shown: Presentation) -> dict[str, str | None]:
    base = None if shown.base_url is None else shown.base_url.rstrip("/")
    runbooks = None if shown.runbook_base_url is None else shown.runbook_base_url.rstrip("/")
    return {
        "incident": None if base is None else f"{base}/#/incidents/{incident.id}",
        "chart": None if base is None or incident.job is None else f"{base}/#/jobs/{quote(incident.job, safe='')}",
        "runbook": None if runbooks is None else f"{runbooks}/{incident.kind.value}",
        "silence": None,
    }
