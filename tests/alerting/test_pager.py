"""A gateway pages without a bus and without a store: at once, once, and with receipts that the alert role believes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from alerting import (
    Backoff,
    BadSetting,
    PageNotTaken,
    Pager,
    PagerOptions,
    ReportOutcome,
    Routing,
    Store,
    Tier,
)
from alerting.delivery import delivery_id
from alerting.letters import LETTERS_ON_THEIR_WAY_MAX
from alerting.pager import BLIND, IDS_MAX, PAGED_MAX, SCOPES_MAX
from alerting.receipts import NO_PAGE
from alerting.report import REPORT_BYTES_MAX, REPORT_ROWS_MAX
from telemetry_bus import (
    Bus,
    BusUnavailable,
    Finding,
    FrameError,
    FrameFault,
    FrameMaker,
    Severity,
    encode,
    findings_frame,
)
from tests.alerting.scenes import CLOCK, T0, Sender, finding, resolved, settings, spike
from tests.alerting.test_service import alerting
from tests.fakes.webhook_server import Answer, WebhookServer

QUICK = Backoff(first_seconds=0.01, max_seconds=0.05)
KEY = "job/leviathan-7b/attempt/2/nonfinite/1"


def report(*findings: Finding, source: str = "node-1/ripcord", sent: float | None = None) -> bytes:
    """``findings`` as a collector reports them; each report is a frame of its own."""
    now = CLOCK.now() if sent is None else sent
    return encode(findings_frame(FrameMaker(source, uuid.uuid4()), findings, now))


@asynccontextmanager
async def paging(*hooks: WebhookServer, **options: Any) -> AsyncIterator[Pager]:
    """Run a gateway's pager with a receiver for each of ``hooks``, under the names that :func:`alerting` gives them."""
    receivers = [settings(hook, f"ops{number}").build(CLOCK) for number, hook in enumerate(hooks)]
    chosen = PagerOptions(**({"backoff": QUICK} | options))
    async with Pager(receivers, Routing(), CLOCK, chosen) as pager:
        yield pager


