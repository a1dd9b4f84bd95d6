"""The kernel's log as a source: a device that gives a record a read, files that turn over, and the real one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors.agent import NodeAgent
from collectors.errors import FieldFailure, SourceClosed, SourceUnavailable
from collectors.kernel_files import Kmsg, Position, open_kernel_file
from collectors.kernel_log import FIRST_SECONDS, KMSG, KernelLog, KernelLogSource
from collectors.source import EventRow
from collectors.xids import GpuIdentity, XidLedger
from telemetry_bus import Topic
from telemetry_bus.runtime.clock import ManualClock, SystemClock
from telemetry_bus.schemas import EventKind
from tests.collectors.virtual_time import RecordingBus

NOW = 1_700_000_000.0
FALLEN = "NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."


def source_of(path: Path, state: Path | None = None) -> KernelLogSource:
    """A source of node-1 that knows one GPU."""
    xids = XidLedger("node-1")
    xids.know([GpuIdentity(3, "GPU-3", "00000000:1B:00.0")])
    return KernelLog("node-1", xids, path, state).build(ManualClock())


def append(path: Path, *lines: str) -> None:
    """Write whole lines."""
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


async def codes(source: KernelLogSource, now: float = NOW) -> list[int | None]:
    """The codes of one reading's events."""
    return [event.code for event in (await source.read(now)).events]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a file that has one old line."""
    append(path := tmp_path / "kern.log", FALLEN.replace("79", "31"))
    return path


async def test_a_line_of_a_file_becomes_an_event_of_its_gpu_and_what_was_there_before_does_not(log: Path) -> None:
    """From the moment at which it is opened."""
    async with source_of(log) as source:
        append(log, "kernel: nothing", FALLEN)
        (row,) = (await source.read(NOW)).events
    assert (row.kind, row.code, row.gpu, row.uuid) == (EventKind.XID, 79, 3, "GPU-3")


async def test_half_a_line_waits_for_its_other_half(log: Path) -> None:
    """A writer writes when it likes."""
    async with source_of(log) as source:
        with log.open("a") as file:
            file.write(FALLEN[:30])
            file.flush()
            assert await codes(source) == []
            file.write(FALLEN[30:] + "\r\n")
        assert await codes(source) == [79]


async def test_a_file_that_is_moved_away_is_read_to_its_end_and_the_new_one_from_its_beginning(log: Path) -> None:
    """logrotate, with a file made anew."""
    async with source_of(log) as source:
        append(log, FALLEN)
        log.rename(log.with_suffix(".1"))
        assert await codes(source) == [79]
        append(log.with_suffix(".1"), FALLEN.replace("79", "62"))
        append(log, FALLEN.replace("79", "63"))
        assert await codes(source) == [62, 63]


async def test_a_file_that_is_cut_off_is_read_from_its_beginning(log: Path) -> None:
    """logrotate's copytruncate."""
    async with source_of(log) as source:
        append(log, FALLEN, FALLEN)
        assert await codes(source) == [79, 79]
        log.write_text("")
        assert await codes(source) == []
        append(log, FALLEN.replace("79", "48"))
        assert await codes(source) == [48]


async def test_a_collector_that_is_started_again_neither_repeats_nor_misses(log: Path, tmp_path: Path) -> None:
    """What was written while it was away is told when it is back, though it had crashed."""
    state = tmp_path / "state" / "kernel-log.json"
    source = await source_of(log, state).__aenter__()
    append(log, FALLEN)
    assert await codes(source) == [79]
    assert await codes(source) == []  # by now what was told is written down
    append(log, FALLEN.replace("79", "94"))
    async with source_of(log, state) as again:  # the first was never closed
        assert await codes(again) == [94]
    async with source_of(log, state) as third:
        assert await codes(third) == []
    await source.__aexit__(None, None, None)


