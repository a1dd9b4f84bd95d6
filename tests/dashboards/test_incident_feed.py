"""The page's copy of the incidents is bounded, its counts are not, and what is over is not shown as open."""

from __future__ import annotations

from dashboards.incidents import INCIDENTS_MAX, IncidentFeed
from tests.dashboards.world import IncidentList, incident


async def test_of_twenty_thousand_open_incidents_some_are_held_and_all_are_counted() -> None:
    """One refresh brings as many as the page shows; the counts are the store's."""
    source = IncidentList()
    for number in range(20_000):
        source.put(incident(f"i-{number}", tier="page" if number % 4 else "ticket", detected_time=float(number)))
    feed = IncidentFeed(source)
    assert feed.open_by_tier() == {"page": 0, "ticket": 0, "log": 0}
    assert len(await feed.refresh()) == INCIDENTS_MAX
    assert len(feed.newest()) == INCIDENTS_MAX
    assert feed.open_by_tier() == {"page": 15_000, "ticket": 5_000, "log": 0}


async def test_an_incident_that_ends_among_many_changes_is_not_shown_as_open_any_more() -> None:
    """An answer that is full leaves out what is over: those that the page shows as open are asked for one by one."""
    source = IncidentList()
    source.put(incident("ends"))
    feed = IncidentFeed(source)
    await feed.refresh()
    source.put(incident("ends", status="resolved"))
    for number in range(INCIDENTS_MAX):
        source.put(incident(f"i-{number}"))
    changed = await feed.refresh()
    assert [one["status"] for one in changed if one["id"] == "ends"] == ["resolved"]
    assert "ends" not in {one["id"] for one in feed.newest()}
    assert feed.open_by_tier() == {"page": INCIDENTS_MAX, "ticket": 0, "log": 0}
