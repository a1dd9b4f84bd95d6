"""``nantucket annotate JOB TEXT``: an operator announces a change, as a job does with ``run.note``."""

import contextlib

from app.output import console, print_json
from app.settings import Settings
from app.up import outlet_of
from telemetry_bus.frames import FrameMaker, encode
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.schemas import EventKind
from telemetry_bus.topics import Topic


async def annotate(
    settings: Settings, clock: Clock, job: str, text: str, *, attempt: str | None, step: int | None, as_json: bool
) -> int:
    """Publish it; durable on return."""
    row = {"time": clock.now(), "kind": EventKind.ANNOUNCED_CHANGE.value, "job": job, "attempt": attempt, "step": step}
    row |= {"message": text, "detail": '{"by": "operator"}', "node": settings.node, "simulated": False}
    async with contextlib.AsyncExitStack() as stack:
        _, outlet = await outlet_of(settings, clock, stack)
        frame = FrameMaker(f"{settings.node}/annotate").make(
            "event/1", {name: [value] for name, value in row.items()}, clock.now()
        )
        await outlet.publish(Topic.EVENTS, [encode(frame)], job)
    if as_json:
        print_json({"job": job, "text": text, "time": row["time"]})
    else:
        console(as_json=False).print(f"announced to {job}: {text}", markup=False)
    return 0
