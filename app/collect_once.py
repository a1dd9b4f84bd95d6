"""``nantucket collect --once``: every source of this node read once, and what would be sent."""

from app.output import console, print_json
from app.roles.collect import chosen_sources, source_options
from app.settings import Settings
from collectors.errors import CollectorError
from collectors.once import collect_once
from telemetry_bus.runtime.clock import SystemClock


async def collect_once_command(settings: Settings, *, as_json: bool) -> int:
    """Read every source of this node once and print what would be sent; 1 if nothing can be read."""
    out = console(as_json=as_json)
    clock = SystemClock()
    chosen = chosen_sources(settings, source_options(settings, keeps=False), clock)
    if not (chosen.named or chosen.found):
        out.print("There is nothing to read here: no NVIDIA driver was found. Try --simulate 8.", markup=False)
        return 1
    try:
        rows, unavailable = await collect_once(chosen.named, clock, optional=chosen.found, region=settings.region)
    except CollectorError as error:
        out.print(str(error), markup=False)
        return 1
    for name, why in unavailable.items():
        console(as_json=True).print(f"{name} is not read: {why}", markup=False)
    for row in rows:
        if as_json:
            print_json(row)
        else:
            out.print(" ".join(f"{name}={value}" for name, value in row.items() if value is not None), markup=False)
    return 0
