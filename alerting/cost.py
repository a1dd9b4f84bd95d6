"""What trouble costs: the GPUs that are held by it, times what an hour of one costs. Pure."""

from dataclasses import dataclass

from alerting.incident import Incident

USD_PER_GPU_HOUR = 2.0
"""What an hour of one H100 costs on a long contract; set your own."""


@dataclass(frozen=True, slots=True)
class Cost:
    """``None`` where the number of GPUs or the onset is not known: not known is not free."""

    usd_per_hour: float | None
    usd_so_far: float | None


def cost_of(incident: Incident, usd_per_gpu_hour: float, now: float) -> Cost:
    """The cost of ``incident`` as of ``now`` (UTC seconds), or of its end if it is over.

    A job that has gone wrong costs all of its GPUs (its world size), not only those that show it.
    """
    gpus = incident.world_size if incident.world_size is not None else incident.gpus_affected
    if gpus is None:
        return Cost(None, None)
    usd_per_hour = gpus * usd_per_gpu_hour
    if incident.onset_time is None:
        return Cost(round(usd_per_hour, 2), None)
    until = now if incident.resolved_time is None else incident.resolved_time
    return Cost(round(usd_per_hour, 2), round(usd_per_hour * max(0.0, until - incident.onset_time) / 3600, 2))
