"""XIDs: what a code means, and which reports are one occurrence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.source import EventRow
from collectors.xids import GpuIdentity, Origin, XidLedger
from collectors.xids.catalogue import CATALOGUE, FOLLOW_ONS, xid_of
from collectors.xids.flood import ROWS_MAX, WINDOW_SECONDS, Flood
from collectors.xids.ledger import HOLD_SECONDS, PARENT_SECONDS, SAME_SECONDS, SERIES_MAX, slot_of
from collectors.xids.nvlink5 import decode
from telemetry_bus.schemas import EventKind

NOW = 1_700_000_000.0
KERNEL, NVML = Origin.KERNEL_LOG, Origin.NVML
UUID, PCI = "GPU-3", "0000:1b:00"


def ledger(*, reads_kernel_log: bool = False) -> XidLedger:
    """A node's ledger that knows one GPU, as NVML writes its address."""
    made = XidLedger("node-1")
    made.know([GpuIdentity(3, UUID, "00000000:1B:00.0")])
    made.reads_kernel_log = reads_kernel_log
    return made


def saw(of: XidLedger, origin: Origin, after: float = 0.0, code: int = 79, **more: Any) -> EventRow | None:
    """A report as each origin makes it: the kernel names a slot, NVML a uuid too."""
    uuid = UUID if origin is NVML else None
    return of.saw(origin, NOW + after, pci=PCI, uuid=uuid, code=code, **more)


def told(row: EventRow | None) -> EventRow:
    """The row, which must be there."""
    assert row is not None
    return row


def test_every_code_of_the_catalogue_has_its_action_and_an_unknown_one_is_passed_on() -> None:
    """NVIDIA's word is kept as it is; what is not listed is not dropped."""
    assert len(CATALOGUE) > 120
    assert (xid_of(79).action, xid_of(79).mnemonic) == ("RESTART_BM", "ROBUST_CHANNEL_GPU_HAS_FALLEN_OFF_THE_BUS")
    assert xid_of(45).action == "WORKFLOW_XID_45"
    assert xid_of(171).action is None
    assert xid_of(99_999).mnemonic is None
    assert CATALOGUE.keys() >= FOLLOW_ONS


def test_a_row_says_gpu_code_action_and_what_it_means() -> None:
    """Who is woken need not look the number up."""
    row = told(saw(ledger(), KERNEL, message="GPU has fallen off the bus."))
    assert (row.kind, row.gpu, row.uuid, row.code) == (EventKind.XID, 3, UUID, 79)
    assert row.message == "node-1: GPU 3: XID 79: the GPU has fallen off the bus"
    assert row.detail["action"] == "RESTART_BM"
    assert row.detail["text"] == "GPU has fallen off the bus."
    assert (row.detail["count"], row.detail["origin"], row.detail["pci"]) == (1, "kernel_log", PCI)


@pytest.mark.parametrize("order", [(KERNEL, NVML), (NVML, KERNEL)])
def test_the_same_xid_by_kernel_log_and_by_nvml_is_one_event(order: tuple[Origin, Origin]) -> None:
    """Whoever comes first."""
    one = ledger()
    assert saw(one, order[0]) is not None
    assert saw(one, order[1], 0.2) is None


def test_twice_the_same_xid_is_two_whoever_tells_and_in_whatever_order() -> None:
    """Two by each are two; three by one and two by the other are three."""
    one = ledger()
    reports = [(KERNEL, 0.0), (KERNEL, 0.1), (NVML, 0.2), (NVML, 0.3), (KERNEL, 0.4)]
    rows = [row for origin, after in reports if (row := saw(one, origin, after)) is not None]
    assert [row.detail["count"] for row in rows] == [1, 2, 3]


def test_far_apart_they_are_two_and_so_are_other_codes_and_other_gpus() -> None:
    """Ten seconds are enough for one interrupt."""
    one = ledger()
    one.know([GpuIdentity(4, "GPU-4", "00000000:1C:00.0")])
    assert saw(one, KERNEL) is not None
    assert saw(one, NVML, SAME_SECONDS + 0.1) is not None
    assert saw(one, NVML, code=31) is not None
    assert told(one.saw(NVML, NOW, pci=None, uuid="GPU-4", code=79)).gpu == 4


@given(st.lists(st.tuples(st.sampled_from([KERNEL, NVML]), st.floats(0.0, 5.0)), max_size=16))
def test_of_reports_within_seconds_there_are_as_many_events_as_the_more_talkative_has_told(
    reports: list[tuple[Origin, float]],
) -> None:
    """No occurrence twice, none swallowed, in any interleaving."""
    one, after, rows = ledger(), 0.0, 0
    for origin, step in sorted(reports, key=lambda report: report[1]):
        after = max(after, step)
        rows += saw(one, origin, after) is not None
    by = [sum(origin is each for origin, _ in reports) for each in (KERNEL, NVML)]
    assert rows == max(by)


def test_nvml_waits_a_moment_for_the_kernels_better_words_and_no_longer() -> None:
    """The line says which link; without it the report goes out by itself."""
    one = ledger(reads_kernel_log=True)
    line = "RLW_SRC_TRACK Nonfatal XC1 i0 Link 12 (0x040988e2 0x00000008 0x00000000 0x00000000 0x00000000 0x00000000)"
    assert saw(one, NVML, code=145) is None
    row = told(saw(one, KERNEL, 0.1, code=145, message=line))
    assert (row.detail["link"], row.detail["nvlink_unit"], row.detail["fatal"]) == (12, "RLW_SRC_TRACK", False)
    assert saw(one, NVML, 5.0, code=62) is None
    assert one.due(NOW + 5.0 + HOLD_SECONDS / 2) == []
    (late,) = one.due(NOW + 5.0 + HOLD_SECONDS)
    assert (late.code, late.detail["origin"], late.time) == (62, "nvml", NOW + 5.0)
    assert one.due(NOW + 9.0) == []
    assert saw(one, KERNEL, 6.0, code=62) is None


