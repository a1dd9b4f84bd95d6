"""The generic webhook: a signed JSON POST, as the Standard Webhooks specification says.

Nothing of the URL but its host, and nothing of the secret, is ever shown, not even where the other side repeats it.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from standardwebhooks import Webhook

from alerting.delivery import Delivery
from alerting.errors import BadSetting, DeliveryFailed, Outcome
from alerting.http import Answer, HttpClient, NoAnswer
from alerting.incident import Tier
from alerting.receipts import receipt_text
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret

DETAIL_CHARACTERS_MAX = 200
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
"""The bounds of the Standard Webhooks specification."""

_NOT_NOW = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """How one webhook is reached. ``url`` may hold a token in its path or query, so it is kept like a secret."""

    name: str
    url: Secret[str]
    secret: Secret[str]
    tiers: frozenset[Tier] = frozenset({Tier.PAGE})

    def __post_init__(self) -> None:
        key = f"receivers.{self.name}"
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", self.name):
            raise BadSetting("receivers", repr(self.name), "a name of 1 to 64 letters, digits, '_', '.' or '-'")
        _check_url(f"{key}.url", self.url.reveal())
        _check_secret(f"{key}.secret", self.secret.reveal())
        if not self.tiers or Tier.LOG in self.tiers:
            found = sorted(tier.value for tier in self.tiers)
            raise BadSetting(f"{key}.tiers", repr(found), "one or both of 'page' and 'ticket'; 'log' is only recorded")

    def build(self, clock: Clock) -> "WebhookReceiver":
        """The receiver, to be opened with ``async with``."""
        return WebhookReceiver(self, clock)


def _check_url(key: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise BadSetting(key, "what cannot be read as a URL", "https://HOST/PATH") from error
    if parts.scheme not in ("http", "https"):
        raise BadSetting(key, f"the scheme {parts.scheme!r}", "https://HOST/PATH (or http:// within your own network)")
    if not host:
        raise BadSetting(key, "a URL without a host", "https://HOST/PATH")
    if parts.username is not None or parts.password is not None:
        raise BadSetting(
            key, "a URL with a user or password", "https://HOST/PATH; deliveries are signed with the secret instead"
        )


def _check_secret(key: str, secret: str) -> None:
    wanted = f"whsec_ and then {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} random bytes in base64"
    if not secret.startswith("whsec_"):
        raise BadSetting(key, "a text that does not begin with whsec_ (not shown)", wanted)
    try:
        raw = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise BadSetting(key, "what is not base64 behind whsec_ (not shown)", wanted) from None
    if not SECRET_BYTES_MIN <= len(raw) <= SECRET_BYTES_MAX:
        raise BadSetting(key, f"{len(raw)} bytes (not shown)", wanted)


class WebhookReceiver:
    """A running webhook."""

    def __init__(self, settings: WebhookSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._signer = Webhook(settings.secret.reveal())
        self._http = HttpClient(settings.url.reveal())

    def __repr__(self) -> str:
        return f"WebhookReceiver({self.name!r}, {self._http.shown}/***)"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._settings.name

    @property
    def tiers(self) -> frozenset[Tier]:
        """Which incidents it is told of."""
        return self._settings.tiers

    async def __aenter__(self) -> Self:
        """Get ready to connect."""
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._http.__aexit__(kind, error, trace)

    async def send(self, delivery: Delivery) -> int:
        """POST ``delivery`` once, signed for this moment."""
        try:
            answer = await self._http.exchange("POST", delivery.body.encode(), self._signed(delivery))
        except NoAnswer as error:
            raise DeliveryFailed(self.name, error.reason, self._masked(str(error)), retryable=True) from error
        if 200 <= answer.status < 300:
            return answer.status
        raise self._failure(answer)

    def receipt(self, delivery_id: str) -> str:
        """The receipt, under the bytes of the secret."""
        secret = base64.b64decode(self._settings.secret.reveal().removeprefix("whsec_"))
        return receipt_text(self.name, secret, delivery_id)

    def _signed(self, delivery: Delivery) -> dict[str, str]:
        when = datetime.fromtimestamp(self._clock.now(), UTC)
        return {
            "content-type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(when.timestamp())),
            "webhook-signature": self._signer.sign(delivery.id, when, delivery.body),
        }

    def _failure(self, answer: Answer) -> DeliveryFailed:
        reason, retryable = _judge(answer.status)
        text = self._masked(answer.beginning.decode("utf-8", "replace")).strip()
        shown = "".join(letter if letter.isprintable() else " " for letter in text)[:DETAIL_CHARACTERS_MAX]
        detail = f"{self._http.shown} answered {answer.status}" + (f": {shown}" if shown else "")
        return DeliveryFailed(
            self.name,
            reason,
            detail,
            retryable=retryable,
            status=answer.status,
            retry_after_seconds=retry_after_seconds(answer.headers, self._clock.now()) if retryable else None,
        )

    def _masked(self, text: str) -> str:
        """``text`` without the secret and the URL, which the other side may have echoed."""
        parts = urlsplit(self._settings.url.reveal())
        secret = self._settings.secret.reveal()
        hidden = [
            secret,
            secret.removeprefix("whsec_"),
            self._settings.url.reveal(),
            parts.query,
            parts.path.strip("/"),
        ]
        for value in hidden:
            if len(value) >= 6:  # shorter pieces of a path hide nothing and would mangle the text
                text = text.replace(value, "***")
        return text


def _judge(status: int) -> tuple[Outcome, bool]:
    """Why an answer that is not 2xx is none, and whether to try again."""
    if status in _NOT_NOW:
        return Outcome.NOT_NOW, True
    if 500 <= status < 600:
        return Outcome.SERVER_ERROR, True
    if 300 <= status < 400:
        return Outcome.REDIRECTED, False
    return Outcome.REFUSED, False


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """What ``Retry-After`` asks for: seconds, or an HTTP date seen from ``now``. ``None`` if absent or not readable."""
    asked = headers.get("retry-after")
    if asked is None:
        return None
    if re.fullmatch(r"\d{1,9}", asked.strip()):
        return float(asked)
    try:
        when = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return max(0.0, when.replace(tzinfo=when.tzinfo or UTC).timestamp() - now)
