"""The network cards as the kernel shows them: rows, faults that heal between two looks, files that cannot be read."""

from __future__ import annotations

import asyncio
import csv
import gzip
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from collectors.errors import FieldFailure, SourceClosed
from collectors.framing import Framer
from collectors.network import Network, NetworkSource
from collectors.network import source as network_source
from collectors.network.counters import ETHERNET, INFINIBAND
from collectors.network.faults import ERRORS_A_MINUTE
from collectors.network.ports import PORTS_MAX, find_ports
from collectors.source import LINKS, EventRow, LinkRows, SourceReading
from telemetry_bus import decode, encode
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.schemas import EventKind
from tests.fakes.sysfs import DISABLED, DOWN, Sysfs

NOW = 1_700_000_000.0


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    """Return an empty tree."""
    return Sysfs(tmp_path / "sys")


def source_of(sysfs: Sysfs, interfaces: tuple[str, ...] | None = None) -> NetworkSource:
    """The source of node-1 over a tree."""
    return Network("node-1", sysfs.root, interfaces).build(ManualClock())


def links(reading: SourceReading) -> LinkRows:
    """The rows, which must be there."""
    assert reading.links is not None
    return reading.links


def value(rows: LinkRows, metric: str, row: int = 0) -> float | None:
    """A metric of a row; None where it is absent."""
    column = rows.metrics.get(metric)
    return None if column is None or not column.valid[row] else column.values[row].item()


def states(events: Sequence[EventRow]) -> list[str]:
    """What the events say."""
    return [event.detail["state"] for event in events]


class Looks:
    """A source that is read every two seconds."""

    def __init__(self, source: NetworkSource) -> None:
        self.source, self.now = source, NOW

    async def look(self, seconds: float = 2.0) -> list[EventRow]:
        """The events of the next look."""
        reading = await self.source.read(self.now)
        self.now += seconds
        assert {event.kind for event in reading.events} <= {EventKind.LINK, EventKind.DRIVER}
        return list(reading.events)


async def test_an_infiniband_port_is_a_row_in_bytes_and_gigabits(sysfs: Sysfs) -> None:
    """Words of four bytes become bytes, and the rate a number."""
    folder = sysfs.infiniband("mlx5_0")
    sysfs.say(folder / "counters" / "port_xmit_data", "1000")
    sysfs.say(folder / "hw_counters" / "np_cnp_sent", "7")
    async with source_of(sysfs) as source:
        reading = await source.read(NOW)
    rows = links(reading)
    assert (rows.kind, rows.device, rows.port, rows.nodes) == (["infiniband"], ["mlx5_0"], [1], [("node-1", 1)])
    found = {
        name: value(rows, name) for name in ("up", "rate_gigabits_per_second", "tx_bytes", "congestion_sent_count")
    }
    assert found == {"up": 1.0, "rate_gigabits_per_second": 400.0, "tx_bytes": 4_000, "congestion_sent_count": 7}
    assert not reading.events
    assert not reading.failures


async def test_an_interface_is_a_row_and_what_has_no_hardware_is_none(sysfs: Sysfs) -> None:
    """Bridges and pairs of containers are hundreds on a node, and no cable."""
    folder = sysfs.ethernet("eth0", speed="25000")
    sysfs.say(folder / "statistics" / "rx_crc_errors", "3")
    sysfs.virtual("docker0")
    sysfs.ethernet("ib0", kind="32")
    async with source_of(sysfs) as source:
        rows = links(await source.read(NOW))
    assert (rows.kind, rows.device, rows.port) == (["ethernet"], ["eth0"], [None])
    assert (value(rows, "rate_gigabits_per_second"), value(rows, "crc_error_count")) == (25.0, 3)


async def test_counters_are_read_every_ten_seconds_and_states_every_two(sysfs: Sysfs) -> None:
    """A counter costs the card something; a link that goes down should not wait."""
    sysfs.infiniband("mlx5_0")
    async with source_of(sysfs) as source:
        had = [(await source.read(NOW + after)).links is not None for after in (0, 2, 4, 6, 8, 10)]
    assert had == [True, False, False, False, False, True]


