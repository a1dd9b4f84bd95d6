"""What Nantucket cannot see is said in every page, for as long as it is so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from alerting import IncidentReader, Store
from alerting.incident import Incident, Scope, Tier, opened
from alerting.sight import INCIDENTS_MAX, SAID_MAX, SENTENCES, Sight, sentence
from telemetry_bus import Bus, Finding, FindingKind, FindingState, Severity
from tests.alerting.scenes import CLOCK, T0, Sender, finding
from tests.alerting.test_service import alerting
from tests.alerting.test_store_away import held, recorded
from tests.fakes.webhook_server import WebhookServer

ELEVEN = 1_700_046_123.0  # 2023-11-15 11:02:03 UTC


def silent(name: str = "silent", who: str = "node-7/gpu", **changes: Any) -> Finding:
    """A source that sends nothing, as its detector says it."""
    given: dict[str, Any] = {
        "detector": "silent_source",
        "kind": FindingKind.SILENT_SOURCE,
        "severity": Severity.WARNING,
        "title": f"{who} has sent nothing for 15 s",
        "job": None,
        "attempt": None,
        "rank": None,
        "node": "node-7",
        "subject": who,
        "onset_time": ELEVEN,
        "evidence": {"count": 1, "names": [who]},
    }
    return finding(name, **(given | changes))


def incident(item: Finding) -> Incident:
    """The incident that ``item`` opens."""
    return opened(item, Scope.of(item), 1, Tier.TICKET)


@pytest.mark.parametrize(
    ("item", "now", "said"),
    [
        pytest.param(silent(), ELEVEN + 60, "node-7/gpu sends no frames since 11:02:03 UTC", id="today"),
        pytest.param(silent(), ELEVEN + 90_000, "node-7/gpu sends no frames since 2023-11-15 11:02:03 UTC", id="older"),
        pytest.param(
            silent(evidence={"count": 40, "names": list("abcdefgh")}),
            ELEVEN,
            "a, b, c and 37 more sends no frames since 11:02:03 UTC",
            id="a rack",
        ),
        pytest.param(silent(evidence={}), ELEVEN, "node-7/gpu sends no frames since 11:02:03 UTC", id="subject"),
        pytest.param(silent(evidence={}, subject=None), ELEVEN, "node-7 sends no frames since 11:02:03 UTC", id="node"),
        pytest.param(
            silent(simulated=True), ELEVEN, "[simulated] node-7/gpu sends no frames since 11:02:03 UTC", id="simulated"
        ),
        pytest.param(
            silent(onset_time=1e300),
            ELEVEN,
            "node-7/gpu sends no frames since a time that cannot be read",
            id="no time",
        ),
    ],
)
def test_a_sentence_says_who_and_since_when(item: Finding, now: float, said: str) -> None:
    """In words that a person who was woken understands."""
    assert sentence(incident(item), now) == said


def test_every_kind_of_blindness_has_a_sentence_and_trouble_of_jobs_has_none() -> None:
    """A page about a NaN does not make Nantucket blind."""
    for kind in FindingKind:
        said = Sight.of([incident(silent(kind=kind))]).sentences(ELEVEN)
        assert len(said) == (kind in SENTENCES)


def test_what_is_kept_and_what_is_said_is_bounded() -> None:
    """The newest are said, and how many are left out."""
    many = [incident(silent(str(n), who=f"node-{n}", time=T0 + n)) for n in range(INCIDENTS_MAX + 5)]
    sight = Sight.of(many)
    assert len(sight.open) == INCIDENTS_MAX
    said = sight.sentences(ELEVEN)
    assert said[0].startswith(f"node-{INCIDENTS_MAX + 4} ")
    assert (len(said), said[-1]) == (SAID_MAX + 1, f"and {INCIDENTS_MAX - SAID_MAX} more")


async def test_a_page_says_what_cannot_be_seen_until_it_can_be_seen_again(
    bus: Bus, store: Store, hook: WebhookServer
) -> None:
    """Also in the batch in which it is found, after a restart, and while the store is away; and it is taken back."""
    said = "node-7/gpu sends no frames since 2023-11-15 11:02:03 UTC"
    sender = Sender(bus)
    async with alerting(bus, store, hook):
        await sender.send(silent(), finding("a", job="a"))
        await hook.took(1)
        assert [item["blind"] for item in await IncidentReader(store, CLOCK).incidents()] == [[said], [said]]
    async with alerting(bus, store, hook):
        await sender.send(finding("b", job="b"))
        await hook.took(2)
        with held(store):
            await sender.send(finding("c", job="c"))
            await hook.took(3)
        await sender.send(replace(silent("over"), state=FindingState.RESOLVED, time=T0 + 9), finding("d", job="d"))
        bodies = await hook.took(4)
        await recorded(store, None, "a", "b", "c", "d")
    assert {body["incident"]["job"]: body["incident"]["blind"] for body in bodies} == {
        "a": [said],
        "b": [said],
        "c": [said],
        "d": [],
    }
    assert [item["blind"] for item in await IncidentReader(store, CLOCK).incidents()] == [[]] * 5


async def test_a_page_about_blindness_does_not_repeat_itself(bus: Bus, store: Store, hook: WebhookServer) -> None:
    """Each of two sees the other in its list, never itself."""
    critical = {"severity": Severity.CRITICAL}
    async with alerting(bus, store, hook):
        await Sender(bus).send(silent("x", "x", **critical), silent("y", "y", **critical))
        bodies = await hook.took(2)
    blind = {body["incident"]["paging_key"]: body["incident"]["blind"] for body in bodies}
    assert blind == {
        "node/node-7/subject/x/silent_source/1": [],
        "node/node-7/subject/y/silent_source/1": ["x sends no frames since 2023-11-15 11:02:03 UTC"],
    }
