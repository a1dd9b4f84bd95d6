"""Receipts: what a gateway brings back from a receiver that has taken a delivery while the bus was away. Pure.

A receipt is ``RECEIVER_NAME:DELIVERY_ID:MAC``, where MAC is the HMAC-SHA256 of the delivery's id under the receiver's
secret, in base64url without padding. Only who holds that secret (a gateway, the alert role, and the receiver itself)
can make one, and it is worth nothing for another delivery. It travels with the finding, in ``evidence["ripcord"]``,
through nodes that hold no secret.
"""

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from telemetry_bus.cut_off import RIPCORD
from telemetry_bus.findings import Finding

PURPOSE = b"nantucket receipt 1\0"
"""What is signed begins with it, so that no signature of a webhook can be taken for a receipt, nor the reverse."""
NO_PAGE = "::"
"""What a gateway answers for a finding that calls for no page (an end, late evidence), so that whoever has reported it
need not ask again. It is a receipt of nobody, and proves nothing."""
RECEIPTS_MAX = 64
"""Of one finding: eight receivers, each told of eight incidents that came in the same report. Others are ignored."""


class ReceiptOutcome(StrEnum):
    """What a receipt was good for. Every value is a metric label and starts at zero."""

    ACCEPTED = "accepted"
    """A delivery was not sent (again), for its receiver has proven to have it."""
    UNUSED = "unused"
    """It is true, but nothing was to be sent that it covers: it had been told before."""
    INVALID = "invalid"
    """Forged, malformed, or of a receiver that is not configured: ignored, and the page is sent."""


class Signer(Protocol):
    """The part of a receiver that makes receipts."""

    def receipt(self, delivery_id: str) -> str:
        """The receipt for a delivery that was taken."""
        ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """``receiver`` has taken the delivery ``delivery_id``."""

    receiver: str
    delivery_id: str


@dataclass(frozen=True, slots=True)
class Told:
    """The true receipts of one finding, and how many others it had."""

    receipts: tuple[Receipt, ...] = ()
    invalid: int = 0


def receipt_text(name: str, secret: bytes, delivery_id: str) -> str:
    """The receipt that the receiver ``name`` gives for a delivery."""
    mac = hmac.digest(secret, PURPOSE + delivery_id.encode(), "sha256")
    return f"{name}:{delivery_id}:{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


@dataclass(frozen=True, slots=True)
class Receipts:
    """Frozen: the receivers that can say whether a receipt is theirs."""

    receivers: Mapping[str, Signer] = field(default_factory=dict)

    def taken_off(self, finding: Finding) -> tuple[Finding, Told]:
        """``finding`` without its receipts, and what they prove. What remains says who has been told."""
        said = finding.evidence.get(RIPCORD)
        if not isinstance(said, dict) or "receipts" not in said:
            return finding, Told()
        told = self._told(said["receipts"])
        kept = {key: value for key, value in said.items() if key != "receipts"}
        if told.receipts:
            kept["told"] = sorted({receipt.receiver for receipt in told.receipts})
        return replace(finding, evidence={**finding.evidence, RIPCORD: kept}), told

    def _told(self, given: Any) -> Told:
        texts = given[:RECEIPTS_MAX] if isinstance(given, list) else [given]
        judged = [self._judged(text) for text in texts if text != NO_PAGE]
        true = dict.fromkeys(receipt for receipt in judged if receipt is not None)
        return Told(tuple(true), judged.count(None))

    def _judged(self, text: Any) -> Receipt | None:
        """The receipt in ``text``, or ``None`` where it is none."""
        if not isinstance(text, str):
            return None
        name, _, rest = text.partition(":")
        delivery_id = rest.partition(":")[0]
        receiver = self.receivers.get(name)
        if receiver is None or not delivery_id.isascii():
            return None
        expected = receiver.receipt(delivery_id).encode()
        return Receipt(name, delivery_id) if hmac.compare_digest(expected, text.encode(errors="replace")) else None
