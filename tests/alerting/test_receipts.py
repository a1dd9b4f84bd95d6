"""What a gateway has paged is not paged again: the alert role believes a receipt, and nothing that looks like one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from alerting import AlertService, IncidentReader, ReceiptOutcome, Store
from telemetry_bus import Bus, Finding, FrameMaker, Topic, encode, findings_frame
from tests.alerting.scenes import CLOCK, T0, Sender, finding, resolved, spike
from tests.alerting.test_pager import KEY, paging, report
from tests.alerting.test_service import alerting
from tests.alerting.test_store_away import held
from tests.fakes.webhook_server import WebhookServer


def back(item: Finding, receipts: Sequence[str]) -> Finding:
    """``item`` as a collector brings it when the bus is back."""
    return replace(item, evidence={**item.evidence, "ripcord": {"receipts": list(receipts)}})


async def incidents(store: Store, count: int = 1) -> list[dict[str, Any]]:
    """Wait until the store has ``count`` incidents, and return them, newest first."""
    reader = IncidentReader(store, CLOCK)
    while len(found := await reader.incidents()) < count:
        await asyncio.sleep(0.01)
    return found


async def judged(service: AlertService, outcome: ReceiptOutcome, count: int = 1) -> None:
    """Wait until ``count`` receipts have had this outcome."""
    while service.stats.receipts_total[outcome] < count:
        await asyncio.sleep(0.01)


async def test_what_a_gateway_has_paged_is_recorded_as_delivered_and_not_sent(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """One page in the end: the incident shows who has been told, and how it goes on is told as usual."""
    async with paging(hook) as pager:
        receipts = await pager.page(report(finding()))
    async with alerting(bus, store, hook) as service:
        sender = Sender(bus)
        await sender.send(back(finding(), receipts))
        (incident,) = await incidents(store)
        delivery = {"receiver": "ops0", "transition": "firing", "state": "delivered", "attempts": 0, "last_error": None}
        assert incident["deliveries"] == [delivery]
        assert incident["evidence"]["ripcord"] == {"told": ["ops0"]}
        await sender.send(resolved())
        bodies = await hook.took(2)
    assert [body["status"] for body in bodies] == ["firing", "resolved"]
    assert len(hook.arrivals) == 2
    assert service.stats.receipts_total == {
        ReceiptOutcome.ACCEPTED: 1, ReceiptOutcome.UNUSED: 0, ReceiptOutcome.INVALID: 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(lambda receipt: receipt[:-1] + ("A" if receipt[-1] != "A" else "B"), id="another signature"),
        pytest.param(lambda receipt: receipt.replace("ops0", "ops1"), id="another receiver"),
        pytest.param(lambda _receipt: "ops0", id="no receipt"),
    ],
)
async def test_a_forged_receipt_is_counted_and_the_page_is_sent(
    bus: Bus, store: Store, hook: WebhookServer, forged: Any
) -> None:
    """Nobody can keep a page from being sent without the receiver's secret."""
    async with paging(hook) as pager:
        (receipt,) = await pager.page(report(finding(job="known to the forger")))
    async with alerting(bus, store, hook) as service:
        await Sender(bus).send(back(finding(), [forged(receipt)]))
        await hook.took(2)
        await judged(service, ReceiptOutcome.INVALID)
    assert service.stats.receipts_total[ReceiptOutcome.ACCEPTED] == 0