@pytest.mark.parametrize("code", sorted(FOLLOW_ONS))
def test_a_follow_on_names_its_parent_and_is_no_parent_itself(code: int) -> None:
    """43 behind 43 still names the cause of both."""
    one = ledger()
    saw(one, KERNEL, code=31)
    first, second = told(saw(one, KERNEL, 0.5, code)), told(saw(one, KERNEL, 1.0, code))
    assert first.detail["parent"] == {"code": 31, "seconds_before": 0.5}
    assert second.detail["parent"] == {"code": 31, "seconds_before": 1.0}
    assert "0.5 s after XID 31" in first.message
    assert "parent" not in told(saw(one, KERNEL, PARENT_SECONDS + 0.1, code)).detail


def test_a_follow_on_has_no_parent_on_another_gpu_nor_one_that_came_later() -> None:
    """Nothing is tied that need not belong together."""
    one = ledger()
    assert "parent" not in told(saw(one, KERNEL, code=45)).detail
    saw(one, KERNEL, 1.0, code=79)
    other = one.saw(KERNEL, NOW + 2.0, pci="0000:1c:00", uuid=None, code=45)
    assert "parent" not in told(other).detail


def test_the_recovery_action_is_read_in_numbers_and_words() -> None:
    """XID 154 is read for what it says."""
    text = "GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)"
    detail = told(saw(ledger(), KERNEL, code=154, message=text)).detail
    assert detail["recovery_before"] == {"action": 0, "words": "None"}
    assert detail["recovery_after"] == {"action": 4, "words": "Drain and Reset"}


def test_a_gpu_that_nobody_knows_is_named_by_its_slot() -> None:
    """Before the inventory, or on a node whose driver does not start."""
    row = told(XidLedger("node-1").saw(KERNEL, NOW, pci="PCI:0008:01:00", uuid=None, code=79))
    assert (row.gpu, row.uuid, row.detail["pci"]) == (None, None, "0008:01:00")
    assert "the GPU at 0008:01:00" in row.message


def test_a_flood_is_told_by_its_first_rows_and_by_how_many_more_there_were() -> None:
    """A GPU that fails writes thousands of lines a second."""
    one = ledger()
    rows = [row for number in range(1_000) if (row := saw(one, KERNEL, number / 1_000)) is not None]
    assert len(rows) == ROWS_MAX
    assert one.due(NOW + 5.0) == []
    (rest,) = one.due(NOW + WINDOW_SECONDS + 1.0)
    assert rest.detail["suppressed"] == 1_000 - ROWS_MAX
    after = told(saw(one, KERNEL, WINDOW_SECONDS + 2.0))
    assert after.detail["count"] == 1_001


def test_what_is_remembered_is_bounded() -> None:
    """Whoever can write addresses cannot fill the collector."""
    one = ledger()
    for number in range(SERIES_MAX + 100):
        one.saw(KERNEL, NOW, pci=f"{number:04x}:00:00", uuid=None, code=31)
    assert len(one._series) == len(one._causes) == SERIES_MAX


def test_a_clock_that_is_set_back_does_not_close_the_flood_for_ever() -> None:
    """Lines carry the time of a clock that somebody may set."""
    flood = Flood()
    assert all(flood.lets_through(NOW) for _ in range(ROWS_MAX))
    assert not flood.lets_through(NOW)
    assert flood.lets_through(NOW - 3_600.0)


@pytest.mark.parametrize(
    "form", ["0000:1B:00", "00000000:1B:00.0", "PCI:0000:1b:00", "0000:1b:00.0", "pci:00000000:1b:00"]
)
def test_an_address_is_one_in_all_its_forms(form: str) -> None:
    """Kernel, NVML and dcgm-exporter each write it in their own way."""
    assert slot_of(form) == PCI


@pytest.mark.parametrize(
    ("code", "text", "found"),
    [
        (
            149,
            "NETIR Fatal XC0 i0 Link -1 (0x000fe406",
            {"nvlink_unit": "NETIR", "link": -1, "registers": ["0x000fe406"]},
        ),
        (
            149,
            "NETIR_LINK_EVT/NETIR_LINK_DOWN Fatal XC0 i0 Link 00 (0x01000011 0x0)",
            {"nvlink_part": "NETIR_LINK_DOWN"},
        ),
        (149, "NETIR_LINK_EVT  Fatal   XC0 i0 Link 15 (0x0215e5c6)", {"fatal": True, "link": 15, "crossbar": 0}),
        (145, "pid=1, name=x, RLW_RXPIPE Nonfatal XC0 i2 Link 3", {"fatal": False, "instance": 2, "link": 3}),
        (145, "%s %s XC0 i0 Link 00 (%s %s 0x00000000 0x00000000)", {}),
        (149, "Placeholder message", {}),
        (79, "NETIR Fatal XC0 i0 Link 0 (0x1)", {}),
    ],
)
def test_the_details_of_nvlink_5_are_read_as_far_as_they_go(code: int, text: str, found: dict[str, Any]) -> None:
    """A line that is cut off, or of a later driver, gives what is whole in it and nothing else."""
    details = decode(code, text)
    assert found.items() <= details.items()
    assert bool(details) == bool(found)