async def test_rows_and_events_become_frames_that_any_reader_takes(sysfs: Sysfs) -> None:
    """What the source gives passes the bus's own validation."""
    sysfs.infiniband("mlx5_0", netdev="eth1")
    sysfs.ethernet("eth0")
    async with source_of(sysfs) as source:
        rows = links(await source.read(NOW))
    (frame,) = Framer("eu-1").link_frames(rows, NOW)
    assert decode(encode(frame)) == frame
    assert frame.rows == 3


async def test_a_link_that_goes_down_and_comes_back_is_told_twice_with_its_rows_at_once(sysfs: Sysfs) -> None:
    """Before and after; and what goes with it is sent without waiting for its turn."""
    folder = sysfs.infiniband("mlx5_0")
    async with source_of(sysfs) as source:
        looks = Looks(source)
        assert await looks.look() == []
        sysfs.link(folder, DOWN)
        sysfs.say(folder / "counters" / "link_downed", "1")
        (down,) = await looks.look()
        assert (down.detail["state"], down.detail["device"], down.detail["port"]) == ("down", "mlx5_0", 1)
        assert down.message == "node-1: mlx5_0/1 went down"
        assert source.unreadable() == ["no link: mlx5_0/1"]
        rows = links(await source.read(looks.now))
        assert (value(rows, "up"), value(rows, "rate_gigabits_per_second")) == (0.0, None)
        sysfs.link(folder, ("4: ACTIVE", "5: LinkUp"))
        assert states(await looks.look()) == ["up"]


@pytest.mark.parametrize("kind", ["infiniband", "ethernet"])
async def test_a_link_that_flaps_and_heals_between_two_looks_is_seen(sysfs: Sysfs, kind: str) -> None:
    """The counter of how often it went down tells of it."""
    folder = sysfs.infiniband("mlx5_0") if kind == "infiniband" else sysfs.ethernet("eth0")
    counter = folder / ("counters/link_downed" if kind == "infiniband" else "carrier_down_count")
    async with source_of(sysfs) as source:
        looks = Looks(source)
        await looks.look()
        sysfs.say(counter, "3")
        (event,) = await looks.look()
        assert (event.detail["state"], event.detail["times"]) == ("flapped", 3)
        assert "came back 3 times" in event.message
        assert await looks.look() == []


async def test_what_somebody_has_switched_off_is_no_fault(sysfs: Sysfs) -> None:
    """A port that is disabled, an interface that is not up by will."""
    port, interface = sysfs.infiniband("mlx5_0"), sysfs.ethernet("eth0")
    async with source_of(sysfs) as source:
        looks = Looks(source)
        await looks.look()
        sysfs.link(port, DISABLED)
        sysfs.say(interface / "flags", "0x1002")
        (interface / "carrier").unlink()  # the kernel answers EINVAL
        assert states(await looks.look()) == ["switched_off", "switched_off"]
        assert source.unreadable() == []


async def test_a_port_that_was_down_before_the_first_look_is_told_if_it_was_ever_up(sysfs: Sysfs) -> None:
    """A port without a cable has never been."""
    unused, broken = sysfs.infiniband("mlx5_0"), sysfs.infiniband("mlx5_1")
    sysfs.link(unused, DOWN)
    sysfs.link(broken, DOWN)
    sysfs.say(broken / "counters" / "link_downed", "2")
    async with source_of(sysfs) as source:
        (event,) = await Looks(source).look()
    assert (event.detail["state"], event.detail["device"], event.detail["times"]) == ("down", "mlx5_1", 2)


async def test_a_link_that_runs_slower_than_it_did_is_told_once_and_so_is_its_return(sysfs: Sysfs) -> None:
    """A cable that lost half its lanes carries half."""
    folder = sysfs.infiniband("mlx5_0")
    async with source_of(sysfs) as source:
        looks = Looks(source)
        await looks.look()
        sysfs.say(folder / "rate", "200 Gb/sec (2X NDR)")
        (event,) = await looks.look()
        assert event.message == "node-1: mlx5_0/1 runs at 200 instead of 400 Gbit/s"
        assert await looks.look() == []
        sysfs.say(folder / "rate", "400 Gb/sec (4X NDR)")
        assert states(await looks.look()) == ["rate_restored"]


