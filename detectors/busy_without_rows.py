"""busy_without_rows: GPUs of a node work, but no training job reports from there.

Either a job runs without the SDK and nobody watches it, or its reporting is broken. Simulated GPUs do no work. Where
the node's collector knows who uses the GPUs, it is said.

It needs to read everything: the rows of a job lie in the partition of the job, those of its GPUs in that of the node.
In a slice of several it is silent, for it would call every other job unreported.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detectors.detector import Detector, ReaderHealth
from detectors.errors import WrongSetting
from detectors.gpu_users import UsersOfNodes
from detectors.latch import Latch
from detectors.watching import firing, group_of, names, resolved
from detectors.windows import SeriesTable, not_from_the_future, rounds
from telemetry_bus.findings import Finding, FindingKind
from telemetry_bus.frames import Array, Frame
from telemetry_bus.ledger import CLOCK_STEP_SECONDS
from telemetry_bus.schemas import Severity
from telemetry_bus.topics import Topic

LONG_AGO = -1e18
"""Before every event, and finite: the difference of two infinities is a NaN."""
NODES_MAX = 65_536
"""The largest fleet that is planned for has 37,500 nodes."""
USERS_SAID = 8
"""Users that the evidence names, the largest first; the message names three."""
ADVICE = "Is the SDK in the job, and does its collector run?"


@dataclass(frozen=True, slots=True)
class BusyWithoutRows:
    """Settings: busy_percent of utilisation that counts as work, busy_seconds for which it must last, pause_seconds of
    rest that end it, include_simulated GPUs or not.
    """

    busy_percent: float = 50.0
    busy_seconds: float = 120.0
    pause_seconds: float = 30.0
    include_simulated: bool = False

    def __post_init__(self) -> None:
        for name in ("busy_percent", "busy_seconds", "pause_seconds"):
            if not getattr(self, name) > 0:
                raise WrongSetting("busy_without_rows", name, getattr(self, name), "a number above zero")

    def build(self) -> Detector:
        """A detector that has seen nothing yet."""
        return BusyWithoutRowsDetector(self)


def _blank() -> "np.ndarray[tuple[()], np.dtype[np.void]]":
    """``begun``, ``busy``: first and newest event time of the present stretch of work; ``told``: of training rows."""
    blank = np.zeros(
        (), dtype=[("seen", "f8"), ("begun", "f8"), ("busy", "f8"), ("told", "f8"), ("gpus", "i4"), ("simulated", "?")]
    )
    blank["begun"] = blank["busy"] = blank["told"] = LONG_AGO
    return blank


class BusyWithoutRowsDetector:
    """See the module's text."""

    name = "busy_without_rows"
    topics = frozenset({Topic.GPU, Topic.TRAIN, Topic.EVENTS})

    def __init__(self, config: BusyWithoutRows) -> None:
        self.config = config
        self.nodes = SeriesTable(_blank(), NODES_MAX)
        self._users = UsersOfNodes()
        self._latch = Latch(0.0, 0.0)
        self._nowhere = LONG_AGO
        """Event time of the newest training row that does not say its node: while such rows come, silence proves
        nothing."""

    def remember(self, finding: Finding, now: float) -> None:
        """Take up what was said before a restart."""
        self._latch.adopt(group_of(finding), now)

    def observe(self, frame: Frame) -> Sequence[Finding]:
        """Note which nodes work and which report."""
        if frame.rows and frame.schema_id == "gpu/1":
            self._work(frame)
        elif frame.rows and frame.schema_id == "event/1":
            self._users.observe(frame)
        elif frame.rows:
            self._report(frame)
        return ()

    def tick(self, now: float, health: ReaderHealth) -> Sequence[Finding]:
        """Find the nodes that have worked for long without a training row."""
        if health.part:
            return ()
        state, config = self.nodes.state, self.config
        for name in ("begun", "busy", "told"):
            not_from_the_future(state[name], now)
        self._nowhere = min(self._nowhere, now) if self._nowhere > now + CLOCK_STEP_SECONDS else self._nowhere
        if health.watching_since >= now - config.busy_seconds:
            return ()  # Nobody watched for long enough: nothing is said, and nothing is taken back.
        since = max(health.watching_since, self._nowhere)
        working = (state["busy"] >= now - config.pause_seconds) & (state["busy"] - state["begun"] > config.busy_seconds)
        untold = (state["told"] < now - config.busy_seconds) & (since < now - config.busy_seconds)
        slots = {
            self._name(slot): slot
            for slot in np.flatnonzero(working & untold).tolist()
            if self.nodes.keys[slot] is not None
        }
        raised, over = self._latch.update(now, slots)
        kind, severity = FindingKind.BUSY_WITHOUT_ROWS, Severity.WARNING
        found = []
        for group in raised:
            at = [slots[name] for name in group.names]
            gpus, since = int(state["gpus"][at].sum()), float(state["begun"][at].min())
            title = f"{gpus} GPUs busy, no training rows: {names(group)}"
            users = self._users.on(group.names, now)
            message = f"They have worked for {now - since:.0f} s{_used_by(users)}. {ADVICE}"
            said = [{"name": name, "gpus": count} for name, count in users[:USERS_SAID]]
            evidence = {
                "gpus": gpus,
                "busy_seconds": now - since,
                "busy_percent_limit": config.busy_percent,
                "users": said,
            }
            place = {
                "node": group.names[0] if len(group.names) == 1 else None,
                "simulated": bool(state["simulated"][at].any()),
            }
            found.append(firing(kind, severity, group, now, title, message, evidence, **place))
        for group in over:
            words = f"{names(group)}: training rows come, or the GPUs rest"
            found.append(resolved(kind, severity, group, now, words))
        for slot in self.nodes.silent(now):
            self._users.forget(self._name(slot))
            self.nodes.free(slot)
        return found

    def _name(self, slot: int) -> str:
        return (self.nodes.keys[slot] or ("", ""))[0]

    def _work(self, frame: Frame) -> None:
        slots, _new = self.nodes.slots(frame, "node", None)
        percent, valid = frame.numbers("gpu_utilization_percent")
        simulated, seconds = frame.numbers("simulated")[0], frame.times()
        self._note_seen(slots, seconds)
        counts = valid & (slots >= 0) & (self.config.include_simulated | ~simulated.astype(bool))
        with np.errstate(invalid="ignore"):
            busy = np.flatnonzero(counts & (percent > self.config.busy_percent))
        if not len(busy):
            return
        instants, which, gpus = np.unique(
            np.stack([slots[busy].astype(np.float64), seconds[busy]]), axis=1, return_index=True, return_counts=True
        )
        del instants
        order = np.argsort(which)
        rows, gpus = busy[which[order]], gpus[order]
        state = self.nodes.state
        for part in rounds(slots[rows]):
            slot, now = slots[rows[part]], seconds[rows[part]]
            fresh = now - state["busy"][slot] > self.config.pause_seconds
            state["begun"][slot[fresh]] = now[fresh]
            state["busy"][slot] = np.maximum(state["busy"][slot], now)
            state["gpus"][slot] = gpus[part]
            state["simulated"][slot] = simulated[rows[part]]

    def _note_seen(self, slots: Array, seconds: Array) -> None:
        """The newest time of each node. A node's rows stand together: of each stretch only the latest is looked at."""
        if not len(slots):
            return
        begins = np.flatnonzero(np.r_[True, slots[1:] != slots[:-1]])
        latest, of = np.maximum.reduceat(seconds, begins), slots[begins]
        np.maximum.at(self.nodes.state["seen"], of[of >= 0], latest[of >= 0])

    def _report(self, frame: Frame) -> None:
        seconds = frame.times()
        known = np.asarray(frame.batch.column("node").is_valid())
        if not known.all():
            self._nowhere = max(self._nowhere, float(seconds[~known].max()))
        slots, _new = self.nodes.slots(frame, "node", None)
        told = known & (slots >= 0)
        np.maximum.at(self.nodes.state["told"], slots[told], seconds[told])
        np.maximum.at(self.nodes.state["seen"], slots[told], seconds[told])


def _used_by(users: Sequence[tuple[str, int]]) -> str:
    """The largest users in words; empty where no collector knows any."""
    if not users:
        return ""
    more = len(users) - 3
    said = ", ".join(f"{name} ({count})" for name, count in users[:3])
    return f", used by {said}" + (f" and {more} more" if more > 0 else "")
