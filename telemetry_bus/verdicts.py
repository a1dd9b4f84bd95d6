"""A verdict: what Nantucket tells a job to do, signed so that the job can believe it. It travels as ``verdict/1``.

The job's key is made from the installation's secret and the job's name, and given to the job at launch
(``nantucket job key JOB``). The SDK holds the same bytes to the same signature (``sdk/src/nantucket/_verdict.py``;
``docs/verdicts.md`` has the recorded ones).
"""

import base64
import hashlib
import hmac
import uuid
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from telemetry_bus.cells import NAME
from telemetry_bus.findings import NAMESPACE
from telemetry_bus.frames import Frame, FrameMaker
from telemetry_bus.runtime.secret import Secret

_KEY_PURPOSE = b"nantucket verdict key 1\0"
_SIGNED_PURPOSE = "nantucket verdict 1"
_KEY_VERSION = "nvk1"
_SIGNATURE_VERSION = "v1"
VALID_SECONDS = 600.0
"""From its making until a verdict is void. A job hears it within a second; ten minutes let it through a bus that was
away for a moment, and are over before anybody has started the next attempt."""


class Action(StrEnum):
    """What a job is told."""

    STOP = "stop"
    """Stop on all ranks at one step: its numbers are not finite any more."""


def verdict_key(secret: bytes, job: str) -> bytes:
    """The 32 bytes under which verdicts on ``job`` are signed."""
    return hmac.new(secret, _KEY_PURPOSE + job.encode(), hashlib.sha256).digest()


def key_text(key: bytes) -> str:
    """A key as ``NANTUCKET_VERDICT_KEY`` takes it: ``nvk1.`` and 43 characters."""
    return f"{_KEY_VERSION}.{base64.urlsafe_b64encode(key).rstrip(b'=').decode()}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One message to one attempt of a job. Times are UTC seconds; ``step`` is the first bad step.

    ``nonce`` is made from the finding behind it, so that two copies of the alert role say the same thing once.
    """

    time: float
    job: str
    attempt: str
    step: int
    action: Action
    expires: float
    nonce: str
    signature: str

    def body(self) -> dict[str, Any]:
        """The fields as they go to the job. Times are whole milliseconds, which have one text only."""
        return {
            "type": "verdict",
            "job": self.job,
            "attempt": self.attempt,
            "step": self.step,
            "action": str(self.action),
            "expires_ms": round(self.expires * 1000),
            "nonce": self.nonce,
            "signature": self.signature,
        }


def signed(key: Secret[bytes], *, job: str, attempt: str, step: int, action: Action, nonce: str, now: float) -> Verdict:
    """A verdict that is valid for :data:`VALID_SECONDS` from ``now`` (UTC seconds) on."""
    expires = round(now + VALID_SECONDS, 3)
    unsigned = Verdict(now, job, attempt, step, action, expires, nonce, "")
    signature = hmac.new(key.reveal(), signed_bytes(unsigned), hashlib.sha256).digest()
    text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    return Verdict(now, job, attempt, step, action, expires, nonce, f"{_SIGNATURE_VERSION}.{text}")


def signed_bytes(verdict: Verdict) -> bytes:
    """What the signature covers: everything but the time of making. No field can contain a zero byte."""
    expires = str(round(verdict.expires * 1000))
    parts = (verdict.job, verdict.attempt, str(verdict.step), str(verdict.action), expires, verdict.nonce)
    return "\0".join((_SIGNED_PURPOSE, *parts)).encode()


def nonce_of(finding: str) -> str:
    """The nonce of the verdict that rests on the finding with this id."""
    return str(uuid.uuid5(NAMESPACE, f"verdict\n{finding}"))


def verdict_frame(maker: FrameMaker, verdict: Verdict) -> Frame:
    """The frame that carries it."""
    columns = {each.name: [getattr(verdict, each.name)] for each in fields(Verdict)}
    return maker.make("verdict/1", {**columns, "action": [str(verdict.action)]}, verdict.time)


def verdicts_in(frame: Frame) -> list[Verdict]:
    """The verdicts of a ``verdict/1`` frame. A ``ValueError`` names the row that cannot be read."""
    times, expires = frame.times().tolist(), frame.times("expires").tolist()
    found = []
    for row, values in enumerate(frame.batch.drop_columns(["time", "expires"]).to_pylist()):
        if not all(isinstance(values[name], str) and NAME.fullmatch(values[name]) for name in ("job", "attempt")):
            raise ValueError(f"row {row}: expected names of a job and an attempt")
        try:
            values["action"] = Action(values["action"])
        except ValueError as error:
            raise ValueError(f"row {row}: action: expected one of {', '.join(Action)}") from error
        found.append(Verdict(time=times[row], expires=expires[row], **values))
    return found
