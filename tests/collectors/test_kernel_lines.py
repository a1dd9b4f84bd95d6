"""The kernel's lines in every form in which they are kept, and what of them is an XID, an SXID, or something else."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.kernel_lines import CONDITIONS, LINE_MAX, ConditionLine, SxidLine, XidLine, read_line
from collectors.kernel_prefix import record_in, text_in

NOW = datetime(2026, 1, 5, 12, 0, 0, tzinfo=UTC).timestamp()
FALLEN = "NVRM: Xid (PCI:0000:a3:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
AT = datetime(2026, 1, 5, 11, 59, 58, 500_000, tzinfo=UTC).timestamp()
LOCAL = datetime.fromtimestamp(AT).astimezone()


@pytest.mark.parametrize(
    ("line", "at"),
    [
        pytest.param(FALLEN, None, id="bare"),
        pytest.param(f"[  201.500000] {FALLEN}", NOW - 1_000 + 201.5, id="dmesg"),
        pytest.param(f"<3>[  201.500000] {FALLEN}", NOW - 1_000 + 201.5, id="pstore"),
        pytest.param(f"kern  :warn  : 2026-01-05T11:59:58,500000+00:00 {FALLEN}", AT, id="decoded"),
        pytest.param(f"2026-01-05T11:59:58.500000+00:00 gpu-7 kernel: [  20.5] {FALLEN}", AT, id="iso-syslog"),
        pytest.param(f"{LOCAL:%b %e %H:%M:%S} gpu-7 kernel: [  20.5] {FALLEN}", AT - 0.5, id="old-syslog"),
        pytest.param(f"[{LOCAL:%a %b %e %H:%M:%S %Y}] {FALLEN}", AT - 0.5, id="dmesg-T"),
        pytest.param(f"[...] {FALLEN}", None, id="elided"),
        pytest.param(f"2026-99-99T99:99:99+00:00 gpu-7 kernel: {FALLEN}", None, id="no-such-day"),
    ],
)
def test_time_and_text_are_read_in_every_form(line: str, at: float | None) -> None:
    """The same line says the same, wherever it was kept."""
    found, text = text_in(line, NOW, NOW - 1_000)
    assert found == pytest.approx(at) if at is not None else found is None
    assert text == FALLEN


def test_a_syslog_time_without_a_year_is_that_of_the_newest_one_that_has_been() -> None:
    """On the fifth of January a line of December is last year's."""
    at, _ = text_in(f"Dec 31 23:59:59 gpu-7 kernel: {FALLEN}", NOW)
    assert at is not None
    assert datetime.fromtimestamp(at).astimezone().year == 2025


def test_a_record_of_kmsg_gives_its_number_facility_time_and_text() -> None:
    """Priority, number, microseconds, flags; a dictionary behind it is left out; escapes are undone."""
    found = record_in(
        b"30,3964,206764307,-,caller=T1;audit: name=\\x22x\\x22\n SUBSYSTEM=pci\n DEVICE=+pci:0000:a3:00.0\n"
    )
    assert found is not None
    assert (found.facility, found.number, found.seconds) == (3, 3_964, 206.764307)
    assert found.text == 'audit: name="x"'


