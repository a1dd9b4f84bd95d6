"""A real collector's loop on the fake driver, in real time: each fault is an event within two seconds, and the rest of
the node goes on each second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from app.bench.fake_driver import library
from app.bench.fake_driver.library import FakeDriver
from collectors.agent import NodeAgent
from collectors.nvml.source import NvmlGpus
from collectors.xids import Origin, XidLedger
from telemetry_bus import Frame, Topic
from telemetry_bus.runtime.clock import SystemClock

CLOCK = SystemClock()
TOLD_SECONDS = 2.0
WAIT_SECONDS = 20.0
CODES = [*range(1, 31), 999]
"""Every code of NVML that a call may return."""
RESTART_CODES = frozenset({1, 9, 18})
"""Not initialised, not loaded, another version than the library."""


class Node:
    """A collector of one node, and what it has sent."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []

    async def publish(self, topic: Topic, frame: Frame) -> None:
        """Take a frame, as the bus does."""
        kept = {Topic.EVENTS: self.events, Topic.GPU: self.rows, Topic.LINKS: self.links}[topic]
        kept += frame.batch.to_pylist()

    async def until(self, there: Callable[[], Any]) -> Any:
        """Wait until it is; a guard, not a measure."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not (found := there()):
                await asyncio.sleep(0.01)
        return found

    def told(self, state: str, gpu: int | None = None) -> list[dict[str, Any]]:
        """The driver events of a state."""
        return [event for event in self.events if f'"state":"{state}"' in event["detail"] and event["gpu"] == gpu]

    async def told_in_time(self, since: float, state: str, gpu: int | None = None) -> dict[str, Any]:
        """The event, which must be of within two seconds of the fault."""
        (event,) = await self.until(lambda: self.told(state, gpu))
        assert event["time"].timestamp() - since <= TOLD_SECONDS
        return dict(event)

    async def goes_on(self, gpu: int, since: float, seconds: int = 2) -> None:
        """There is a row of ``gpu`` in each of the seconds after ``since``."""
        await self.until(lambda: [row for row in self.rows if row["time"].timestamp() > since + seconds + 1])
        times = [row["time"].timestamp() - since for row in self.rows if row["gpu"] == gpu]
        for second in range(seconds):
            assert any(second <= time < second + 1.5 for time in times), (second, times)

    def both_after(self, when: float) -> tuple[dict[str, Any] | None, dict[str, Any]] | None:
        """The row of GPU 0 (None if it has none) and that of GPU 1 of a reading after ``when``."""
        found = [row for row in self.rows if row["time"].timestamp() > when]
        well = next((row for row in found if row["gpu"] == 1), None)
        return None if well is None else (next((row for row in found if row["gpu"] == 0), None), well)

    def both_well_after(self, when: float) -> bool:
        """Whether both have their power again."""
        found = [row for row in self.rows if row["time"].timestamp() > when]
        return {row["gpu"] for row in found if row.get("power_watts") is not None} == {0, 1}


@asynccontextmanager
async def running(driver: FakeDriver, *, hz: float = 1.0, **options: Any) -> AsyncIterator[Node]:
    """A collector of ``driver``'s GPUs that has sent its first rows."""
    node = Node()
    source = NvmlGpus("node-1", environment=driver.environment, **options).build(CLOCK)
    async with NodeAgent([source], node.publish, CLOCK, node="node-1", hz=hz):
        await node.until(lambda: node.rows)
        yield node


async def test_a_gpu_that_hangs_for_ever(fake_driver: FakeDriver) -> None:
    """The other goes on each second."""
    async with running(fake_driver) as node:
        began = CLOCK.now()
        fake_driver.say("power_usage", library.HANG, gpu=0)
        await node.told_in_time(began, "hung", 0)
        await node.goes_on(1, began)
        assert not [row for row in node.rows if row["gpu"] == 0 and row["time"].timestamp() > began + 1.5]
        assert len(node.told("hung", 0)) == 1
        fake_driver.heal()
        await node.until(lambda: node.told("answers", 0))


async def test_a_driver_that_hangs_as_a_whole(fake_driver: FakeDriver) -> None:
    """It is told for the node, within two seconds of the call that hung."""
    async with running(fake_driver) as node:
        began = CLOCK.now()
        fake_driver.say("power_usage", library.HANG)
        await node.told_in_time(began, "hung")
        fake_driver.heal()
        await node.until(lambda: node.told("answers"))
        await node.goes_on(0, CLOCK.now(), seconds=1)


async def test_every_error_code_of_nvml_in_turn(fake_driver: FakeDriver) -> None:
    """Whatever one GPU's calls answer is null with its reason, the other's rows are whole, and nothing ends."""
    async with running(fake_driver, hz=10.0) as node:
        for code in CODES:
            for key in ("power_usage", "temperature", "utilization_gpu", "fields", "memory_used", "clock_sm"):
                fake_driver.say(key, f"!{code}", gpu=0)
            began = CLOCK.now()
            ill, well = await node.until(partial(node.both_after, began + 0.25))
            assert well["power_watts"] == 691.5, code
            assert ill is None or (ill.get("power_watts"), ill.get("energy_joules")) == (None, None), code
            if code in (15, 16):
                await node.told_in_time(began, {15: "gpu_lost", 16: "reset_required"}[code], 0)
            if code in RESTART_CODES:
                assert not node.told("died")  # the driver itself is there: one GPU's word does not end the others
            fake_driver.heal()
            await node.until(partial(node.both_well_after, CLOCK.now()))


