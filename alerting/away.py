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
from telemetry_bus.findings import Finding
from telemetry_bus.schemas import Severity

SCOPES_REMEMBERED_MAX = 4096
"""Jobs and nodes with trouble; the longest untouched is forgotten first. Some 4 KB each: 16 MB."""
FINDINGS_HELD_MAX = 10_000
"""Some 2 KB each: 20 MB. Beyond that reading waits: what is on the bus is durable there, and nothing is dropped."""
FINDINGS_AT_ONCE_MAX = 100
"""In one transaction: 3 ms each (measured on a busy machine) are 0.3 s, a third of the store's deadline."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Findings that are taken together, and the positions (partition: next offset) behind them."""

    findings: Sequence[Finding]
    following: dict[int, int]


class Memory:
    """The scenes that this process has seen."""

    def __init__(self) -> None:
        self._scenes: OrderedDict[Scope, Scene] = OrderedDict()

    def learn(self, change: Change) -> None:
        """Remember ``change``."""
        scope = Scope.of(change.finding)
        self._scenes[scope] = self._scenes.get(scope, Scene()).after(change)
        self._scenes.move_to_end(scope)
        while len(self._scenes) > SCOPES_REMEMBERED_MAX:
            self._scenes.popitem(last=False)

    def scene(self, scope: Scope) -> Scene:
        """What is remembered of ``scope``."""
        return self._scenes.get(scope, Scene())


class Held:
    """Batches that wait for the store, oldest first, and what is foreseen to come of them."""

    def __init__(self, memory: Memory) -> None:
        self.batches: deque[Batch] = deque()
        self._memory = memory
        self._foreseen: dict[Scope, Scene] = {}
        self._ids: set[str] = set()

    @property
    def findings(self) -> int:
        """How many findings wait."""
        return sum(len(batch.findings) for batch in self.batches)

    def foresee(
        self, findings: Sequence[Finding], planner: Planner, now: float, blind: Sequence[str]
    ) -> list[Delivery]:
        """The deliveries of ``findings`` that cannot wait: those of critical ones."""
        urgent: list[Delivery] = []
        for finding in findings:
            if finding.id in self._ids:
                continue
            self._ids.add(finding.id)
            scope = Scope.of(finding)
            scene = self._foreseen.get(scope, self._memory.scene(scope))
            planned = planner.plan(scene, finding, now, blind)
            self._foreseen[scope] = scene.after(planned.change)
            if finding.severity is Severity.CRITICAL:
                urgent.extend(planned.deliveries)
        return urgent

    def forget(self) -> None:
        """The store has taken everything: what was foreseen is now known."""
        self._foreseen.clear()
        self._ids.clear()