async def test_a_critical_finding_is_paged_under_the_id_of_the_alert_role(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """The same finding gives the same delivery by either way, so that a receiver which honours ids sees one."""
    async with paging(hook) as pager:
        (receipt,) = await pager.page(report(finding()))
    async with alerting(bus, store, hook):
        await Sender(bus).send(finding())
        first, second = await hook.arrived(2)
    assert first.id == second.id == delivery_id(KEY, "firing", "ops0")
    assert receipt.startswith(f"ops0:{first.id}:")
    assert first.body["incident"]["id"] == second.body["incident"]["id"]
    assert len(hook.taken) == 1


async def test_a_page_of_a_gateway_says_what_nantucket_cannot_see(hook: WebhookServer) -> None:
    """Who is woken knows that the bus is away, and that this is all that a gateway knows."""
    async with paging(hook) as pager:
        await pager.page(report(finding()))
    (body,) = hook.taken
    assert body["incident"]["blind"] == [BLIND]
    assert "ripcord" in BLIND
    assert "bus is away" in BLIND
    assert body["incident"]["evidence"] == {"grad_norm": "NaN", "loss": 2.25, "nonfinite": 4096}


async def test_the_same_trouble_is_paged_once_and_every_reporter_gets_the_receipt(hook: WebhookServer) -> None:
    """The same finding again, one of another node, and a symptom of it: one page, and the same proof for each."""
    async with paging(hook) as pager:
        said = [finding(), finding(), finding("of node 2", rank=9, time=T0 + 1.0), spike()]
        receipts = [await pager.page(report(item, source=f"node-{n}/ripcord")) for n, item in enumerate(said)]
    assert len(set(receipts)) == 1
    assert len(hook.arrivals) == 1
    assert pager.stats.reports_total[ReportOutcome.TAKEN] == 4


async def test_reports_at_the_same_moment_are_one_page(hook: WebhookServer) -> None:
    """Sixty-four nodes of a job report within a second: one is sent, and all are answered."""
    async with paging(hook) as pager:
        reports = [report(finding(f"of {n}", rank=n), source=f"node-{n}/ripcord") for n in range(64)]
        receipts = await asyncio.gather(*(pager.page(payload) for payload in reports))
    assert len(set(receipts)) == 1
    assert len(hook.arrivals) == 1


async def test_what_pages_nobody_is_answered_so_that_nobody_asks_again(hook: WebhookServer) -> None:
    """A warning, an end, and what is not newer than the end: nobody is woken, and the answer is a receipt of nobody."""
    async with paging(hook) as pager:
        assert await pager.page(report(finding(severity=Severity.WARNING, job="b"))) == (NO_PAGE,)
        assert await pager.page(report(resolved(job="c"))) == (NO_PAGE,)
        assert await pager.page(report(finding("late", job="c"))) == (NO_PAGE,)
        assert pager.stats.reports_total[ReportOutcome.QUIET] == 3
    assert hook.arrivals == []


async def test_trouble_that_comes_again_during_an_outage_is_paged_again(hook: WebhookServer) -> None:
    """Its end was reported, so it is a new episode, with an id of its own."""
    async with paging(hook) as pager:
        await pager.page(report(finding()))
        await pager.page(report(resolved(severity=Severity.CRITICAL)))
        await pager.page(report(finding("again", time=T0 + 90.0)))
    keys = [arrival.body["incident"]["paging_key"] for arrival in hook.arrivals]
    assert keys == [KEY, KEY.removesuffix("1") + "2"]


async def test_a_receiver_that_fails_is_tried_again_within_the_deadline(hook: WebhookServer) -> None:
    """The rules of the receiver hold: 503 and 429 are tried again."""
    hook.answers.extend([Answer(503), Answer(429)])
    async with paging(hook) as pager:
        assert len(await pager.page(report(finding()))) == 1
    assert [arrival.answered for arrival in hook.arrivals] == [503, 429, 204]


async def test_a_page_that_nobody_takes_is_an_error_that_may_be_tried_again(hook: WebhookServer) -> None:
    """To whoever reports, it is as if the bus were away; the text says which page, why, and shows no secret."""
    hook.otherwise = Answer(503, body=b"closed for the night")
    async with paging(hook, page_seconds=0.2) as pager:
        with pytest.raises(PageNotTaken, match=delivery_id(KEY, "firing", "ops0")) as error:
            await pager.page(report(finding()))
        assert error.value.retryable
        assert isinstance(error.value, BusUnavailable)
        assert "closed for the night" in str(error.value)
        assert "nantucket-token-4711" not in str(error.value)
        assert pager.stats.reports_total[ReportOutcome.NOT_TAKEN] == 1
        hook.otherwise = Answer()
        assert len(await pager.page(report(finding()))) == 1
    assert len(hook.taken) == 1


async def test_sending_goes_on_when_whoever_reported_has_gone(hook: WebhookServer) -> None:
    """A connection that breaks ends no page: the receipt is there when the report comes again."""
    hook.otherwise = Answer(503)
    async with paging(hook) as pager:
        asking = asyncio.create_task(pager.page(report(finding())))
        await hook.arrived(1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        hook.otherwise = Answer()
        await hook.took(1)
        assert len(await pager.page(report(finding()))) == 1
    assert len(hook.taken) == 1


async def test_a_gateway_that_was_not_there_believes_the_receipts_of_another(hook: WebhookServer) -> None:
    """A report that comes to a second gateway, or to this one after a restart, brings its receipts: nothing is sent."""
    async with paging(hook) as first:
        receipts = await first.page(report(finding()))
    said = replace(finding(), evidence={"ripcord": {"receipts": list(receipts)}})
    async with paging(hook) as second:
        assert await second.page(report(said)) == receipts
        forged = replace(finding("f", job="b"), evidence={"ripcord": {"receipts": list(receipts)}})
        assert len(await second.page(report(forged))) == 1
    assert [arrival.body["incident"]["job"] for arrival in hook.arrivals] == ["leviathan-7b", "b"]


async def test_one_receiver_that_takes_it_is_enough(hook: WebhookServer) -> None:
    """Somebody knows; the receipts say who, and whoever does not is told by the alert role when the bus is back."""
    with WebhookServer(Answer(403)) as shut:
        async with paging(hook, shut) as pager:
            (receipt,) = await pager.page(report(finding()))
            assert receipt.startswith("ops0:")
            again = await pager.page(report(finding()))
        assert again == (receipt,)
        assert len(shut.arrivals) == 1  # what was refused is not tried again at once
    assert len(hook.arrivals) == 1


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"", FrameFault.TOO_SHORT, id="nothing"),
        pytest.param(b"x" * 4096, FrameFault.NOT_A_FRAME, id="no frame"),
        pytest.param(b"x" * (REPORT_BYTES_MAX + 1), FrameFault.TOO_LARGE, id="too large"),
        pytest.param(
            report(*[finding(str(n)) for n in range(REPORT_ROWS_MAX + 1)]), FrameFault.TOO_MANY_ROWS, id="rows"
        ),
        pytest.param(
            encode(FrameMaker("n/ticks").make("tick/1", {"time": [T0]}, T0)), FrameFault.WRONG_TOPIC, id="a tick"
        ),
    ],
)
async def test_what_is_no_report_is_refused_by_name(hook: WebhookServer, payload: bytes, reason: FrameFault) -> None:
    """It is counted, nobody is paged, and the next report is taken."""
    async with paging(hook) as pager:
        with pytest.raises(FrameError) as error:
            await pager.page(payload)
        assert error.value.reason is reason
        assert pager.stats.reports_total[ReportOutcome.REFUSED] == 1
        assert len(await pager.page(report(finding()))) == 1


