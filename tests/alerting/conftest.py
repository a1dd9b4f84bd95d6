"""What the tests of alerting share: a real bus, a real store, and a real receiver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from alerting import Store
from telemetry_bus import Bus, open_bus
from telemetry_bus.runtime.clock import SystemClock
from tests.fakes.webhook_server import WebhookServer


@pytest.fixture
def hook() -> Iterator[WebhookServer]:
    """Return a running receiver that takes everything."""
    with WebhookServer() as server:
        yield server


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    """Return the embedded bus, open, in a folder of its own."""
    async with open_bus((tmp_path / "bus").as_uri(), SystemClock()) as opened:
        yield opened


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Return an open store in a file of its own."""
    async with Store(tmp_path / "alerts.db") as opened:
        yield opened
