"""NVIDIA's catalogue of XIDs, as data: ``codes.csv`` beside this file.

Codes, mnemonics and actions are those of NVIDIA's catalogue of October 2025; the meanings are ours. What to do about a
code is NVIDIA's word; who is woken for it is a matter of configuration, and not said here.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

FOLLOW_ONS = frozenset({43, 45, 154})
"""Codes that come after another one on the same GPU: a channel that was stopped (43) or removed (45) because of it, and
the driver's new word on what is to be done (154)."""


@dataclass(frozen=True, slots=True)
class Xid:
    """What is known of a code. ``action`` is NVIDIA's at once, ``investigate`` the later one; ``None``: not said."""

    code: int
    mnemonic: str | None
    action: str | None
    investigate: str | None
    meaning: str | None


def _read() -> dict[int, Xid]:
    text = files("collectors.xids").joinpath("codes.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(text.splitlines()):
        texts = (row[name] or None for name in ("mnemonic", "action", "investigate", "meaning"))
        found[int(row["code"])] = Xid(int(row["code"]), *texts)
    return found


CATALOGUE: Mapping[int, Xid] = _read()
"""Every code that NVIDIA lists."""


def xid_of(code: int) -> Xid:
    """What is known of ``code``; a code that is not listed is known by its number alone."""
    return CATALOGUE.get(code) or Xid(code, None, None, None, None)
