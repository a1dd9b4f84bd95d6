"""What stands before the text of a kernel's line: the time, in the ways in which it is kept. Pure.

======================================  =====================================================
``6,3964,206764307,-;text``             a record of ``/dev/kmsg``: priority, number, microseconds
``[  201.650687] text``                 ``dmesg``, and ``<4>[...]`` as pstore keeps it
``kern  :warn  : 2025-01-21T...+00:00`` ``dmesg --decode --time-format iso``
``2025-01-21T04:41:44+00:00 host ...``  syslog with ISO times
``Jan 21 04:41:44 host kernel: ...``    syslog of old, which leaves out the year
``[Tue Jan 21 04:41:44 2025] text``     ``dmesg -T``
======================================  =====================================================
"""

import datetime as dt
import math
import re
from dataclasses import dataclass

RECORD_PREFIX_MAX = 256
_RECORD = re.compile(rb"(?P<priority>\d{1,6}),(?P<number>\d{1,20}),(?P<micros>\d{1,20}),[^;]{0,128};")
_ESCAPE = re.compile(r"\\x([0-9a-fA-F]{2})")
_LEVEL = re.compile(r"^(?:<\d{1,3}>|[a-z0-9]{2,8}\s*:[a-z]{2,7}\s*:\s*)")
_BOOT = re.compile(r"^\[\s*(?P<seconds>\d{1,12}\.\d{1,9})\]\s?")
_ISO = re.compile(
    r"^(?P<stamp>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:[.,](?P<fraction>\d{1,9}))?(?P<zone>Z|[+-]\d\d:?\d\d)?\s+"
)
_SYSLOG = re.compile(r"^(?P<stamp>[A-Z][a-z]{2}\s+\d{1,2} \d\d:\d\d:\d\d)\s+")
_CTIME = re.compile(r"^\[(?P<stamp>[A-Z][a-z]{2} [A-Z][a-z]{2}\s+\d{1,2} \d\d:\d\d:\d\d \d{4})\]\s?")
_OTHER_BRACKET = re.compile(r"^\[[^\]]{0,40}\]\s?")
_HOST = re.compile(r"^\S{1,253}\s+kernel:\s?")


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """A record of ``/dev/kmsg``. ``facility`` 0 is the kernel itself; ``seconds`` count from the machine's start."""

    facility: int
    number: int
    seconds: float
    text: str


def record_in(data: bytes) -> KernelRecord | None:
    """The record in what one read of ``/dev/kmsg`` has given; ``None`` for what is none. Its dictionary is left out."""
    found = _RECORD.match(data, 0, RECORD_PREFIX_MAX)
    if found is None:
        return None
    text = data[found.end() :].split(b"\n", 1)[0].decode("utf-8", "replace")
    plain = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    return KernelRecord(int(found["priority"]) >> 3, int(found["number"]), int(found["micros"]) / 1e6, plain)


def text_in(line: str, now: float, booted: float | None = None) -> tuple[float | None, str]:
    """The time of a line of a log file (UTC seconds; ``None`` if it has none that can be read), and its text.

    ``booted`` is when the machine started (UTC seconds), for lines that count from there. A time without a zone is
    taken as this machine's; one without a year as the newest that is not after ``now``.
    """
    rest = _LEVEL.sub("", line, count=1)
    at: float | None = None
    for form, read in ((_ISO, _iso), (_SYSLOG, _syslog), (_CTIME, _ctime)):
        if (found := form.match(rest)) is not None:
            at, rest = read(found, now), _HOST.sub("", rest[found.end() :], count=1)
            break
    if (found := _BOOT.match(rest)) is not None:
        rest = rest[found.end() :]
        if at is None and booted is not None:
            at = booted + float(found["seconds"])
    return at, _OTHER_BRACKET.sub("", rest, count=1)


def _iso(found: re.Match[str], _now: float) -> float | None:
    zone = (found["zone"] or "").replace("Z", "+00:00")
    try:
        whole = dt.datetime.fromisoformat(found["stamp"] + zone).timestamp()
    except (ValueError, OverflowError):
        return None
    return whole + float(f"0.{found['fraction'] or 0}")


def _syslog(found: re.Match[str], now: float) -> float | None:
    year = dt.datetime.fromtimestamp(now).astimezone().year
    stamp = " ".join(found["stamp"].split())
    for candidate in (year, year - 1):
        at = _local(f"{candidate} {stamp}", "%Y %b %d %H:%M:%S")
        if at is not None and at <= now + 86_400.0:
            return at
    return None


def _ctime(found: re.Match[str], _now: float) -> float | None:
    return _local(" ".join(found["stamp"].split()), "%a %b %d %H:%M:%S %Y")


def _local(text: str, form: str) -> float | None:
    try:
        at = dt.datetime.strptime(text, form).astimezone().timestamp()
    except (ValueError, OverflowError):
        return None
    return at if math.isfinite(at) else None