async def test_a_receipt_of_other_trouble_spares_no_page(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """A true receipt, replayed with another job's finding, or with the next episode of the same, is worth nothing."""
    async with paging(hook) as pager:
        receipts = await pager.page(report(finding()))
    async with alerting(bus, store, hook) as service:
        sender = Sender(bus)
        await sender.send(back(finding("another job", job="b"), receipts))
        await sender.send(back(finding(), receipts), resolved())
        await sender.send(back(finding("next episode", time=T0 + 90.0), receipts))
        bodies = await hook.took(4)
    pages = [body["incident"]["paging_key"] for body in bodies if body["status"] == "firing"]
    assert sorted(pages) == sorted([KEY, "job/b/attempt/2/nonfinite/1", KEY.removesuffix("1") + "2"])
    assert service.stats.receipts_total[ReceiptOutcome.ACCEPTED] == 1
    assert service.stats.receipts_total[ReceiptOutcome.UNUSED] == 2


async def test_only_the_receiver_that_has_taken_it_is_spared(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """Whoever was not reached by the gateway is paged when the bus is back."""
    with WebhookServer() as second:
        async with paging(hook) as pager:
            receipts = await pager.page(report(finding()))
        async with alerting(bus, store, hook, second):
            await Sender(bus).send(back(finding(), receipts))
            await second.took(1)
    assert len(hook.arrivals) == 1


async def test_a_receipt_that_comes_after_the_alert_role_found_the_trouble_itself_makes_no_second_incident(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """A live row of another node may be quicker: the same key gives the same id, which the receiver knows already."""
    async with paging(hook) as pager:
        receipts = await pager.page(report(finding("of node 1")))
    async with alerting(bus, store, hook) as service:
        await Sender(bus).send(finding("of the detectors", time=T0 + 40.0))
        await hook.arrived(2)
        await Sender(bus, "node-1/ripcord").send(back(finding("of node 1"), receipts))
        await judged(service, ReceiptOutcome.UNUSED)
        assert len(await incidents(store)) == 1
    assert len(hook.taken) == 1


async def test_a_receipt_ends_a_delivery_that_still_waits(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """The alert role could not reach the receiver, a gateway had: nothing is left to be sent."""
    async with paging(hook) as pager:
        receipts = await pager.page(report(finding()))
    dead = WebhookServer()
    dead.close()
    async with alerting(bus, store, dead) as service:
        await Sender(bus).send(finding("of the detectors", time=T0 + 40.0))
        (incident,) = await incidents(store)
        assert incident["deliveries"][0]["state"] == "pending"
        await Sender(bus, "node-1/ripcord").send(back(finding(), receipts))
        await judged(service, ReceiptOutcome.ACCEPTED)
        (incident,) = await incidents(store)
        assert incident["deliveries"][0]["state"] == "delivered"


async def test_a_page_under_the_name_of_another_symptom_is_the_page_of_the_incident(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """A gateway saw the NaN first, the alert role the spike before it: one cause, one page."""
    async with paging(hook) as pager:
        receipts = await pager.page(report(finding()))
        assert await pager.page(report(spike())) == receipts
    async with alerting(bus, store, hook):
        await Sender(bus).send(back(spike(), receipts), back(finding(), receipts))
        bodies = await hook.took(2)
    assert [body["status"] for body in bodies] == ["firing", "updated"]


async def test_a_receipt_is_believed_while_the_store_is_away(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """Neither the paging without the store nor the recording afterwards sends what was taken."""
    async with paging(hook) as pager:
        receipts = await pager.page(report(finding()))
    async with alerting(bus, store, hook) as service:
        with held(store):
            await Sender(bus).send(back(finding(), receipts), finding("other", job="b"))
            await hook.took(2)
        (*_, incident) = [item for item in await incidents(store, 2) if item["job"] == "leviathan-7b"]
        assert incident["deliveries"][0]["state"] == "delivered"
        assert service.stats.receipts_total[ReceiptOutcome.ACCEPTED] == 1
    assert len(hook.arrivals) == 2


async def test_a_finding_with_receipts_that_comes_twice_is_counted_once(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """A collector that is killed between publishing and noting it publishes again."""
    async with paging(hook) as pager:
        receipts = await pager.page(report(finding()))
    async with alerting(bus, store, hook) as service:
        for source in ("first", "second"):
            await Sender(bus, source).send(back(finding(), receipts))
        while not service.stats.findings_again_total:
            await asyncio.sleep(0.01)
    assert service.stats.receipts_total[ReceiptOutcome.ACCEPTED] == 1
    assert len(hook.arrivals) == 1


@pytest.mark.parametrize("ahead", [10 * 365 * 86_400.0, -10 * 365 * 86_400.0], ids=["ahead", "behind"])
async def test_a_finding_of_a_node_with_a_wrong_clock_is_on_the_buss_clock(
    bus: Bus, store: Store, hook: WebhookServer, ahead: float
) -> None:
    """Trouble that was told in the time of a wrong clock has an end, which the detectors say in the bus's time."""
    now = CLOCK.now()
    said = back(finding(time=now + ahead, onset_time=now + ahead - 1.0), [])
    async with alerting(bus, store, hook):
        frame = findings_frame(FrameMaker("node-1/ripcord"), [said], now + ahead)
        await bus.publish(Topic.FINDINGS, [encode(frame)])
        await Sender(bus).send(resolved(time=now + 30.0))
        bodies = await hook.took(2)
    assert [body["status"] for body in bodies] == ["firing", "resolved"]
    assert abs(bodies[0]["incident"]["onset_time"] - now) < 30.0


async def test_findings_of_detectors_are_in_the_buss_time_already(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """The clock of the machine that detects may be wrong: what it says of rows is of their time."""
    async with alerting(bus, store, hook):
        frame = findings_frame(FrameMaker("detect"), [finding()], CLOCK.now() + 1e6)
        await bus.publish(Topic.FINDINGS, [encode(frame)])
        (body,) = await hook.took(1)
    assert body["incident"]["detected_time"] == T0
