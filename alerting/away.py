"""What the service does while the store is away: it holds findings, and works out the pages that cannot wait.

Pages are made by the same planner with the same ids, on the scenes that the service has seen itself. Of a scope that it
has not seen since it started, it takes the episode for the first one; then a page that is recorded later may carry
another episode than the one sent (docs/alerting.md).
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from alerting.delivery import Delivery
from alerting.group import Change, Scene
from alerting.incident import Scope
from alerting.plan import Planner
from alerting.sight import Sight
from telemetry_bus.findings import Finding
from telemetry_bus.schemas import Severity

SCOPES_REMEMBERED_MAX = 4096
"""Jobs and nodes with trouble; the longest untouched is forgotten first. Some 4 KB each: 16 MB."""
IDS_REMEMBERED_MAX = 100_000
"""Findings that were looked at while the store is away; some 150 bytes each: 15 MB. One that comes again after it was
forgotten joins the incident that it has made, which tells nobody."""
FINDINGS_HELD_MAX = 10_000
"""Some 2 KB each: 20 MB. Beyond that reading waits: what is on the bus is durable there, and nothing is dropped."""
FINDINGS_AT_ONCE_MAX = 100
"""In one transaction: 3 ms each (measured on a busy machine) are 0.3 s, a third of the store's deadline."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Findings that are taken together, and the positions (partition: next offset) behind them in the log ``log``."""

    findings: Sequence[Finding]
    following: dict[int, int]
    log: str


class Memory:
    """The scenes that this process has seen, and what it knows of Nantucket's own sight."""

    def __init__(self) -> None:
        self._scenes: OrderedDict[Scope, Scene] = OrderedDict()
        self.sight = Sight()

    def learn(self, change: Change) -> None:
        """Remember ``change``."""
        scope = Scope.of(change.finding)
        scene = self.scene(scope)
        self.sight = self.sight.after(change)
        self._scenes[scope] = scene.after(change)
        self._scenes.move_to_end(scope)
        while len(self._scenes) > SCOPES_REMEMBERED_MAX:
            self._scenes.popitem(last=False)

    def scene(self, scope: Scope) -> Scene:
        """What is remembered of ``scope``: at least the incidents there that are in sight."""
        known = self._scenes.get(scope)
        if known is None:
            return Scene(open=tuple(item for item in self.sight.open.values() if item.scope == scope))
        return known


class Foresight:
    """What will come of findings that are not recorded yet."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._foreseen: OrderedDict[Scope, Scene] = OrderedDict()
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._sight: Sight | None = None

    def pages(self, findings: Sequence[Finding], planner: Planner, now: float, blind: Sequence[str]) -> list[Delivery]:
        """The deliveries of ``findings`` that cannot wait: those of critical ones."""
        urgent: list[Delivery] = []
        sight = self._memory.sight if self._sight is None else self._sight
        for finding in findings:
            if finding.id in self._ids:
                continue
            self._ids[finding.id] = None
            scope = Scope.of(finding)
            scene = self._foreseen.get(scope, self._memory.scene(scope))
            planned = planner.plan(scene, finding, now, blind, sight)
            sight = sight.after(planned.change)
            self._foreseen[scope] = scene.after(planned.change)
            self._foreseen.move_to_end(scope)
            if finding.severity is Severity.CRITICAL:
                urgent.extend(planned.unsent)
        self._sight = sight
        while len(self._foreseen) > SCOPES_REMEMBERED_MAX:
            self._foreseen.popitem(last=False)
        while len(self._ids) > IDS_REMEMBERED_MAX:
            self._ids.popitem(last=False)
        return urgent

    def forget(self) -> None:
        """The store has taken everything: what was foreseen is now known."""
        self._sight = None
        self._foreseen.clear()
        self._ids.clear()


class Held:
    """Batches that wait for the store, oldest first."""

    def __init__(self) -> None:
        self.batches: deque[Batch] = deque()

    @property
    def findings(self) -> int:
        """How many findings wait."""
        return sum(len(batch.findings) for batch in self.batches)
