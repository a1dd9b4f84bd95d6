"""The details of an NVLink 5 XID (144 to 150): which unit, how bad, which link.

The driver writes them as ``RLW_SRC_TRACK Nonfatal XC1 i0 Link 12 (0x040988e2 0x00000008 ...)``: the unit and its part,
whether the error is fatal, the crossbar and the instance, the link, and registers of which the first is the interrupt's
information and the second the error's status. NVIDIA's catalogue names an action for these codes only as a workflow,
so that the registers are passed on as they are and no action is invented for them.
"""

import re
from typing import Any

CODES = range(144, 151)
REGISTERS_MAX = 8
"""The driver writes four or six."""
_DETAILS = re.compile(
    r"(?:^|, ?)(?P<unit>[A-Z][A-Z0-9_]{1,31})(?:/(?P<part>[A-Z0-9_]{1,31}))?\s+(?P<severity>Fatal|Nonfatal)\s+"
    r"XC(?P<crossbar>\d{1,3})\s+i(?P<instance>\d{1,3})\s+Link\s+(?P<link>-?\d{1,4})(?:\s+\((?P<registers>[^)]{0,200}))?"
)
_REGISTER = re.compile(r"\b0x[0-9a-fA-F]{1,8}\b")


def decode(code: int, text: str) -> dict[str, Any]:
    """The details in the text of an XID; empty where ``code`` is another, or the text has another form.

    A line that was cut off gives the registers that are whole. ``link`` -1 is the driver's word for no one link.
    """
    found = _DETAILS.search(text) if code in CODES else None
    if found is None:
        return {}
    registers = _REGISTER.findall(found["registers"] or "")[:REGISTERS_MAX]
    return {
        "nvlink_unit": found["unit"],
        **({"nvlink_part": found["part"]} if found["part"] else {}),
        "fatal": found["severity"] == "Fatal",
        "crossbar": int(found["crossbar"]),
        "instance": int(found["instance"]),
        "link": int(found["link"]),
        **({"interrupt_info": registers[0]} if registers else {}),
        **({"error_status": registers[1]} if len(registers) > 1 else {}),
        **({"registers": registers} if registers else {}),
    }
