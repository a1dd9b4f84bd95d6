"""From an exception that ends a command to its exit status and a sentence for whoever typed it."""

from collections.abc import Iterator

from alerting.errors import AlertingError, BadSetting, UnknownReceiver
from app.bench.prometheus_peer import PeerMissing
from app.processes import ProcessFailed
from app.settings import SettingsError
from collectors.errors import CollectorError, UnknownSource
from dashboards.errors import DashboardError, TokenRequired
from telemetry_bus.errors import BusClosed, BusError, UnknownBus, UnsuitableFolder
from telemetry_bus.gateway.errors import OpenToAll

FAILED, MISUSED = 1, 2
_MISUSE = (
    SettingsError,
    BadSetting,
    UnknownReceiver,
    UnknownSource,
    TokenRequired,
    UnknownBus,
    UnsuitableFolder,
    OpenToAll,
)
_KNOWN = (AlertingError, BusError, CollectorError, DashboardError, PeerMissing, ProcessFailed, SettingsError)


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit status and message where all that went wrong is an error of ours; ``None`` for a fault of the program."""
    leaves = _causes(error)
    if not leaves or not all(isinstance(leaf, _KNOWN) for leaf in leaves):
        return None
    status = MISUSED if any(isinstance(leaf, _MISUSE) for leaf in leaves) else FAILED
    return status, "\n".join(dict.fromkeys(str(leaf) for leaf in leaves))


def fault_of(error: BaseException) -> BaseException:
    """The first fault of the program in ``error``: what is shown with its traceback, without the groups around it."""
    causes = _causes(error)
    return next((cause for cause in causes if not isinstance(cause, _KNOWN)), causes[0] if causes else error)


def _causes(error: BaseException) -> list[BaseException]:
    """The leaves, without those that only say that the others ended the process."""
    leaves = list(_leaves(error))
    return [leaf for leaf in leaves if not isinstance(leaf, BusClosed)] or leaves


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside nested groups, which is what task groups make of one."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
