"""What Nantucket may tell a job to do, and why the job believes it: signature, names, time, and once only. No I/O."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, NamedTuple

_KEY_VERSION = "nvk1"
_SIGNATURE_VERSION = "v1"
_PURPOSE = "nantucket verdict 1"
_BYTES = 32
STOP = "stop"
ACTIONS = (STOP,)
AHEAD_SECONDS_MAX = 900.0
"""A verdict is good for ten minutes; one that claims to be good for longer than this (a clock may be five minutes
wrong) is not believed, so that none can be kept for later."""
NONCE_CHARACTERS_MAX = 64
SEEN_MAX = 256
"""Verdicts that are remembered. One attempt gets one; whoever could sign hundreds has the key."""
_INT64_MAX = 2**63 - 1

MALFORMED, FOREIGN, FORGED, EXPIRED, TOO_LONG, REPEATED = (
    "malformed",
    "foreign",
    "forged",
    "expired",
    "too_long",
    "repeated",
)
REASONS = (MALFORMED, FOREIGN, FORGED, EXPIRED, TOO_LONG, REPEATED)
"""Why a verdict is not believed: no verdict; of another job or attempt; signed by somebody else, or altered; its time
is over; valid for longer than any of ours; heard before."""


class Verdict(NamedTuple):
    """What a job is told, believed. ``step`` is the first bad step, ``expires`` UTC seconds."""

    action: str
    step: int
    expires: float
    nonce: str


class _Said(NamedTuple):
    """The fields of a message, of the right types and nothing more."""

    job: str
    attempt: str
    action: str
    nonce: str
    signature: str
    step: int
    expires_ms: int


class NotBelieved(Exception):
    """A verdict that counts for nothing; ``reason`` is one of :data:`REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def key_of(text: str) -> bytes:
    """The 32 bytes of ``NANTUCKET_VERDICT_KEY``. Raises ``ValueError``, which does not show them."""
    version, _, encoded = text.strip().partition(".")
    key = _decoded(encoded)
    if version != _KEY_VERSION or key is None:
        raise ValueError(f"expected {_KEY_VERSION}. and 43 characters, as nantucket job key prints them")
    return key


class Judge:
    """Believes verdicts on one attempt of one job, each once. ``now`` is UTC seconds, as everywhere."""

    def __init__(self, key: bytes, job: str, attempt: str) -> None:
        self._key = key
        self._job, self._attempt = job, attempt
        self._seen: dict[str, None] = {}

    def believe(self, body: Mapping[str, Any], now: float) -> Verdict:
        """The verdict in a message of the collector. Raises :class:`NotBelieved`, and nothing else."""
        said = _said(body)
        if (said.job, said.attempt) != (self._job, self._attempt):
            raise NotBelieved(FOREIGN)
        if not self._is_signed(said):
            raise NotBelieved(FORGED)
        if said.action not in ACTIONS:
            raise NotBelieved(MALFORMED)
        left = said.expires_ms / 1000.0 - now
        if not left > 0.0:
            raise NotBelieved(EXPIRED)
        if left > AHEAD_SECONDS_MAX:
            raise NotBelieved(TOO_LONG)
        self._once(said.nonce)
        return Verdict(said.action, said.step, said.expires_ms / 1000.0, said.nonce)

    def _is_signed(self, said: _Said) -> bool:
        parts = (_PURPOSE, said.job, said.attempt, str(said.step), said.action, str(said.expires_ms), said.nonce)
        covered = "\0".join(parts).encode("utf-8", "surrogatepass")
        version, _, encoded = said.signature.partition(".")
        given = _decoded(encoded)
        wanted = hmac.new(self._key, covered, hashlib.sha256).digest()
        return version == _SIGNATURE_VERSION and given is not None and hmac.compare_digest(wanted, given)

    def _once(self, nonce: str) -> None:
        if nonce in self._seen:
            raise NotBelieved(REPEATED)
        self._seen[nonce] = None
        while len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]


def _said(body: Mapping[str, Any]) -> _Said:
    found: list[Any] = [body.get(name) for name in _Said._fields]
    for text in found[:5]:
        if not isinstance(text, str) or "\0" in text:
            raise NotBelieved(MALFORMED)
    for number in found[5:]:
        if type(number) is not int or not 0 <= number <= _INT64_MAX:
            raise NotBelieved(MALFORMED)
    said = _Said(*found)
    if len(said.nonce) > NONCE_CHARACTERS_MAX:
        raise NotBelieved(MALFORMED)
    return said


def _decoded(text: str) -> bytes | None:
    try:
        found = base64.b64decode(text.encode("ascii") + b"=", altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
    return found if len(found) == _BYTES else None