async def test_a_card_that_is_gone_and_comes_back_is_told(sysfs: Sysfs) -> None:
    """A switch that is replaced, a card that falls off its bus."""
    sysfs.infiniband("mlx5_0")
    folder = sysfs.infiniband("mlx5_1")
    async with source_of(sysfs) as source:
        looks = Looks(source)
        await looks.look()
        target = (sysfs.root / "class/infiniband/mlx5_1").resolve()
        sysfs.remove("infiniband", "mlx5_1")
        assert states(await looks.look()) == ["vanished"]
        assert await looks.look() == []
        (sysfs.root / "class/infiniband/mlx5_1").symlink_to(target)
        (event,) = await looks.look(12.0) or await looks.look()
        assert (event.detail["state"], event.detail["up"]) == ("back", True)
    assert folder.exists()


async def test_errors_are_told_from_a_threshold_on_once_until_a_minute_is_quiet(sysfs: Sysfs) -> None:
    """A bit in a month is nothing; a burst is a cable."""
    folder = sysfs.infiniband("mlx5_0")
    counter = folder / "counters" / "symbol_error"
    async with source_of(sysfs) as source:
        looks = Looks(source)
        await looks.look(10.0)
        sysfs.say(counter, str(ERRORS_A_MINUTE["symbol_error_count"] - 1))
        assert await looks.look(10.0) == []
        sysfs.say(counter, "500")
        (event,) = await looks.look(10.0)
        assert (event.detail["state"], event.detail["metric"], event.detail["grown"]) == (
            "errors",
            "symbol_error_count",
            500,
        )
        sysfs.say(counter, "900")
        assert await looks.look(40.0) == []
        assert await looks.look(70.0) == []
        assert await looks.look(10.0) == []
        sysfs.say(counter, "1000")
        assert states(await looks.look()) == ["errors"]


async def test_counters_that_begin_anew_are_no_burst_and_no_flap(sysfs: Sysfs) -> None:
    """A driver that was loaded again counts from zero."""
    folder = sysfs.infiniband("mlx5_0")
    sysfs.say(folder / "counters" / "link_downed", "200")
    sysfs.say(folder / "counters" / "symbol_error", "100000")
    async with source_of(sysfs) as source:
        looks = Looks(source)
        await looks.look(10.0)
        for name in ("link_downed", "symbol_error"):
            sysfs.say(folder / "counters" / name, "0")
        assert await looks.look(10.0) == []


async def test_the_interface_of_a_roce_port_tells_nothing_a_second_time(sysfs: Sysfs) -> None:
    """One cable, one event; both have their rows, for they count different traffic."""
    folder = sysfs.infiniband("mlx5_0", netdev="eth1", rate="100 Gb/sec (4X EDR)")
    interface = (sysfs.root / "class/net/eth1").resolve()
    async with source_of(sysfs) as source:
        looks = Looks(source)
        first = links(await source.read(NOW))
        assert first.device == ["mlx5_0", "eth1"]
        sysfs.link(folder, DOWN)
        sysfs.say(interface / "carrier", "0")
        (event,) = await looks.look()
        assert (event.detail["device"], event.detail["netdevs"]) == ("mlx5_0", ["eth1"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("N/A (no PMA)", FieldFailure.UNSUPPORTED),
        ("rubbish", FieldFailure.DRIVER_ERROR),
        ("-1", FieldFailure.DRIVER_ERROR),
        ("9" * 40, FieldFailure.DRIVER_ERROR),
        ("", FieldFailure.DRIVER_ERROR),
    ],
)
async def test_a_file_that_holds_no_number_is_null_with_its_reason_and_the_others_go_on(
    sysfs: Sysfs, text: str, why: FieldFailure
) -> None:
    """Never zero."""
    folder = sysfs.infiniband("mlx5_0")
    sysfs.say(folder / "counters" / "symbol_error", text)
    sysfs.say(folder / "counters" / "port_rcv_errors", "5")
    async with source_of(sysfs) as source:
        reading = await source.read(NOW)
    assert (value(links(reading), "symbol_error_count"), value(links(reading), "receive_error_count")) == (None, 5)
    assert reading.failures == {("symbol_error_count", why): 1}


