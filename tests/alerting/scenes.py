"""Findings as detectors send them, for the tests of alerting."""

from __future__ import annotations

import math
from typing import Any

from alerting import Secret, Tier, WebhookSettings
from telemetry_bus import Bus, Finding, FindingKind, FindingState, FrameMaker, Severity, Topic, encode, findings_frame
from telemetry_bus.runtime.clock import SystemClock
from tests.fakes.webhook_server import SECRET, WebhookServer

T0 = 1_700_000_000.0
CLOCK = SystemClock()


def finding(name: str = "one", **changes: Any) -> Finding:
    """A critical non-finite gradient of the job leviathan-7b, found at T0, with ``changes``."""
    given: dict[str, Any] = {
        "id": name,
        "time": T0,
        "detector": "nonfinite",
        "kind": FindingKind.NONFINITE,
        "state": FindingState.FIRING,
        "severity": Severity.CRITICAL,
        "title": "NaN in the gradient of layers.3.attn.wq at step 117",
        "job": "leviathan-7b",
        "attempt": "2",
        "rank": 3,
        "parameter": "layers.3.attn.wq",
        "step": 117,
        "onset_step": 117,
        "onset_time": T0 - 0.25,
        "world_size": 512,
        "ranks_affected": 1,
        "evidence": {"grad_norm": math.nan, "loss": 2.25, "nonfinite": 4096},
    }
    return Finding(**(given | changes))


def spike(name: str = "spike", **changes: Any) -> Finding:
    """A loss spike of the same job, one step earlier, whose place is not proven."""
    given: dict[str, Any] = {
        "detector": "loss_spike",
        "kind": FindingKind.LOSS_SPIKE,
        "time": T0 - 1.0,
        "title": "Loss 9.1 at step 116",
        "rank": None,
        "parameter": None,
        "step": 116,
        "onset_step": 116,
        "onset_time": T0 - 1.25,
        "ranks_affected": None,
        "evidence": {"loss": 9.1},
    }
    return finding(name, **(given | changes))


def resolved(name: str = "over", **changes: Any) -> Finding:
    """The end of the non-finite gradient, a minute later."""
    return finding(name, **({"state": FindingState.RESOLVED, "time": T0 + 60.0, "severity": Severity.INFO} | changes))


def settings(hook: WebhookServer, name: str = "ops", *tiers: Tier) -> WebhookSettings:
    """A webhook that leads to ``hook``."""
    return WebhookSettings(name, Secret(hook.url), Secret(SECRET), frozenset(tiers or {Tier.PAGE}))


class Sender:
    """A detector's side of the bus."""

    def __init__(self, bus: Bus, source: str = "detect") -> None:
        self._bus = bus
        self._maker = FrameMaker(source)

    async def send(self, *findings: Finding) -> None:
        """Publish ``findings`` as one frame, durable on return."""
        await self._bus.publish(Topic.FINDINGS, [encode(findings_frame(self._maker, findings, CLOCK.now()))])