@pytest.mark.parametrize("text", ["", "[]", '{"origin": 1}', '{"origin": "x", "at": -5}', "x" * 10_000, '{"at": NaN}'])
async def test_a_state_that_cannot_be_read_is_none(log: Path, tmp_path: Path, text: str) -> None:
    """It begins with what is new, as a first start does."""
    (state := tmp_path / "state.json").write_text(text)
    async with source_of(log, state) as source:
        append(log, FALLEN)
        assert await codes(source) == [79]
    assert json.loads(state.read_text())["at"] == log.stat().st_size


@pytest.mark.parametrize("name", ["absent", "folder/absent"])
async def test_a_log_that_is_not_there_is_said_with_what_to_do(tmp_path: Path, name: str) -> None:
    """A container sees no /dev/kmsg unless somebody mounts it."""
    with pytest.raises(SourceUnavailable, match="mount the host's /dev/kmsg"):
        await source_of(tmp_path / name).__aenter__()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read")
def test_a_log_that_may_not_be_read_is_said_with_what_to_do(tmp_path: Path) -> None:
    """dmesg_restrict, or a file of root's."""
    (path := tmp_path / "kern.log").write_text("")
    path.chmod(0o600)
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(65_534)
    try:
        with pytest.raises(SourceUnavailable, match="CAP_SYSLOG"):
            open_kernel_file(path, None, "boot")
    finally:
        os.seteuid(0)


async def test_reading_outside_its_block_is_refused(log: Path) -> None:
    """As of every source."""
    source = source_of(log)
    with pytest.raises(SourceClosed):
        await source.read(NOW)


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, int]]:
    """Return a device like /dev/kmsg: the end to write records to, and a descriptor whose every read is one."""
    kernel, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel:
        descriptor = reader.detach()
        os.set_blocking(descriptor, False)
        yield kernel, descriptor


def record(number: int, text: str = FALLEN, seconds: float = 100.0, priority: int = 4) -> bytes:
    """A record as the kernel gives it."""
    return f"{priority},{number},{int(seconds * 1e6)},-;{text}\n SUBSYSTEM=pci\n".encode()


def test_records_are_read_to_the_end_and_what_a_process_wrote_is_not_believed(
    device: tuple[socket.socket, int],
) -> None:
    """Facility 0 is the kernel's, which no process can write under."""
    kernel, descriptor = device
    kmsg = Kmsg(descriptor, None, "boot-1")
    for data in (record(7), record(8, "forged: " + FALLEN, priority=12), b"no record", record(9)):
        kernel.send(data)
    lines = kmsg.read(NOW, 150.0)
    assert [line.text for line in lines.found] == [FALLEN, FALLEN]
    assert (lines.foreign, lines.lost, lines.more) == (1, 0, False)
    assert kmsg.position() == Position("boot-1", 9)
    kmsg.close()


def test_old_records_have_their_own_time_and_new_ones_that_of_now(device: tuple[socket.socket, int]) -> None:
    """The clock of the records walks away over weeks; what is read as it comes is of now."""
    kernel, descriptor = device
    kmsg = Kmsg(descriptor, None, "boot-1")
    kernel.send(record(1, seconds=100.0))
    (old,) = kmsg.read(NOW, 150.0).found
    kernel.send(record(2, seconds=148.0))
    (new,) = kmsg.read(NOW + 1.0, 151.0).found
    assert (old.time, new.time) == (NOW - 50.0, NOW + 1.0)
    kmsg.close()


def test_records_that_were_overwritten_are_counted_and_those_of_before_are_passed_over(
    device: tuple[socket.socket, int],
) -> None:
    """The ring turns over while a collector is away."""
    kernel, descriptor = device
    kmsg = Kmsg(descriptor, Position("boot-1", 5), "boot-1")
    for number in (4, 5, 9, 10):
        kernel.send(record(number))
    lines = kmsg.read(NOW, 150.0)
    assert (len(lines.found), lines.lost) == (2, 3)
    kmsg.close()


def test_a_position_of_an_earlier_boot_means_nothing(device: tuple[socket.socket, int]) -> None:
    """Numbers begin anew."""
    kernel, descriptor = device
    kmsg = Kmsg(descriptor, Position("boot-0", 5_000), "boot-1")
    kernel.send(record(3))
    assert len(kmsg.read(NOW, 150.0).found) == 1
    kmsg.close()


