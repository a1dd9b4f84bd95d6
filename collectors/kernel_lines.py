"""Lines of the kernel's log, in every form in which they are kept: what they say of GPUs and switches. Pure.

Nothing raises: a line of another kind says nothing, and a line that is cut off says what of it is whole.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LINE_MAX = 4_096
"""Characters of a line that are looked at. The kernel itself cuts its lines at about 1,000."""
CODE_MAX = 1_000_000
"""Codes of XIDs have three digits, those of SXIDs five."""

_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?(?P<pci>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.\d)?)\): "
    r"(?P<code>\d{1,7})(?!\d)(?P<rest>.*)"
)
_PROCESS = re.compile(r"^,\s*pid=(?P<pid>\d{1,10}|'[^']{0,32}'|[A-Z]{1,8})(?:,\s*name=(?P<name>[^,]{1,64}))?")
_SXID = re.compile(
    r"nvidia-nvswitch(?P<switch>\d{1,4}): SXid \(PCI:(?P<pci>[0-9a-fA-F:.]{4,20})\): "
    r"(?P<code>\d{1,7})(?!\d)(?:, (?P<rest>.*))?"
)
_SEVERITY = re.compile(r"^(?P<severity>Fatal|Non-fatal)\b(?:,\s*|\s+)?(?P<text>.*)")
_LINK = re.compile(r"\bLink (?P<link>-?\d{1,4})\b")


@dataclass(frozen=True, slots=True)
class XidLine:
    """The driver has told of an XID. ``text`` is what it says beside code and process."""

    pci: str
    code: int
    text: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SxidLine:
    """The driver of the NVSwitches has told of an SXID. ``fatal`` is ``None`` where the line does not say."""

    switch: int
    pci: str
    code: int
    fatal: bool | None
    link: int | None
    text: str


@dataclass(frozen=True, slots=True)
class ConditionLine:
    """Something else of this machine that a training job feels."""

    condition: str
    text: str


CONDITIONS: Mapping[str, tuple[str, str]] = {
    "out_of_memory": (
        "the kernel has killed a process for want of memory",
        r"Out of memory: Kill(?:ed)? process|oom-kill:constraint=|oom_reaper: reaped process",
    ),
    "nccl_segfault": ("NCCL has crashed in a process", r"segfault at .* in libnccl\.so"),
    "peermem": ("nvidia-peermem has lost its context: RDMA to GPUs may fail", r"nvidia-peermem .*ERROR"),
    "driver_failed": (
        "the NVIDIA driver could not start a GPU",
        r"NVRM: .*(?:RmInitAdapter failed|rm_init_adapter failed|probe of \S+ failed)",
    ),
    "pcie_error": (
        "a PCIe device has reported an error",
        r"(?:pcieport|AER).*(?:Uncorrected|Corrected|Fatal).*error|PCIe Bus Error:",
    ),
    "machine_check": (
        "the processor or its memory has reported a hardware error",
        r"mce: \[Hardware Error\]|\[Hardware Error\]: Machine check|EDAC .*\b(?:UE|uncorrected)\b.* error",
    ),
    "hung_task": ("a task is stuck in the kernel", r"INFO: task .* blocked for more than \d+ seconds"),
    "soft_lockup": (
        "a processor is stuck in the kernel",
        r"BUG: soft lockup|watchdog: BUG: soft lockup|NMI watchdog: .*lockup",
    ),
    "kernel_bug": (
        "the kernel has failed",
        r"Kernel panic - not syncing|BUG: unable to handle|kernel BUG at |Oops: [0-9a-f]{4}",
    ),
    "file_limit": ("no process can open another file", r"VFS: file-max limit \d+ reached"),
    "read_only": (
        "a file system has failed and is read-only",
        r"Remounting filesystem read-only|EXT4-fs error|XFS .*Corruption",
    ),
    "network_card": (
        "a network card has failed or lost its cable",
        r"mlx5_core .*(?:Link down|health compromised|Fatal error|command timeout|timed out)",
    ),
}
"""By name: what it means, and how the kernel writes it."""
_ANY_CONDITION = re.compile("|".join(f"(?P<{name}>{pattern})" for name, (_, pattern) in CONDITIONS.items()))


def read_line(text: str) -> XidLine | SxidLine | ConditionLine | None:
    """What the text of a line (without its time) says; ``None`` if it is of no concern here."""
    text = text[:LINE_MAX]
    # From the beginning of the line: what a process writes into some other line is not believed.
    if (found := _XID.match(text)) is not None:
        return _xid(found)
    if (found := _SXID.match(text)) is not None:
        return _sxid(found)
    if (found := _ANY_CONDITION.search(text)) is not None:
        return ConditionLine(str(found.lastgroup), text.strip())
    return None


def _xid(found: re.Match[str]) -> XidLine | None:
    code, rest = int(found["code"]), found["rest"]
    detail: dict[str, Any] = {}
    if not 0 < code <= CODE_MAX:
        return None
    if (process := _PROCESS.match(rest)) is not None:
        rest = rest[process.end() :]
        if process["pid"].isdecimal():
            detail["pid"] = int(process["pid"])
        if process["name"] and process["name"] != "<unknown>":
            detail["process"] = process["name"]
    return XidLine(found["pci"].lower(), code, rest.strip(", \t"), detail)


def _sxid(found: re.Match[str]) -> SxidLine | None:
    code, rest = int(found["code"]), (found["rest"] or "").strip()
    if not 0 < code <= CODE_MAX or rest.startswith("Data {"):
        return None  # the registers of the line before
    severity = _SEVERITY.match(rest)
    text = rest if severity is None else severity["text"]
    link = _LINK.search(text)
    return SxidLine(
        switch=int(found["switch"]),
        pci=found["pci"].lower(),
        code=code,
        fatal=None if severity is None else severity["severity"] == "Fatal",
        link=None if link is None else int(link["link"]),
        text=text.strip(),
    )