@pytest.mark.parametrize("data", [b"", b"6,1,2", b"x,1,2,-;text", b"\xff" * 40, b"6,1,2,-", b"9" * 5_000 + b",1,2,-;t"])
def test_what_is_no_record_is_none(data: bytes) -> None:
    """Nothing raises."""
    assert record_in(data) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (FALLEN, XidLine("0000:a3:00", 79, "GPU has fallen off the bus.")),
        ("NVRM: Xid (0000:03:00): 13, 0003 00000000", XidLine("0000:03:00", 13, "0003 00000000")),
        ("NVRM: Xid (PCI:0000:04:00): 69", XidLine("0000:04:00", 69, "")),
        ("NVRM: Xid (PCI:0000:01:00): 31, pid=XXX", XidLine("0000:01:00", 31, "")),
        (
            "NVRM: Xid (PCI:0009:01:00): 43, pid=2924364, name=pt_main_thread, Ch 00000008",
            XidLine("0009:01:00", 43, "Ch 00000008", {"pid": 2_924_364, "process": "pt_main_thread"}),
        ),
        (
            "NVRM: Xid (PCI:0018:01:00): 145, pid=8, name=ray::WorkerDict, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x1)",
            XidLine(
                "0018:01:00",
                145,
                "RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x1)",
                {"pid": 8, "process": "ray::WorkerDict"},
            ),
        ),
        ("NVRM: Xid (PCI:0000:05:00): 99999, unknown error", XidLine("0000:05:00", 99_999, "unknown error")),
        ("NVRM: Xid (PCI:0000:05:00): %d, unknown", None),
        ("NVRM: Xid (PCI:0000:05:00): 0, nothing", None),
        ("NVRM: Xid (PCI:0000:05:00): 123456789, too long", None),
        ("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.144.03", None),
        ("audit: exe=NVRM: Xid (PCI:0000:05:00): 79, forged by a process", None),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            SxidLine(0, "0000:a9:00.0", 20_034, True, 30, "Link 30 LTSSM Fault Up"),
        ),
        (
            "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error (First)",
            SxidLine(3, "0000:05:00.0", 12_028, False, 32, "Link 32 egress non-posted PRIV error (First)"),
        ),
        (
            "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal",
            SxidLine(3, "0000:05:00.0", 12_028, False, None, ""),
        ),
        (
            "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 99999, Some error",
            SxidLine(3, "0000:05:00.0", 99_999, None, None, "Some error"),
        ),
        ("nvidia-nvswitch0: SXid (PCI:0000:a9:00.0): 20034, Data {0x50610002, 0x10100030}", None),
        ("nvidia-nvswitch0: SXid (PCI:0000:00:00.0): xyz, Fatal error", None),
        ("nvidia-nvswitch2: open (major=510)", None),
    ],
)  # fmt: skip
def test_what_a_line_says_of_gpus_and_switches(text: str, found: object) -> None:
    """Every form in which the driver writes, and nothing that only looks like it."""
    assert read_line(text) == found


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("Out of memory: Killed process 123, UID 48, (httpd).", "out_of_memory"),
        ("oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x.scope", "out_of_memory"),
        ("pt_main_thread[25]: segfault at 7f ip 0 sp 0 error 4 in libnccl.so.2[7f7c+d3d]", "nccl_segfault"),
        ("nvidia-peermem nv_get_p2p_free_callback:127 ERROR detected invalid context, skipping", "peermem"),
        ("NVRM: GPU 0000:3d:00.0: RmInitAdapter failed! (0x24:0xffff:1218)", "driver_failed"),
        ("pcieport 0000:00:1c.0: AER: Uncorrected (Fatal) error received: 0000:00:1c.0", "pcie_error"),
        ("mce: [Hardware Error]: CPU 2: Machine Check: 0 Bank 7: cc00008000010090", "machine_check"),
        ("EDAC MC0: 1 UE memory read error on CPU_SrcID#0_MC#0", "machine_check"),
        ("INFO: task python3:4711 blocked for more than 120 seconds.", "hung_task"),
        ("watchdog: BUG: soft lockup - CPU#3 stuck for 23s! [python3:4711]", "soft_lockup"),
        ("BUG: unable to handle kernel NULL pointer dereference at (null)", "kernel_bug"),
        ("VFS: file-max limit 1000000 reached", "file_limit"),
        ("EXT4-fs error (device nvme0n1p2): ext4_find_entry:1463: inode #2", "read_only"),
        ("mlx5_core 0000:41:00.1 ens1f1np1: Link down", "network_card"),
    ],
)
def test_other_lines_that_a_job_feels_have_their_names(text: str, condition: str) -> None:
    """Each condition is written by the kernel like this."""
    assert read_line(text) == ConditionLine(condition, text)
    assert CONDITIONS[condition][0]


@pytest.mark.parametrize(
    "text",
    [
        "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready",
        "perf: interrupt took too long (2509 > 2500), lowering kernel.perf_event_max_sample_rate to 79500",
        "EDAC MC0: Giving out device to module amd64_edac controller F19h_M10h: DEV 0000:00:18.3 (INTERRUPT)",
        "mlx5_core 0000:41:00.1: 63.008 Gb/s available PCIe bandwidth (8.0 GT/s PCIe x8 link)",
        "nvidia-nvlink: Nvlink Core is being initialized, major device number 507",
        "python3[77]: segfault at 0 ip 00 sp 00 error 4 in libtorch_cpu.so[7f+1]",
        "",
    ],
)
def test_what_concerns_nobody_says_nothing(text: str) -> None:
    """A page for every line would be no page."""
    assert read_line(text) is None


@given(st.text(max_size=300))
def test_whatever_stands_there_nothing_is_raised(text: str) -> None:
    """A log may hold anything."""
    at, rest = text_in(text, NOW, NOW - 1_000)
    assert at is None or isinstance(at, float)
    assert len(rest) <= len(text)
    read_line(text)
    read_line("NVRM: Xid (PCI:0000:05:00): " + text)
    record_in(text.encode("utf-8", "surrogatepass"))


def test_a_line_of_a_million_characters_takes_no_time() -> None:
    """Patterns do not run away on what is written to make them."""
    began = time.process_time()
    for piece in ("NVRM: Xid (PCI:0000:05:00): 145, " + "A_" * 500_000, "a" * 10**6, "AER" * 300_000, "[ " * 500_000):
        read_line(piece)
        text_in(piece[:LINE_MAX], NOW)
    assert time.process_time() - began < 5.0


@pytest.mark.needs_shared
def test_every_real_line_is_read_rightly(shared_folder: Path) -> None:
    """Of the public logs: as many XIDs and SXIDs as their lines name with a number, and no other line taken for one."""
    xids = sxids = 0
    for path in sorted((shared_folder / "data/kernel_logs").iterdir()):
        for line in path.read_text(errors="replace").splitlines():
            record = record_in(line.encode())
            text = text_in(line, NOW)[1] if record is None else record.text
            found = read_line(text)
            says_xid = re.search(r"NVRM: Xid \(PCI:[0-9a-fA-F:]+\): (\d+)", line)
            says_sxid = re.search(r"SXid \(PCI:[0-9a-fA-F:.]+\): (\d+)\b(?!, Data)", line)
            assert isinstance(found, XidLine) == bool(says_xid), line
            assert isinstance(found, SxidLine) == bool(says_sxid), line
            if isinstance(found, XidLine) and says_xid:
                assert found.code == int(says_xid[1])
                xids += 1
            sxids += isinstance(found, SxidLine)
    assert (xids, sxids) == (XIDS, SXIDS)


XIDS, SXIDS = 118, 12
"""Counted by grep in the public logs."""