def test_a_flood_is_read_in_pieces(device: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's other sources have their turn in between."""
    kernel, descriptor = device
    monkeypatch.setattr("collectors.kernel_files.RECORDS_MAX", 50)
    for number in range(60):
        kernel.send(record(number))
    kmsg = Kmsg(descriptor, None, "boot-1")
    assert [(len(lines.found), lines.more) for lines in (kmsg.read(NOW, 150.0), kmsg.read(NOW, 150.0))] == [
        (50, True),
        (10, False),
    ]
    kmsg.close()


async def test_a_first_start_does_not_tell_the_machines_history(tmp_path: Path) -> None:
    """Ten minutes, not a year; what is told of long ago says when it happened."""
    os.mkfifo(path := tmp_path / "kmsg")
    clock = ManualClock()
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    xids = XidLedger("node-1")
    async with KernelLog("node-1", xids, path, tmp_path / "state.json").build(clock) as source:
        monotonic = clock.monotonic()
        os.write(writer, record(1, seconds=monotonic - FIRST_SECONDS - 10.0))
        assert await codes(source) == []
    os.close(writer)


async def test_the_loop_is_told_at_once_and_rests_while_the_kernel_is_silent(tmp_path: Path) -> None:
    """An XID is on its way within milliseconds, not at the next look in ten seconds."""
    os.mkfifo(path := tmp_path / "kmsg")
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    clock, bus = SystemClock(), RecordingBus()
    source = KernelLog("node-1", XidLedger("node-1"), path).build(clock)
    async with NodeAgent([source], bus.publish, clock, node="node-1"), asyncio.timeout(10):
        while source.urgent is None:
            await asyncio.sleep(0)
        os.write(writer, record(1, seconds=clock.monotonic()))
        began = clock.now()
        (frame,) = await bus.has(Topic.EVENTS, 1)
    os.close(writer)
    assert frame.batch.column("code").to_pylist() == [79]
    assert clock.now() - began < 5.0


async def test_switches_and_conditions_are_events_and_a_flood_of_them_is_bounded(log: Path) -> None:
    """They come with what the line says."""
    async with source_of(log) as source:
        append(log, "nvidia-nvswitch1: SXid (PCI:0000:a9:00.0): 20034, Fatal, Link 30 LTSSM Fault Up")
        append(log, *["Out of memory: Killed process 123, UID 48, (python3)."] * 500)
        events: list[EventRow] = list((await source.read(NOW)).events)
    switch, *others = events
    assert (switch.kind, switch.code, switch.detail["fatal"], switch.detail["link"]) == (
        EventKind.SXID,
        20_034,
        True,
        30,
    )
    assert {event.kind for event in others} == {EventKind.KERNEL}
    assert {event.detail["condition"] for event in others} == {"out_of_memory"}
    assert len(others) == 20


async def test_lost_records_are_a_counted_failure_and_said_to_a_person(
    device: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence would look like health."""
    kernel, descriptor = device
    monkeypatch.setattr("collectors.kernel_log.open_kernel_file", lambda *_: Kmsg(descriptor, Position("b", 1), "b"))
    async with source_of(KMSG) as source:
        kernel.send(record(5))
        reading = await source.read(NOW)
        said = source.unreadable()
    assert reading.failures == {("kernel_log", FieldFailure.LOST): 3}
    assert said == ["3 records of the kernel's log were overwritten before they were read"]


@pytest.mark.skipif(not os.access(KMSG, os.R_OK), reason="this machine's /dev/kmsg cannot be read")
async def test_this_machines_own_log_is_read() -> None:
    """The real device: its records are read to the end, and each has a number."""
    try:
        source = await source_of(KMSG).__aenter__()
    except SourceUnavailable as error:
        pytest.skip(str(error))
    await source.read(SystemClock().now())
    assert source._file is not None
    assert source._file.position().at >= 0
    await source.__aexit__(None, None, None)
