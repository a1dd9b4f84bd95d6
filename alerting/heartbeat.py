"""The dead man's switch: an outside service is told that Nantucket watches, for as long as it really does.

A blind watcher must not look healthy: where the bus or the store fails, or findings are not taken any more, nothing is
sent, and the outside service, missing the beat, calls somebody.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from alerting.errors import BadSetting
from alerting.http import HttpClient, NoAnswer
from alerting.stats import Stats
from telemetry_bus.runtime.secret import Secret

BEAT_SECONDS = 30.0
"""Outside services expect a beat a minute; one may be lost."""

_log = logging.getLogger(__name__)


def check_url(url: Secret[str]) -> None:
    """Refuse ``url`` with a :class:`BadSetting` where it is none. It often holds a token, so it is not shown."""
    if not url.reveal().startswith(("http://", "https://")):
        raise BadSetting(
            "alert.heartbeat_url",
            "a text that does not begin with http:// or https:// (not shown)",
            "https://HOST/PATH",
        )


class Heartbeat:
    """GETs ``url`` every ``every_seconds`` unless ``blindness`` says why Nantucket is blind just now."""

    def __init__(
        self, url: Secret[str], blindness: Callable[[], Awaitable[str | None]], stats: Stats, every_seconds: float
    ) -> None:
        self._url = url
        self._blindness = blindness
        self._stats = stats
        self._every_seconds = every_seconds

    async def run(self) -> None:
        """Beat until cancelled."""
        async with HttpClient(self._url.reveal()) as client:
            while True:
                await self._beat(client)
                await asyncio.sleep(self._every_seconds)

    async def _beat(self, client: HttpClient) -> None:
        why = await self._blindness()
        if why is not None:
            self._stats.heartbeats_withheld_total += 1
            _log.warning("no heartbeat: %s", why)
            return
        try:
            answer = await client.exchange("GET", None, {})
        except NoAnswer as error:
            self._failed(str(error))
            return
        if 200 <= answer.status < 300:
            self._stats.heartbeats_total += 1
        else:
            self._failed(f"it was answered with {answer.status}")

    def _failed(self, why: str) -> None:
        self._stats.heartbeats_failed_total += 1
        _log.warning("the heartbeat did not arrive: %s", why)
