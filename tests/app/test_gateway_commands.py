"""What the commands say of a gateway: whether it lets this node in, and that it cannot be read."""

from pathlib import Path

import pytest

from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.gateway import Gateway, GatewayOptions, LinkServer, ListenOptions
from telemetry_bus.outlet import BusOutlet
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.runtime.secret import Secret
from tests.app.commands import nantucket


@pytest.mark.parametrize(
    ("token", "verdict", "says"),
    [("the-token", "ok", "lets this node in"), ("another", "fault", "unauthenticated"), (None, "fault", "found none")],
    ids=["right", "wrong", "none"],
)
async def test_doctor_says_whether_the_gateway_lets_this_node_in(
    tmp_path: Path, token: str | None, verdict: str, says: str
) -> None:
    """Reached with the right token is ok; with another one it is a fault with a remedy, and no token is shown."""
    clock, listen = SystemClock(), ListenOptions(token=Secret("the-token"))
    async with (
        EmbeddedBus(tmp_path / "bus", clock) as bus,
        Gateway(BusOutlet(bus, is_open=True), clock, GatewayOptions()) as gateway,
        LinkServer(gateway, clock, listen) as server,
    ):
        shown = {} if token is None else {"NANTUCKET_LINK__TOKEN": token}
        ended = await nantucket("doctor", "--json", "--state", tmp_path / "state", "--bus", server.url, **shown)
    (row,) = [row for row in ended.rows if row["check"] == "bus"]
    assert row["verdict"] == verdict
    assert says in row["found"]
    assert (row["remedy"] is None) == (verdict == "ok")
    assert "the-token" not in "\n".join(ended.lines) + ended.error


async def test_doctor_says_that_no_gateway_is_there(tmp_path: Path, unused_tcp_port: int) -> None:
    """A gateway that is away is a fault within seconds."""
    url = f"gateway://127.0.0.1:{unused_tcp_port}"
    ended = await nantucket("doctor", "--json", "--state", tmp_path / "state", "--bus", url)
    (row,) = [row for row in ended.rows if row["check"] == "bus"]
    assert (ended.status, row["verdict"]) == (1, "fault")
    assert "Start nantucket gateway there" in row["remedy"]


@pytest.mark.parametrize("role", ["detect", "alert", "serve", "tail"])
async def test_whoever_has_to_read_is_told_that_a_gateway_cannot_be(tmp_path: Path, role: str) -> None:
    """Status 2 and one sentence, before anything is started."""
    ended = await nantucket(role, "--state", tmp_path / "state", "--bus", "gateway://127.0.0.1:1")
    assert ended.status == 2
    assert "gateway://" in ended.error
    assert "Traceback" not in ended.error


async def test_a_gateway_refuses_an_address_that_others_can_reach_without_asking_who_comes(tmp_path: Path) -> None:
    """The message says what to set, and nothing listens."""
    bus = (tmp_path / "bus").as_uri()
    ended = await nantucket("gateway", "--host", "0.0.0.0", "--state", tmp_path / "state", "--bus", bus)
    assert ended.status == 2
    assert "gateway.token" in ended.error
    assert "Traceback" not in ended.error
