"""The law of alerting through outages: each trouble is told, at once and once, whoever came, went, or said it twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from alerting import IncidentReader, Store
from tests.fakes.webhook_server import WebhookServer
from tests.simulation.world import Plan, World

SEEDS = [int(os.environ["NANTUCKET_SEED"])] if "NANTUCKET_SEED" in os.environ else [1, 2]


@pytest.mark.parametrize("seed", SEEDS)
async def test_each_trouble_is_told_at_once_and_once(tmp_path: Path, seed: int) -> None:
    """As many pages as troubles, in and out of outages, and no trouble is left open in the end."""
    replay = f"replay: NANTUCKET_SEED={seed} .venv/bin/python -m pytest -p no:randomly tests/simulation"
    plan = Plan.of(seed)
    with WebhookServer() as hook:
        async with World(plan, tmp_path, hook) as world:
            while world.second < plan.seconds:
                await world.pass_second()
            await world.settle()
            for job, times in plan.ill.items():
                assert world.pages()[job] == len(times), f"{job} was ill in {times}; {replay}"
            for back, told in world.told_in_the_outage.items():
                for job, times in plan.ill.items():
                    begun = sum(time.start < back for time in times)
                    if not any(second in outage for second in world.restarted for outage in plan.outages):
                        assert told[job] == begun, (
                            f"when the bus came back at {back} for {job}, ill in {times}; {replay}"
                        )
        async with Store(tmp_path / "alerts.db") as store:
            left = await IncidentReader(store, world.clock).incidents(open_only=True)
        assert left == [], replay