async def test_a_counter_beyond_64_bits_of_sign_stays_at_the_end(sysfs: Sysfs) -> None:
    """The kernel's counters are unsigned; ours would wrap into the negative."""
    folder = sysfs.infiniband("mlx5_0")
    sysfs.say(folder / "counters" / "port_xmit_data", str(2**64 - 1))
    async with source_of(sysfs) as source:
        assert value(links(await source.read(NOW)), "tx_bytes") == 2**63 - 1


async def test_a_card_that_hangs_is_told_once_holds_nothing_up_and_is_told_when_it_answers(
    sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its firmware may take for ever; a look that waits is left alone, and none is begun beside it."""
    monkeypatch.setattr(network_source, "DEADLINE_SECONDS", 0.1)
    folder = sysfs.infiniband("mlx5_0")
    (folder / "counters" / "symbol_error").unlink()
    async with source_of(sysfs) as source:
        os.mkfifo(folder / "counters" / "symbol_error")  # whoever opens it waits for somebody who writes
        first, second = await source.read(NOW), await source.read(NOW + 2.0)
        assert states(first.events) == ["hung"]
        assert second.events == []
        assert first.failures == second.failures == {("network", FieldFailure.NO_ANSWER): 1}
        assert sum(thread.name == "network" for thread in threading.enumerate()) == 1
        assert "do not answer" in source.unreadable()[0]
        with (folder / "counters" / "symbol_error").open("w") as fifo:
            fifo.write("0\n")
        (folder / "counters" / "symbol_error").unlink()
        sysfs.say(folder / "counters" / "symbol_error", "0")
        while (reading := await source.read(NOW + 4.0)).failures:
            pass
        assert states(reading.events) == ["answers"]


async def test_a_node_without_cards_and_a_source_outside_its_block(sysfs: Sysfs) -> None:
    """Nothing is there: said in words, and no error."""
    source = source_of(sysfs)
    with pytest.raises(SourceClosed):
        await source.read(NOW)
    async with source:
        reading = await source.read(NOW)
        assert (reading.links, reading.events) == (None, [])
        assert "run it in the host's network" in source.unreadable()[0]


async def test_only_what_is_named_is_read_and_more_than_the_bound_is_said(sysfs: Sysfs) -> None:
    """A switch has hundreds of ports; a node does not."""
    for number in range(PORTS_MAX + 3):
        sysfs.ethernet(f"eth{number}")
    chosen = source_of(sysfs, ("eth1", "eth7", "absent"))
    async with chosen:
        assert links(await chosen.read(NOW)).device == ["eth1", "eth7"]
    async with source_of(sysfs) as source:
        assert links(await source.read(NOW)).rows == PORTS_MAX
        assert "only the first" in source.unreadable()[-1]


def test_every_counter_is_a_metric_of_links() -> None:
    """A name that the schema does not have would be lost."""
    assert {*INFINIBAND, *ETHERNET} <= LINKS.keys()


async def test_this_machines_own_cards_are_read() -> None:
    """The real sysfs, whatever it has: nothing raises, and every failure has a reason."""
    async with Network("node-1").build(ManualClock()) as source:
        reading = await source.read(NOW)
    expected = await asyncio.to_thread(find_ports, Path("/sys"), None)
    assert (0 if reading.links is None else reading.links.rows) == len(expected)


@pytest.mark.needs_shared
async def test_a_recording_of_a_real_node_comes_out_as_it_went_in(sysfs: Sysfs, shared_folder: Path) -> None:
    """Eight ports of a training node: what its counters would have shown is what the rows say."""
    folders = [sysfs.infiniband(f"mlx5_{port}") for port in range(8)]
    totals = [0.0] * 8
    path = shared_folder / "data/gpu_telemetry/t11_node1_ib.csv.gz"
    with gzip.open(path, "rt") as file:
        recorded: list[dict[str, Any]] = list(csv.DictReader(file))[::50][:20]
    async with source_of(sysfs) as source:
        for number, row in enumerate(recorded):
            for port, folder in enumerate(folders):
                totals[port] += float(row[f"ib{port}_tx_bytes_s"]) * 5.0
                sysfs.say(folder / "counters" / "port_xmit_data", str(int(totals[port]) // 4))
            reading = await source.read(NOW + 10.0 * number)
            sent = [value(links(reading), "tx_bytes", port) for port in range(8)]
            assert sent == [int(total) // 4 * 4 for total in totals]
            assert not reading.events
    assert max(totals) > 1e9
