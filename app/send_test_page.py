"""``nantucket alerts test RECEIVER``: a real, signed page to one receiver."""

from alerting.errors import UnknownReceiver
from alerting.testpage import send_test_page as send
from app.output import console, print_json
from app.roles.alert import receivers_of
from app.settings import Settings
from telemetry_bus.runtime.clock import SystemClock


async def send_test_page(settings: Settings, receiver: str, *, as_json: bool) -> int:
    """Send it and say what came of it: 0 if it was taken, 1 if not, 2 if no such receiver is configured."""
    clock = SystemClock()
    out = console(as_json=as_json)
    try:
        result = await send(receivers_of(settings, clock), receiver, clock)
    except UnknownReceiver as error:
        out.print(str(error), markup=False)
        return 2
    if as_json:
        print_json(
            {
                "ok": result.taken,
                "receiver": receiver,
                "status": result.status,
                "seconds": round(result.seconds, 3),
                "message": result.message,
            }
        )
    else:
        out.print(f"{result.message} ({result.seconds * 1000:.0f} ms)", markup=False)
    return 0 if result.taken else 1
