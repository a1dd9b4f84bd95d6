"""The alert role on a real bus, a real store and a real receiver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from alerting import AlertOptions, AlertService, Backoff, IncidentReader, Presentation, Routing, Store, Tier
from telemetry_bus import Bus, Severity
from tests.alerting.scenes import CLOCK, T0, Sender, finding, resolved, settings, spike
from tests.fakes.webhook_server import WebhookServer

QUICK = Backoff(first_seconds=0.01, max_seconds=0.05)


@asynccontextmanager
async def alerting(bus: Bus, store: Store, *hooks: WebhookServer, **options: object) -> AsyncIterator[AlertService]:
    """Run the alert role with a receiver for each of ``hooks``."""
    receivers = [settings(hook, f"ops{number}").build(CLOCK) for number, hook in enumerate(hooks)]
    chosen = AlertOptions(**({"backoff": QUICK} | options))  # type: ignore[arg-type]
    async with AlertService(bus, store, receivers, Routing(), CLOCK, chosen) as service:
        yield service


async def test_a_finding_becomes_a_signed_page_with_all_that_the_contract_says(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """The body of the webhook is the one of the contract: NaN is a string, absent is null."""
    shown = Presentation(2.0, "https://watch.example", "https://docs.example/runbooks")
    async with alerting(bus, store, hook, presentation=shown, blind=lambda: ["no rows of node-7"]):
        await Sender(bus).send(finding())
        (body,) = await hook.took(1)
    incident = body["incident"]
    so_far = incident["cost"].pop("usd_so_far")
    assert so_far > 0
    assert (body["version"], body["status"]) == (1, "firing")
    identity = incident.pop("id")
    assert incident == {
        "paging_key": "job/leviathan-7b/attempt/2/nonfinite/1",
        "kind": "nonfinite",
        "severity": "critical",
        "tier": "page",
        "title": "NaN in the gradient of layers.3.attn.wq at step 117",
        "message": "",
        "simulated": False,
        "job": "leviathan-7b",
        "attempt": "2",
        "region": None,
        "onset_step": 117,
        "onset_time": T0 - 0.25,
        "detected_step": 117,
        "detected_time": T0,
        "resolved_time": None,
        "where": {"rank": 3, "node": None, "gpu": None, "uuid": None, "parameter": "layers.3.attn.wq"},
        "evidence": {"grad_norm": "NaN", "loss": 2.25, "nonfinite": 4096},
        "likely_causes": [],
        "ranks_affected": 1,
        "gpus_affected": 1,
        "last_good_checkpoint": None,
        "cost": {"usd_per_hour": 1024.0},
        "blind": ["no rows of node-7"],
        "links": {
            "incident": f"https://watch.example/#/incidents/{identity}",
            "chart": "https://watch.example/#/jobs/leviathan-7b",
            "runbook": "https://docs.example/runbooks/nonfinite",
            "silence": None,
        },
    }
    assert hook.unsigned == 0


async def test_a_spike_then_a_nan_then_their_end_are_one_incident_told_in_order(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """One incident per cause: the page is corrected when more is known, and ends when all of it is over."""
    async with alerting(bus, store, hook):
        sender = Sender(bus)
        for item in (spike(), finding(), resolved("nan over"), resolved("spike over", kind=spike().kind)):
            await sender.send(item)
        bodies = await hook.took(3)
    assert [body["status"] for body in bodies] == ["firing", "updated", "resolved"]
    assert len({body["incident"]["id"] for body in bodies}) == 1
    assert [body["incident"]["where"]["parameter"] for body in bodies] == [None, "layers.3.attn.wq", "layers.3.attn.wq"]
    assert [body["incident"]["kind"] for body in bodies] == ["loss_spike", "nonfinite", "nonfinite"]
    assert {body["incident"]["onset_step"] for body in bodies} == {116}
    (shown,) = await IncidentReader(store, CLOCK).incidents()
    assert (shown["status"], shown["findings"]) == ("resolved", 4)


async def test_only_the_tiers_of_a_receiver_reach_it(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """A warning is a ticket: it wakes nobody, it is recorded, and it reaches who takes tickets."""
    with WebhookServer() as desk:
        receivers = [settings(hook, "ops").build(CLOCK), settings(desk, "desk", Tier.TICKET).build(CLOCK)]
        async with AlertService(bus, store, receivers, Routing(), CLOCK):
            await Sender(bus).send(
                spike(severity=Severity.WARNING),
                finding("info", severity=Severity.INFO, job="b"),
                finding("page", job="c"),
            )
            await hook.took(1)
            await desk.took(1)
        assert [arrival.body["incident"]["job"] for arrival in hook.arrivals] == ["c"]
        assert [arrival.body["incident"]["tier"] for arrival in desk.arrivals] == ["ticket"]
    assert len(await IncidentReader(store, CLOCK).incidents()) == 3
