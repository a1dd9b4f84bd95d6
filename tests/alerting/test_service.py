"""The alert role on a real bus, a real store and a real receiver."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from alerting import (
    AlertOptions,
    AlertService,
    Backoff,
    BadSetting,
    IncidentReader,
    Outcome,
    Presentation,
    Routing,
    Secret,
    Store,
    Tier,
)
from telemetry_bus import (
    Bus,
    BusUnavailable,
    FrameFault,
    FrameMaker,
    Refusal,
    Severity,
    Topic,
    encode,
    findings_frame,
)
from tests.alerting.scenes import CLOCK, T0, Sender, finding, resolved, settings, spike
from tests.fakes.webhook_server import Answer, WebhookServer

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


async def test_what_is_no_finding_is_refused_and_the_rest_is_taken(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """One bad row or frame costs nothing else: it goes to the dead letters with its reason."""
    refused: list[Refusal] = []

    async def keep(refusal: Refusal) -> None:
        refused.append(refusal)

    maker = FrameMaker("detect")
    good = findings_frame(maker, [finding("a", job="a"), finding("b", job="b"), finding("c", job="c")], T0)
    columns: dict[str, Any] = {name: good.batch.column(name) for name in good.batch.schema.names}
    columns["kind"] = ["nonfinite", "an unheard of kind", "nonfinite"]
    async with alerting(bus, store, hook, dead_letter=keep) as service:
        payloads = [
            b"no frame",
            encode(maker.make("finding/1", columns, T0)),
            encode(maker.make("tick/1", {"time": [T0]}, T0)),
        ]
        await bus.publish(Topic.FINDINGS, payloads)
        bodies = await hook.took(2)
        await Sender(bus, "another").send(finding("d", job="d"))
        await hook.took(3)
        assert service.stats.refused_total == 3
    assert sorted(body["incident"]["job"] for body in bodies) == ["a", "c"]
    assert [refusal.reason for refusal in refused] == [
        FrameFault.TOO_SHORT,
        FrameFault.BAD_BATCH,
        FrameFault.WRONG_TOPIC,
    ]
    assert "number 1 (from 0)" in refused[1].message
    assert "an unheard of kind" in refused[1].message


async def test_a_dead_letter_that_cannot_be_written_stops_nothing(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """The service counts it and goes on."""

    async def fails(_refusal: Refusal) -> None:
        raise BusUnavailable("file:///", "append", OSError("disk full"))

    async with alerting(bus, store, hook, dead_letter=fails) as service:
        await bus.publish(Topic.FINDINGS, [b"no frame"])
        await Sender(bus).send(finding())
        await hook.took(1)
        assert service.stats.dead_letters_lost_total == 1


async def test_a_delivery_is_tried_again_until_it_is_taken(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """Every fault that may pass is tried again under the same id; the tries are counted by what came of them."""
    hook.answers.extend([Answer(503), Answer(429, {"retry-after": "0"}), Answer(408)])
    async with alerting(bus, store, hook) as service:
        await Sender(bus).send(finding())
        await hook.took(1)
        assert len({arrival.id for arrival in hook.arrivals}) == 1
        assert [arrival.answered for arrival in hook.arrivals] == [503, 429, 408, 204]
        assert service.stats.retries_total == 3
        assert (service.stats.tries_total[Outcome.NOT_NOW], service.stats.tries_total[Outcome.SERVER_ERROR]) == (2, 1)


async def test_a_delivery_that_nobody_takes_is_given_up_and_shown(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """After the horizon it is dead, with its reason; what comes later is sent."""
    hook.otherwise = Answer(500, body=b"on fire")
    brief = Backoff(first_seconds=0.01, max_seconds=0.01, horizon_seconds=0.05)
    reader = IncidentReader(store, CLOCK)
    async with alerting(bus, store, hook, backoff=brief):
        await Sender(bus).send(finding())
        while not (shown := await reader.incidents()) or shown[0]["deliveries"][0]["state"] != "dead":
            await asyncio.sleep(0.02)
    assert "too_old: given up after" in shown[0]["deliveries"][0]["last_error"]
    assert "answered 500: on fire" in shown[0]["deliveries"][0]["last_error"]


async def test_a_receiver_that_hangs_delays_no_other(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """Receivers do not wait for each other, and neither do incidents."""
    hung = threading.Event()
    with WebhookServer(Answer(before=lambda _id: hung.wait(30))) as slow:
        async with alerting(bus, store, slow, hook):
            await Sender(bus).send(*(finding(str(number), job=str(number)) for number in range(20)))
            await hook.took(20)
            assert slow.arrivals == []
            hung.set()


async def test_updates_of_a_page_wait_until_it_is_taken(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """Order holds through failures: what is not taken holds back what follows in its incident only."""
    hook.answers.extend([Answer(503)] * 3)
    async with alerting(bus, store, hook):
        await Sender(bus).send(spike(), finding(), resolved(), resolved("end", kind=spike().kind))
        bodies = await hook.took(3)
    assert [body["status"] for body in bodies] == ["firing", "updated", "resolved"]
    assert [arrival.answered for arrival in hook.arrivals] == [503, 503, 503, 204, 204, 204]


async def test_the_heart_beats_only_while_findings_would_become_pages(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """A blind watcher must not look healthy."""
    beats = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /beat/t0ken ")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        beats.set()

    outside = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with outside:
        url = Secret(f"http://127.0.0.1:{outside.sockets[0].getsockname()[1]}/beat/t0ken")
        async with alerting(bus, store, hook, heartbeat_url=url, heartbeat_seconds=0.05) as service:
            await beats.wait()
            other = sqlite3.connect(store.path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            await Sender(bus).send(finding())
            await hook.took(1)
            withheld, sent = service.stats.heartbeats_withheld_total, service.stats.heartbeats_total
            while service.stats.heartbeats_withheld_total < withheld + 3:
                await asyncio.sleep(0.02)
            assert service.stats.heartbeats_total == sent
            other.execute("ROLLBACK")
            other.close()
            beats.clear()
            await beats.wait()


async def test_whoever_watches_the_store_is_called_after_each_change(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """The page is up to date without polling: the incident first, then its delivery."""
    revisions: list[int] = []
    changed = asyncio.Event()
    async with alerting(bus, store, hook, on_change=changed.set):
        await Sender(bus).send(finding())
        while True:
            await changed.wait()
            changed.clear()
            revision, incidents = await store.changed_since(0, 10)
            revisions.append(revision)
            if incidents and incidents[0].deliveries[0]["state"] == "delivered":
                break
    assert revisions == sorted(revisions)


def test_a_heartbeat_that_cannot_be_names_its_key_and_not_its_secret() -> None:
    """The message says which key of the configuration to change; the URL, which often holds a token, is not in it."""
    with pytest.raises(BadSetting, match=r"^alert\.heartbeat_url: expected https://HOST/PATH") as refused:
        AlertOptions(heartbeat_url=Secret("t0ken.example"))
    assert "t0ken" not in str(refused.value)


async def test_two_receivers_cannot_have_one_name(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """A name is in the delivery's id, so it must say who is meant."""
    twice = [settings(hook).build(CLOCK), settings(hook).build(CLOCK)]
    with pytest.raises(BadSetting, match="a different name for each receiver"):
        AlertService(bus, store, twice, Routing(), CLOCK)
