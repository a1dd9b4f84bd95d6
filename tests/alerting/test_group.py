"""Findings become incidents: one per cause, whatever the order in which they come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerting.body import Presentation
from alerting.delivery import Delivery
from alerting.group import JOIN_SECONDS, Change, Scene, Turn
from alerting.incident import Incident, Scope, Status, Tier, Where
from alerting.plan import Planner
from alerting.route import Routing
from telemetry_bus import Finding, FindingKind, FindingState, Severity
from tests.alerting.scenes import T0, finding, resolved, spike

PLANNER = Planner(
    Routing(), {"pager": frozenset({Tier.PAGE}), "desk": frozenset({Tier.PAGE, Tier.TICKET})}, Presentation()
)


class World:
    """Takes findings as the store does: each id once, scope by scope, all in memory."""

    def __init__(self) -> None:
        self.scenes: dict[Scope, Scene] = {}
        self.seen: set[str] = set()
        self.changes: list[Change] = []
        self.deliveries: list[Delivery] = []
        self.incidents: dict[str, Incident] = {}

    def take(self, *findings: Finding) -> World:
        """Take ``findings`` in order."""
        for item in findings:
            if item.id in self.seen:
                continue
            self.seen.add(item.id)
            scope = Scope.of(item)
            planned = PLANNER.plan(self.scenes.get(scope, Scene()), item, T0, ())
            self.scenes[scope] = self.scenes.get(scope, Scene()).after(planned.change)
            self.changes.append(planned.change)
            self.deliveries.extend(planned.deliveries)
            if planned.change.incident is not None:
                self.incidents[planned.change.incident.id] = planned.change.incident
        return self

    @property
    def only(self) -> Incident:
        """The one incident there is."""
        (incident,) = self.incidents.values()
        return incident

    def told(self, receiver: str = "pager") -> list[str]:
        """The transitions that ``receiver`` is told, in order."""
        return [delivery.transition for delivery in self.deliveries if delivery.receiver == receiver]


def test_a_nan_that_has_spread_to_every_rank_is_one_incident() -> None:
    """One incident per cause, not one per GPU: the paging key has no place in it."""
    ranks = [finding(f"rank {rank}", rank=rank, onset_step=117 + rank // 8) for rank in range(64)]
    world = World().take(*ranks)
    assert world.only.paging_key == "job/leviathan-7b/attempt/2/nonfinite/1"
    assert world.only.where.rank == 0
    assert world.told() == ["firing"]


def test_an_earlier_origin_corrects_the_place_and_not_the_key() -> None:
    """The first place is a field that can be corrected; it decides nothing about who is paged."""
    world = World().take(finding(), finding("earlier", rank=9, parameter="embed", onset_step=115, step=118))
    assert world.only.where == Where(rank=9, parameter="embed")
    assert world.only.paging_key == "job/leviathan-7b/attempt/2/nonfinite/1"
    assert world.told() == ["firing", "updated:1"]


def test_a_gap_in_the_place_is_filled_and_what_is_known_stays() -> None:
    """A place that was not proven is filled in; a different place of the same onset changes nothing."""
    world = World().take(finding(parameter=None), finding("more", node="n7"), finding("other", rank=5, gpu=2))
    assert world.only.where == Where(rank=3, node="n7", parameter="layers.3.attn.wq")
    assert world.told() == ["firing", "updated:1"]


@pytest.mark.parametrize(
    ("first", "second", "kind", "told"),
    [
        pytest.param(spike(), finding(), FindingKind.NONFINITE, ["firing", "updated:1"], id="spike then NaN"),
        pytest.param(finding(), spike(), FindingKind.NONFINITE, ["firing"], id="NaN then spike"),
        pytest.param(
            finding(),
            spike("s", kind=FindingKind.STALL, onset_time=T0 + 600),
            FindingKind.NONFINITE,
            ["firing"],
            id="NaN then stall",
        ),
    ],
)
def test_symptoms_of_one_job_join_and_the_most_telling_speaks(
    first: Finding, second: Finding, kind: FindingKind, told: list[str]
) -> None:
    """The stall after the NaN is no second page; the NaN after the spike corrects the first."""
    world = World().take(first, second)
    assert (world.only.kind, world.told()) == (kind, told)
    assert world.only.paging_kind is first.kind


@pytest.mark.parametrize(
    "apart",
    [
        pytest.param({"attempt": "3"}, id="another attempt"),
        pytest.param({"job": "minnow"}, id="another job"),
        pytest.param({"simulated": True}, id="simulated"),
        pytest.param({"onset_time": T0 + JOIN_SECONDS + 1}, id="long after"),
        pytest.param({"kind": FindingKind.BUSY_WITHOUT_ROWS}, id="no symptom of it"),
    ],
)
def test_what_is_apart_stays_apart(apart: dict[str, object]) -> None:
    """Only trouble of the same job and attempt, near in time, is a symptom; the simulated never hides the real."""
    world = World().take(finding(), finding("stall", **({"kind": FindingKind.STALL} | apart)))
    assert len(world.incidents) == 2
    assert world.told() == ["firing", "firing"]


def test_an_incident_ends_when_all_that_joined_it_is_over() -> None:
    """`resolved` is sent once, after the last of its kinds."""
    world = World().take(spike(), finding(), resolved())
    assert world.only.status is Status.FIRING
    world.take(resolved("spike over", kind=FindingKind.LOSS_SPIKE))
    assert (world.only.status, world.only.resolved_time) == (Status.RESOLVED, T0 + 60)
    assert world.told() == ["firing", "updated:1", "resolved"]


def test_trouble_that_comes_again_is_a_new_episode() -> None:
    """A resolved incident is not opened again: the next one has a key, and so ids, of its own."""
    world = World().take(finding(), resolved(), finding("again", time=T0 + 90, onset_time=T0 + 90))
    assert [incident.episode for incident in world.incidents.values()] == [1, 2]
    assert world.told() == ["firing", "resolved", "firing"]
    assert len({delivery.id for delivery in world.deliveries}) == len(world.deliveries)


@pytest.mark.parametrize("at", [T0 + 59.0, T0 + 60.0])
def test_late_evidence_pages_nobody(at: float) -> None:
    """A finding that is not newer than the end of its trouble belongs to what is over."""
    world = World().take(finding(), resolved(), finding("late", time=at))
    assert world.changes[-1].incident_id == world.only.id
    assert world.told() == ["firing", "resolved"]


def test_an_end_that_comes_late_does_not_end_what_began_after_it() -> None:
    """The end of an earlier episode says nothing about the trouble that fires now."""
    world = World().take(finding(time=T0 + 100), resolved())
    assert world.only.status is Status.FIRING


def test_an_end_without_a_beginning_tells_nobody_anything() -> None:
    """`resolved` is only sent after `firing`."""
    assert World().take(resolved()).deliveries == []


def test_a_tier_that_rises_announces_the_incident_to_those_whom_it_now_reaches() -> None:
    """Who has never heard of an incident is told `firing`; who has is told `updated`."""
    world = World().take(spike(severity=Severity.WARNING), spike("worse", severity=Severity.CRITICAL))
    assert world.told("desk") == ["firing", "updated:1"]
    assert world.told("pager") == ["firing"]
    assert world.only.tier is Tier.PAGE


def test_a_simulated_incident_says_so() -> None:
    """Simulated data is marked as simulated wherever it is shown, first of all in the title."""
    world = World().take(finding(simulated=True))
    assert world.only.title == "[simulated] NaN in the gradient of layers.3.attn.wq at step 117"
    assert world.only.paging_key.startswith("simulated/")
    assert '"simulated":true' in world.deliveries[0].body


def test_scopes_cannot_be_made_to_look_like_each_other() -> None:
    """A job's name is quoted in its key, so that no name can reach into another job's incidents."""
    plain = finding(job="a", attempt="1")
    odd = finding("odd", job="a/attempt/1", attempt=None)
    assert len(World().take(plain, odd).incidents) == 2


def test_an_incident_comes_back_from_the_store_as_it_was() -> None:
    """Nothing is lost in the document that the store keeps."""
    incident = World().take(finding(simulated=True), spike(simulated=True)).only
    assert Incident.from_document(incident.document()) == incident


def lag(name: str, severity: Severity, at: float, state: FindingState = FindingState.FIRING, **changes: Any) -> Finding:
    """Lag of a topic, as the detector that watches Nantucket itself says it: about no job."""
    given: dict[str, Any] = {
        "detector": "lag",
        "kind": FindingKind.LAG,
        "state": state,
        "severity": severity,
        "time": at,
        "onset_time": at,
        "job": None,
        "attempt": None,
        "rank": None,
        "subject": "train",
    }
    return finding(name, **(given | changes))


def test_troubles_of_one_kind_with_different_subjects_are_incidents_of_their_own() -> None:
    """The end of one says nothing of the others, and a second one is told although the first is open."""
    world = World().take(
        lag("train", Severity.CRITICAL, T0),
        lag("gpu", Severity.CRITICAL, T0 + 5, subject="gpu"),
        lag("train over", Severity.INFO, T0 + 9, FindingState.RESOLVED),
    )
    assert {item.paging_key: item.status for item in world.incidents.values()} == {
        "detector/lag/subject/train/lag/1": Status.RESOLVED,
        "detector/lag/subject/gpu/lag/1": Status.FIRING,
    }
    assert world.told() == ["firing", "firing", "resolved"]


def test_a_subject_cannot_be_made_to_look_like_an_attempt_or_a_job() -> None:
    """A subject is named as such in the key, and quoted."""
    given = [
        finding("plain", job="a", attempt="1"),
        finding("subject", job="a", attempt=None, subject="1"),
        finding("both", job="a", attempt="1", subject="1"),
        finding("odd", job="a", attempt="1/subject/1"),
        finding("empty", job="a", attempt="1", subject=""),
    ]
    assert len(World().take(*given).incidents) == len(given)


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_lag_that_falls_back_to_a_lower_level_goes_on_as_a_new_episode(seconds: float) -> None:
    """What a detector says of a subject after an end, at that very tick or later, is no late evidence."""
    world = World().take(
        lag("critical", Severity.CRITICAL, T0),
        lag("critical over", Severity.CRITICAL, T0 + 9, FindingState.RESOLVED),
        lag("warning", Severity.WARNING, T0 + 9 + seconds),
    )
    assert [(item.status, item.tier, item.episode) for item in world.incidents.values()] == [
        (Status.RESOLVED, Tier.PAGE, 1),
        (Status.FIRING, Tier.TICKET, 2),
    ]


KINDS = [FindingKind.NONFINITE, FindingKind.LOSS_SPIKE, FindingKind.STALL, FindingKind.BUSY_WITHOUT_ROWS]
NUMBERS = st.none() | st.integers(0, 5)


@st.composite
def histories(draw: st.DrawFn) -> list[Finding]:
    """Findings of two attempts in any order, some of them again."""
    made = [
        finding(
            str(number),
            kind=draw(st.sampled_from(KINDS)),
            state=draw(st.sampled_from(FindingState)),
            severity=draw(st.sampled_from(Severity)),
            attempt=draw(st.sampled_from("12")),
            time=T0 + draw(st.integers(0, 4000)),
            onset_time=draw(st.none() | st.integers(0, 4000).map(lambda seconds: T0 + seconds)),
            onset_step=draw(NUMBERS),
            rank=draw(NUMBERS),
        )
        for number in range(draw(st.integers(0, 14)))
    ]
    again = draw(st.lists(st.sampled_from(made), max_size=5)) if made else []
    return draw(st.permutations(made + again))


@given(histories())
def test_the_laws_of_grouping_hold_for_any_findings_in_any_order(history: list[Finding]) -> None:
    """No id twice; no two open incidents of one key; told firing first, resolved last and once; no key used again."""
    world = World()
    for item in history:
        world.take(item)
        for scene in world.scenes.values():
            firing = [kind for incident in scene.open for kind in incident.firing_kinds]
            assert len(firing) == len(set(firing)), "one kind fires in two open incidents"
            assert len({incident.paging_kind for incident in scene.open}) == len(scene.open)
            assert all(incident.firing_kinds for incident in scene.open)
    ids = [delivery.id for delivery in world.deliveries]
    assert len(ids) == len(set(ids))
    opened = [change.incident.paging_key for change in world.changes if change.turn is Turn.FIRING and change.incident]
    assert len(opened) == len(set(opened))
    lanes: dict[tuple[str, str], list[str]] = {}
    for delivery in world.deliveries:
        lanes.setdefault(delivery.lane, []).append(delivery.transition)
    for told in lanes.values():
        assert told[0] == "firing"
        assert "firing" not in told[1:]
        assert told.count("resolved") <= 1
        assert "resolved" not in told[:-1]


@given(histories())
def test_saying_it_all_again_changes_nothing(history: list[Finding]) -> None:
    """A detector that reads the log again after a crash says the same under the same ids: nobody is told twice."""
    once, twice = World().take(*history), World().take(*history).take(*history)
    assert [delivery.id for delivery in twice.deliveries] == [delivery.id for delivery in once.deliveries]
    assert twice.incidents == once.incidents


def test_a_resolved_kind_that_fires_again_while_the_incident_is_open_stays_in_it() -> None:
    """One open incident for a key: a spike that comes back while the NaN it led to goes on is no second page."""
    over = resolved("spike over", kind=FindingKind.LOSS_SPIKE)
    later = replace(spike("spike again"), time=T0 + 4000, onset_time=T0 + 4000)
    world = World().take(spike(), finding(), over, later)
    assert len(world.incidents) == 1
    assert world.told() == ["firing", "updated:1"]
