"""Which findings stop a job, on a real bus: at most one a job and day, whoever issues it, and only what is proven."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from alerting.verdicts import FRESH_SECONDS, ONE_STOP_SECONDS, StopPolicy, VerdictIssuer
from nantucket._verdict import Judge
from telemetry_bus import Bus, Earliest, FindingKind, FindingState, Severity, Topic, decode
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.verdicts import Action, Verdict, nonce_of, signed, verdict_key, verdicts_in
from tests.alerting.scenes import CLOCK, T0, Sender, finding, resolved, spike

SECRET = Secret(bytes(range(32)))


def issued(job: str = "leviathan-7b", at: float = T0, name: str = "one") -> Verdict:
    """A verdict as the alert role issues it."""
    key = Secret(verdict_key(SECRET.reveal(), job))
    return signed(key, job=job, attempt="2", step=117, action=Action.STOP, nonce=nonce_of(name), now=at)


@asynccontextmanager
async def issuing(bus: Bus, source: str = "alert") -> AsyncIterator[VerdictIssuer]:
    """Run an issuer beside the block."""
    issuer = VerdictIssuer(bus, CLOCK, SECRET, source)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(issuer.run())
        yield issuer
        task.cancel()


async def on_the_bus(bus: Bus, number: int, job: str = "") -> list[Verdict]:
    """The verdicts that come, until there are so many, one of them on ``job``."""
    found: list[Verdict] = []
    async with asyncio.timeout(20), bus.subscribe([Topic.VERDICTS], Earliest()) as subscription:
        async for records in subscription:
            for record in records:
                found += verdicts_in(decode(record.payload))
            if len(found) >= number and (not job or job in {verdict.job for verdict in found}):
                return found
    raise AssertionError("the bus has ended")


async def test_a_nan_becomes_a_verdict_that_the_job_believes(bus: Bus) -> None:
    """From the finding to the job's own judge, with the real signature."""
    async with issuing(bus) as issuer:
        await Sender(bus).send(finding(time=CLOCK.now(), onset_step=116))
        (verdict,) = await on_the_bus(bus, 1)
        believed = Judge(verdict_key(SECRET.reveal(), "leviathan-7b"), "leviathan-7b", "2").believe(
            verdict.body(), CLOCK.now()
        )
    assert (believed.action, believed.step) == ("stop", 116)
    assert issuer.stats.issued == 1


async def test_a_job_is_stopped_once_a_day_though_the_issuer_is_started_again(bus: Bus) -> None:
    """What the log says was issued holds for the next process too; another job has its own day."""
    sender = Sender(bus)
    async with issuing(bus):
        await sender.send(finding("first", time=CLOCK.now()))
        await on_the_bus(bus, 1)
    async with issuing(bus, "alert again") as issuer:
        await sender.send(finding("second", time=CLOCK.now(), attempt="3"))
        await sender.send(finding("other", time=CLOCK.now(), job="another"))
        verdicts = await on_the_bus(bus, 2)
    assert [(verdict.job, verdict.attempt) for verdict in verdicts] == [("leviathan-7b", "2"), ("another", "2")]
    assert issuer.stats.held_back >= 1


async def test_two_copies_issue_what_counts_as_one(bus: Bus) -> None:
    """Both may write; the nonce is the finding's, and the job hears it once."""
    async with issuing(bus, "copy-1"), issuing(bus, "copy-2"):
        await Sender(bus).send(finding(time=CLOCK.now()))
        await on_the_bus(bus, 1)
        await Sender(bus).send(finding("last", time=CLOCK.now(), job="another"))
        verdicts = await on_the_bus(bus, 2, "another")
    assert len({verdict.nonce for verdict in verdicts if verdict.job == "leviathan-7b"}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"kind": FindingKind.STALL}, id="another-kind"),
        pytest.param({"severity": Severity.WARNING}, id="a-warning"),
        pytest.param({"state": FindingState.RESOLVED}, id="over"),
        pytest.param({"step": None}, id="no-step"),
        pytest.param({"attempt": None}, id="no-attempt"),
        pytest.param({"simulated": True}, id="simulated"),
        pytest.param({"time": T0 - FRESH_SECONDS - 1.0}, id="old"),
    ],
)
def test_what_is_not_proven_fresh_and_placed_stops_nothing(changes: dict[str, Any]) -> None:
    """Everything else asks a person."""
    assert StopPolicy().asks_for_stop(finding(), T0)
    assert not StopPolicy().asks_for_stop(finding(**changes), T0)


def test_statistics_stop_nothing() -> None:
    """A loss spike is no proof."""
    assert not StopPolicy().asks_for_stop(spike(time=T0), T0)
    assert not StopPolicy().asks_for_stop(resolved(), T0)


def test_the_day_ends_and_an_older_verdict_does_not_shorten_it() -> None:
    """A verdict that is read late, or twice, moves nothing."""
    policy = StopPolicy()
    policy.issued(issued(at=T0))
    policy.issued(issued(at=T0 - 3_600.0, name="older"))
    late = T0 + ONE_STOP_SECONDS
    assert not policy.asks_for_stop(finding("new", time=late - 1.0), late - 1.0)
    assert policy.asks_for_stop(finding("new", time=late), late)


def test_a_finding_that_is_read_again_is_not_issued_again() -> None:
    """After a day and a restart the same record may come once more."""
    policy = StopPolicy()
    policy.issued(issued(at=T0 - ONE_STOP_SECONDS, name="one"))
    assert not policy.asks_for_stop(finding("one"), T0)
