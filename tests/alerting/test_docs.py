"""The documentation of alerting is run: what it shows works, and what it lists is complete."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest

from alerting import DeliveryFailed, Outcome, Secret, WebhookSettings
from alerting.body import Presentation, body_text, incident_object
from alerting.delivery import Delivery
from alerting.incident import Scope, Tier, opened
from telemetry_bus import FindingKind
from tests.alerting.scenes import CLOCK, T0, finding
from tests.fakes.webhook_server import SECRET

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
WEBHOOK = (DOCS / "webhook.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The one block of ``language`` in docs/webhook.md."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", WEBHOOK, re.DOTALL)
    return str(found)


def shown() -> dict[str, object]:
    """An incident object as it is sent."""
    incident = opened(finding(), Scope.of(finding()), 1, Tier.PAGE)
    return incident_object(incident, Presentation(), (), T0)


async def test_the_receiver_of_the_documentation_works_as_it_stands(tmp_path: Path) -> None:
    """It takes what is signed, shows each id once, and refuses what is not signed."""
    (tmp_path / "receiver.py").write_text(block("python"), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"NANTUCKET_WEBHOOK_SECRET": SECRET, "PORT": str(port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tmp_path / "receiver.py"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        url = Secret(f"http://127.0.0.1:{port}/")
        body = body_text("firing", shown())
        deliveries = [Delivery(identity, "i", "ops", "firing", body, T0, T0) for identity in ("a", "a", "b")]
        async with WebhookSettings("ops", url, Secret(SECRET)).build(CLOCK) as receiver:
            await _until_up(port)
            for delivery in deliveries:
                assert await receiver.send(delivery) == 204
        async with WebhookSettings("ops", url, Secret(SECRET[:-4] + "AAAA")).build(CLOCK) as stranger:
            with pytest.raises(DeliveryFailed) as refused:
                await stranger.send(deliveries[0])
        assert refused.value.reason is Outcome.REFUSED
    finally:
        process.terminate()
        printed, _ = await process.communicate()
    assert printed.decode().splitlines() == ["firing NaN in the gradient of layers.3.attn.wq at step 117"] * 2


async def _until_up(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            await writer.wait_closed()
            return


def test_the_body_in_the_documentation_has_the_fields_of_the_body_that_is_sent() -> None:
    """No field is missing from the documentation, and none is in it that is not sent."""
    documented = json.loads(block("json"))
    sent = json.loads(body_text("firing", shown()))
    assert documented.keys() == sent.keys()
    assert documented["incident"].keys() == sent["incident"].keys()
    for part in ("where", "cost", "links"):
        assert documented["incident"][part].keys() == sent["incident"][part].keys()


@pytest.mark.parametrize("kind", FindingKind)
def test_every_kind_is_documented(kind: FindingKind) -> None:
    """A receiver can tell from the page which kinds there are."""
    assert f"`{kind.value}`" in WEBHOOK


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_of_a_try_is_documented(outcome: Outcome) -> None:
    """A label of the metrics can be looked up."""
    assert f"`{outcome.value}`" in (DOCS / "alerting.md").read_text(encoding="utf-8")
