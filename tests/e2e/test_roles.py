"""The roles as processes of their own, with the commands of compose.yaml: they meet only in one state folder."""

import asyncio
import json
import signal

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.machine import COMMANDS, PAGE_SECONDS, Machine


@pytest.mark.timeout(150)  # four processes, two of them started twice, on a machine that may have two cores
async def test_four_processes_page_a_nan_and_lose_nothing_when_one_is_killed(machine: Machine) -> None:
    """A NaN is paged through four processes; one that is reported while the detectors or alerting are dead is paged
    once when they are back; SIGTERM ends each in order."""
    for role in COMMANDS:
        await machine.start(role)
    machine.go_bad("first")
    incident = await machine.paged("first")
    assert (incident["detected_step"], incident["where"]["parameter"]) == (2, "w")
    for role in ("detect", "alert"):
        await machine.kill(role)
        machine.go_bad(f"while-{role}-was-dead")
        await machine.start(role)
        assert (await machine.paged(f"while-{role}-was-dead"))["detected_step"] == 2
    shown = json.loads(await machine.get("/api/v1/incidents"))
    jobs = {item["job"] for item in (shown["incidents"] if isinstance(shown, dict) else shown)}
    assert jobs >= {"first", "while-detect-was-dead", "while-alert-was-dead"}
    assert {role: await machine.ended(role, signal.SIGTERM) for role in reversed(COMMANDS)} == dict.fromkeys(
        COMMANDS, 0
    )
    firing = [line for line in machine.receiver.lines if line.get("verified") and line["body"]["status"] == "firing"]
    pages = [(line["body"]["incident"]["job"], line["id"]) for line in firing if line["body"]["incident"]["job"]]
    assert len(set(pages)) == 3
    assert all(line["verified"] for line in machine.receiver.lines if "verified" in line)


@pytest.mark.timeout(120)
async def test_an_interrupt_ends_each_role_with_130(machine: Machine) -> None:
    """Ctrl-C is told from an ordered stop by the exit status, whatever role it is."""
    for role in COMMANDS:
        await machine.start(role)
    assert {role: await machine.ended(role, signal.SIGINT) for role in reversed(COMMANDS)} == dict.fromkeys(
        COMMANDS, 130
    )


@pytest.mark.timeout(120)
async def test_every_role_of_its_own_tells_its_figures(machine: Machine) -> None:
    """`collect`, `detect` and `alert` answer /metrics and /healthz themselves, and their figures move with a NaN."""
    wanted = {
        "collect": ("nantucket_sdk_rows_total", "nantucket_collector_rows_total"),
        "detect": ("nantucket_findings_total",),
        "alert": ("nantucket_delivery_tries_total", "nantucket_alert_findings_total"),
    }
    for role in wanted:
        await machine.start(role)
    machine.go_bad("j")
    await machine.paged("j")
    async with httpx.AsyncClient() as client:
        for role, names in wanted.items():
            url = machine.ready[role]["metrics"]
            async with asyncio.timeout(PAGE_SECONDS):
                text = ""
                while not all(total(text, name) > 0 for name in names):
                    text = (await client.get(url)).raise_for_status().text
            assert (await client.get(url.replace("/metrics", "/healthz"))).text == "ok\n"
            assert (await client.get(url.replace("/metrics", "/elsewhere"))).status_code == 404


def total(metrics: str, name: str) -> float:
    """The sum of a figure over all its labels; 0 where it has no sample."""
    families = text_string_to_metric_families(metrics)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


FIGURES = {
    "nantucket_findings_total": {"detector": "nonfinite"},
    "nantucket_delivery_tries_total": {"outcome": "taken"},
    "nantucket_sdk_rows_total": {},
    "nantucket_frames_total": {},
    "nantucket_alert_findings_total": {},
}
"""One figure of each role that a NaN moves, and a label of it."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("with_signal", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["term", "int"])
async def test_one_process_with_all_roles_pages_counts_and_ends(
    machine: Machine, with_signal: signal.Signals, status: int
) -> None:
    """`nantucket up` pages the NaN, its /metrics carry what every role counted, and signals end it as they end one,
    even while somebody looks at the page."""
    await machine.start("up")
    assert machine.ready["up"]["roles"] == sorted(COMMANDS)
    machine.go_bad("j")
    await machine.paged("j")
    values: dict[str, float] = {}
    async with asyncio.timeout(PAGE_SECONDS):
        while set(values) < set(FIGURES):
            values = {name: value for name, value in moved(await machine.get("/metrics")).items() if value > 0}
            await asyncio.sleep(0.05)
    async with machine.reading_the_stream() as lines:
        await anext(lines)
        assert await machine.ended("up", with_signal) == status


def moved(metrics: str) -> dict[str, float]:
    """The figures of the table, summed over the labels that it does not name."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            labels = FIGURES.get(sample.name)
            if labels is not None and labels.items() <= sample.labels.items():
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
