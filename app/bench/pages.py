"""What a benchmark's receiver got, held against what happened."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from app.bench.machine import percentiles
from app.processes import Talking


def firing_pages(receiver: Talking) -> list[tuple[str, int]]:
    """Job and moment (monotonic nanoseconds) of every firing page that the receiver took, repetitions included."""
    bodies = [line for line in receiver.lines if line.get("verified")]
    return [
        (line["body"]["incident"]["job"], line["monotonic_ns"])
        for line in bodies
        if line["body"]["status"] == "firing" and line["body"]["incident"]["job"] is not None
    ]


def judge(stamps: Mapping[str, int], pages: list[tuple[str, int]]) -> dict[str, Any]:
    """Latencies of the first page of each job, jobs without one, and pages that repeat or belong to no job."""
    first: dict[str, int] = {}
    for job, moment in pages:
        first.setdefault(job, moment)
    latencies = [(first[job] - stamp) / 1e6 for job, stamp in stamps.items() if job in first]
    counted = Counter(job for job, _ in pages)
    doubled = sum(number - 1 for job, number in counted.items() if job in stamps)
    return {**percentiles(latencies), "lost": len(stamps) - len(latencies), "duplicated": doubled}
