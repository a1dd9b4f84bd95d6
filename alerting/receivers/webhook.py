"""The generic webhook: a signed JSON POST, as the Standard Webhooks specification says.

A try never follows a redirect, reads a bounded piece of the answer, and ends within :data:`TRY_SECONDS_MAX`. Nothing of
the URL but its host, and nothing of the secret, is ever shown.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import urlsplit

import httpx
from standardwebhooks import Webhook

from alerting.delivery import Delivery
from alerting.errors import BadSetting, DeliveryFailed, Outcome
from alerting.incident import Tier
from alerting.secret import Secret
from telemetry_bus.runtime.clock import Clock

CONNECT_SECONDS_MAX = 3.0
"""A TCP and a TLS handshake across the world take under a second; one lost SYN is sent again after one."""
SILENCE_SECONDS_MAX = 5.0
"""How long a read or a write may stand still."""
TRY_SECONDS_MAX = 10.0
"""A whole try, so that a receiver that drips its answer byte by byte holds a place for ten seconds and no longer."""
ANSWER_BYTES_MAX = 4096
"""An answer is read for its error text only."""
DETAIL_CHARACTERS_MAX = 200
KEEP_ALIVE_SECONDS = 300.0
"""Idle connections are kept as long as the other side keeps them, up to this: the next page saves the handshakes."""
CONNECTIONS_MAX = 16
"""Twice the tries that run at once against one receiver."""
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
"""The bounds of the Standard Webhooks specification."""

_NOT_NOW = frozenset({408, 425, 429})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """How one webhook is reached. ``url`` may hold a token in its path or query, so it is kept like a secret."""

    name: str
    url: Secret
    secret: Secret
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
        parts = urlsplit(settings.url.reveal())
        self._shown = f"{parts.scheme}://{parts.netloc}"
        self._direct = parts.hostname in _LOOPBACK
        self._client: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"WebhookReceiver({self.name!r}, {self._shown}/***)"

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._settings.name

    @property
    def tiers(self) -> frozenset[Tier]:
        """Which incidents it is told of."""
        return self._settings.tiers

    async def __aenter__(self) -> Self:
        """Make the connection pool; reading the trusted certificates is work for a thread."""
        if self._client is not None:
            raise RuntimeError(f"receiver {self.name} is open already")
        self._client = await asyncio.to_thread(self._make_client)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _make_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            timeout=httpx.Timeout(SILENCE_SECONDS_MAX, connect=CONNECT_SECONDS_MAX),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=KEEP_ALIVE_SECONDS),
            follow_redirects=False,
            # A proxy of the environment is for the way out; this machine's own receivers are not behind it.
            trust_env=not self._direct,
            headers={"user-agent": "nantucket-alerting/1", "content-type": "application/json"},
        )

    async def send(self, delivery: Delivery) -> int:
        """POST ``delivery`` once, signed for this moment."""
        if self._client is None:
            raise RuntimeError(f"receiver {self.name} is not open; use it inside 'async with'")
        try:
            async with asyncio.timeout(TRY_SECONDS_MAX):
                return await self._post(self._client, delivery)
        except (TimeoutError, httpx.TimeoutException) as error:
            detail = f"no answer from {self._shown} in time ({type(error).__name__})"
            raise DeliveryFailed(self.name, Outcome.TIMEOUT, detail, retryable=True) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            detail = f"no connection with {self._shown} ({self._masked(str(error)) or type(error).__name__})"
            raise DeliveryFailed(self.name, Outcome.UNREACHABLE, detail, retryable=True) from error

    async def _post(self, client: httpx.AsyncClient, delivery: Delivery) -> int:
        url, body = self._settings.url.reveal(), delivery.body.encode()
        async with client.stream("POST", url, content=body, headers=self._signed(delivery)) as response:
            try:
                answer = await _beginning(response)
            except (httpx.HTTPError, httpx.StreamError):
                answer = b""  # the status has been given; only the text of the answer is missing
            if response.is_success:
                return response.status_code
            raise self._failure(response, answer)

    def _signed(self, delivery: Delivery) -> dict[str, str]:
        when = datetime.fromtimestamp(self._clock.now(), UTC)
        return {
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(when.timestamp())),
            "webhook-signature": self._signer.sign(delivery.id, when, delivery.body),
        }

    def _failure(self, response: httpx.Response, answer: bytes) -> DeliveryFailed:
        status = response.status_code
        reason, retryable = _judge(status)
        text = self._masked(answer.decode("utf-8", "replace")).strip()
        shown = "".join(letter if letter.isprintable() else " " for letter in text)[:DETAIL_CHARACTERS_MAX]
        detail = f"{self._shown} answered {status}" + (f": {shown}" if shown else "")
        asked = retry_after_seconds(response.headers, self._clock.now()) if retryable else None
        return DeliveryFailed(self.name, reason, detail, retryable=retryable, status=status, retry_after_seconds=asked)

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


async def _beginning(response: httpx.Response) -> bytes:
    """At most :data:`ANSWER_BYTES_MAX` of the answer; a longer one costs its connection, not our memory."""
    got = b""
    async for piece in response.aiter_raw(ANSWER_BYTES_MAX):
        got += piece
        if len(got) >= ANSWER_BYTES_MAX:
            break
    return got[:ANSWER_BYTES_MAX]


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