@pytest.mark.parametrize("code", sorted(RESTART_CODES))
async def test_a_driver_that_was_unloaded_under_it_is_opened_anew(fake_driver: FakeDriver, code: int) -> None:
    """The process is of no more use, and another finds the driver again."""
    async with running(fake_driver) as node:
        began = CLOCK.now()
        for key in ("power_usage", "count"):
            fake_driver.say(key, f"!{code}")
        await node.told_in_time(began, "died")
        fake_driver.heal()
        await node.until(lambda: node.told("answers"))


async def test_a_gpu_that_is_lost_and_comes_back(fake_driver: FakeDriver) -> None:
    """An event, no exception, no row while it lasts; and the other goes on."""
    async with running(fake_driver) as node:
        began = CLOCK.now()
        fake_driver.say("power_usage", library.GPU_IS_LOST, gpu=0)
        event = await node.told_in_time(began, "gpu_lost", 0)
        assert event["uuid"] == "GPU-0"
        await node.goes_on(1, began)
        fake_driver.heal()
        await node.until(lambda: node.told("gpu_back", 0))


async def test_all_counters_are_reset(fake_driver: FakeDriver) -> None:
    """Told once for each GPU, and no rate goes wild."""
    async with running(fake_driver) as node:
        await node.until(lambda: len(node.rows) >= 4)
        began = CLOCK.now()
        fake_driver.say(library.ENERGY, "5000")
        await node.told_in_time(began, "counters_reset", 0)
        await node.told_in_time(began, "counters_reset", 1)
        await node.goes_on(0, began)
        assert len(node.told("counters_reset", 0)) == 1
        names = ("pcie_tx_bytes_per_second", "nvlink_rx_bytes_per_second")
        rates = [row.get(name) for row in node.rows for name in names]
        assert all(rate is None or 0 <= rate < 1e12 for rate in rates)


async def test_a_gpu_that_is_divided(fake_driver: FakeDriver) -> None:
    """The division is told, the inventory is sent again, and each instance has its rows."""
    async with running(fake_driver) as node:
        began = CLOCK.now()
        fake_driver.divide(0, 2, 3)
        await node.until(lambda: node.told("mig_changed", 0))
        inventories = [event for event in node.events if event["kind"] == "node_inventory"]
        assert len(inventories) == 2
        assert '"9/0"' in inventories[-1]["detail"]
        await node.until(lambda: {"9/0", "10/0"} <= {row.get("instance") for row in node.rows})
        await node.goes_on(1, began)


async def test_an_xid_of_the_drivers_event_set_is_on_its_way_at_once(fake_driver: FakeDriver) -> None:
    """Not at the next second: the loop is woken."""
    async with running(fake_driver) as node:
        began = CLOCK.now()
        fake_driver.xid(1, 79)
        (event,) = await node.until(lambda: [event for event in node.events if event["kind"] == "xid"])
        assert (event["code"], event["gpu"], event["uuid"]) == (79, 1, "GPU-1")
        assert event["time"].timestamp() - began < TOLD_SECONDS
        fake_driver.xid(1, 79, 48)
        await node.until(lambda: sum(event["kind"] == "xid" for event in node.events) == 3)


async def test_the_same_xid_by_the_kernels_log_is_not_sent_again(fake_driver: FakeDriver) -> None:
    """One ledger knows both."""
    ledger = XidLedger("node-1")
    async with running(fake_driver, xids=ledger) as node:
        fake_driver.xid(0, 63)
        await node.until(lambda: [event for event in node.events if event["kind"] == "xid"])
        assert ledger.saw(Origin.KERNEL_LOG, CLOCK.now(), pci="0000:1b:00", uuid=None, code=63) is None


async def test_a_driver_without_event_sets_is_counted_and_everything_else_goes_on(fake_driver: FakeDriver) -> None:
    """XIDs come from the kernel's log then."""
    fake_driver.say("event_set", library.NOT_SUPPORTED)
    async with running(fake_driver) as node:
        await node.goes_on(0, CLOCK.now(), seconds=1)


async def test_links_and_inventory_are_sent(fake_driver: FakeDriver) -> None:
    """Each NVLink is a row; the inventory says which card it is."""
    async with running(fake_driver) as node:
        await node.until(lambda: node.links)
        (inventory,) = [event["detail"] for event in node.events if event["kind"] == "node_inventory"]
    assert {(row["kind"], row["device"], row["uuid"]) for row in node.links} == {
        ("nvlink", "gpu0", "GPU-0"), ("nvlink", "gpu1", "GPU-1"),
    }  # fmt: skip
    for said in ('"cuda_version":"12.9"', '"serial":"1650000000001"', '"pci":"00000000:1B:00.0"', '"vbios_version"'):
        assert said in inventory