async def test_the_clock_of_a_node_may_be_wrong(hook: WebhookServer) -> None:
    """What is said in the time of a node ten years ahead is told in the gateway's, and has an end like any other."""
    ahead = 10 * 365 * 86_400.0
    now = CLOCK.now()
    said = finding(time=now + ahead, onset_time=now + ahead - 0.25)
    async with paging(hook) as pager:
        await pager.page(report(said, sent=now + ahead))
        await pager.page(report(resolved(time=now + 60.0)))
        await pager.page(report(finding("again", time=now + 90.0)))
    first, second = (arrival.body["incident"] for arrival in hook.arrivals)
    assert abs(first["detected_time"] - now) < 1.0
    assert abs(first["onset_time"] - now + 0.25) < 1.0
    assert second["paging_key"].endswith("/2")


async def test_a_clock_that_was_set_right_since_the_finding_leaves_nothing_in_the_future(hook: WebhookServer) -> None:
    """No offset is measured any more, so the moment of the report is the latest that it can have been."""
    now = CLOCK.now()
    async with paging(hook) as pager:
        await pager.page(report(finding(time=now + 1e9, onset_time=now + 1e9)))
    (body,) = hook.taken
    assert abs(body["incident"]["detected_time"] - now) < 30.0


async def test_a_pager_that_follows_the_bus_counts_episodes_on(bus: Bus, hook: WebhookServer) -> None:
    """Trouble that was over before the outage is another episode when it comes again: another id, which is not dropped
    by a receiver that has taken the first."""
    async with paging(hook) as pager:
        following = asyncio.create_task(pager.follow(bus))
        await Sender(bus).send(finding(), resolved())
        while not pager.knows(resolved()):
            await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.wait([following])
        await pager.page(report(finding("in the outage", time=T0 + 90.0)))
    (body,) = hook.taken
    assert body["incident"]["paging_key"].endswith("/2")


async def test_what_the_bus_had_before_it_went_away_is_sent_under_its_id(bus: Bus, hook: WebhookServer) -> None:
    """Whether the alert role has read it is not known, so it is told; a receiver that has it drops it by its id."""
    async with paging(hook) as pager:
        pager.learn([finding()])
        (receipt,) = await pager.page(report(finding()))
    assert hook.arrivals[0].id == delivery_id(KEY, "firing", "ops0")
    assert receipt.split(":")[1] == hook.arrivals[0].id


async def test_what_is_remembered_is_bounded_and_what_is_forgotten_keeps_its_ids(hook: WebhookServer) -> None:
    """However many jobs and findings come, the memory has an end; a page that is sent again has the same id."""
    async with paging(hook) as pager:
        await pager.page(report(finding()))
        pager.learn(finding(f"id {n}", time=T0 + 1.0 + n) for n in range(2 * IDS_MAX))
        assert pager.remembered == (1, IDS_MAX, 1)
        pager.learn(finding(f"other {n}", job=f"job-{n}") for n in range(SCOPES_MAX))
        assert pager.remembered == (SCOPES_MAX, SCOPES_MAX, 0)
        await pager.page(report(finding()))
        for n in range(PAGED_MAX + 1):
            await pager.page(report(finding(f"{n} bad", job="flapping", time=T0 + 2.0 * n)))
            await pager.page(report(resolved(f"{n} well", job="flapping", time=T0 + 2.0 * n + 1.0)))
        assert pager.remembered[2] == PAGED_MAX + 1
    assert hook.arrivals[0].id == hook.arrivals[1].id


async def test_pages_on_their_way_are_bounded(hook: WebhookServer) -> None:
    """While receivers hang, a thousand pages are tried; one more is refused for now, and sent when there is room."""
    hook.otherwise = Answer(503)
    async with paging(hook, page_seconds=0.01, backoff=Backoff(first_seconds=60.0)) as pager:
        for start in range(0, LETTERS_ON_THEIR_WAY_MAX, REPORT_ROWS_MAX):
            count = min(REPORT_ROWS_MAX, LETTERS_ON_THEIR_WAY_MAX - start)
            with pytest.raises(PageNotTaken):
                await pager.page(report(*[finding(f"f{start + n}", job=f"job-{start + n}") for n in range(count)]))
        with pytest.raises(PageNotTaken, match=f"{LETTERS_ON_THEIR_WAY_MAX} others are on their way"):
            await pager.page(report(finding("one more", job="one more")))
        assert pager.waiting == LETTERS_ON_THEIR_WAY_MAX
    assert pager.waiting == 0


def test_a_pager_without_a_receiver_of_pages_cannot_be(hook: WebhookServer) -> None:
    """It would answer that nobody is to be woken."""
    with pytest.raises(BadSetting, match="at least one with the tier 'page'"):
        Pager([settings(hook, "desk", Tier.TICKET).build(CLOCK)], Routing(), CLOCK)
