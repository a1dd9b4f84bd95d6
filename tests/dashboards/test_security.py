"""Who may ask: the token, the names of the loopback, and the headers."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from dashboards.app import make_app
from dashboards.errors import CannotListen, TokenRequired
from dashboards.security import names_of
from dashboards.server import serve
from telemetry_bus.bus import open_bus
from telemetry_bus.runtime.clock import SystemClock
from tests.dashboards.world import IncidentList, Token, World, world

PATHS = [
    "/",
    "/metrics",
    "/readyz",
    "/api/v1/fleet",
    "/api/v1/stream",
    "/api/v1/frames/telemetry.gpu",
    "/api/openapi.json",
]


@pytest.mark.parametrize("path", PATHS)
async def test_with_a_token_nothing_is_told_without_it(tmp_path: Path, path: str) -> None:
    """Everything but /healthz needs the token; a wrong one is as good as none."""
    async with world(tmp_path, token=Token("right")) as here:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic right"},
            {"Cookie": "nantucket=right"},
        ):
            answer = await here.http.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.headers["content-type"] == "application/problem+json"
        assert (await here.http.get("/healthz")).status_code == 200


async def test_the_right_token_opens_everything(tmp_path: Path) -> None:
    """A bearer token, also one that is not ASCII, lets in."""
    async with world(tmp_path, token=Token("right")) as here:
        answer = await here.http.get("/api/v1/fleet", headers={"Authorization": "Bearer right"})
        assert answer.status_code == 200
        odd = await here.http.get("/api/v1/fleet", headers={b"Authorization": "Bearer é".encode()})
        assert odd.status_code == 401


async def test_a_browser_trades_the_token_for_a_cookie_that_is_not_the_token(tmp_path: Path) -> None:
    """`/?token=` sets an HttpOnly, SameSite cookie and leads to a URL without it; the cookie then opens the API."""
    async with world(tmp_path, token=Token("right")) as here:
        answer = await here.http.get("/?token=right")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "right" not in cookie
        assert (await here.http.get("/api/v1/fleet")).status_code == 200
        assert (await here.http.get("/?token=wrong")).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.evil"])
async def test_a_foreign_name_for_the_loopback_is_refused(here: World, host: str) -> None:
    """A page elsewhere, whose name points at 127.0.0.1, cannot read the fleet."""
    answer = await here.http.get("/api/v1/fleet", headers={"Host": host})
    assert answer.status_code in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "[::1]:80", "[::1]", "LOCALHOST"])
async def test_the_names_of_the_loopback_are_answered(here: World, host: str) -> None:
    """All usual names of this machine work, with and without a port."""
    assert (await here.http.get("/api/v1/fleet", headers={"Host": host})).status_code == 200


async def test_every_answer_carries_the_headers_of_a_careful_site(here: World) -> None:
    """No sniffing, no framing, scripts from here only, also on errors."""
    for path in ("/api/v1/fleet", "/nothing"):
        headers = (await here.http.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "script-src 'self'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
async def test_listening_to_the_world_needs_a_token(tmp_path: Path, host: str) -> None:
    """An address that others can reach is refused without a token, with what to do."""
    clock = SystemClock()
    async with open_bus(f"file://{tmp_path}", clock) as bus:
        app = make_app(bus, IncidentList(), clock)
        with pytest.raises(TokenRequired, match="NANTUCKET_SERVE__TOKEN"):
            async with serve(app, host):
                pass


async def test_listening_to_the_world_works_with_a_token(tmp_path: Path) -> None:
    """With a token any address may be bound, and any name is answered."""
    clock = SystemClock()
    async with open_bus(f"file://{tmp_path}", clock) as bus:
        app = make_app(bus, IncidentList(), clock, token=Token("right"))
        async with serve(app, "0.0.0.0") as port, httpx.AsyncClient() as http:
            headers = {"Authorization": "Bearer right", "Host": "nantucket.example"}
            assert (await http.get(f"http://127.0.0.1:{port}/api/v1/jobs", headers=headers)).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.2", "127.0.0.1"])
async def test_a_page_on_a_loopback_address_answers_to_that_address(tmp_path: Path, host: str) -> None:
    """Whatever the server was told to listen on is a name under which it is asked."""
    clock = SystemClock()
    async with open_bus(f"file://{tmp_path}", clock) as bus:
        app = make_app(bus, IncidentList(), clock, hosts=names_of(host))
        async with serve(app, host) as port, httpx.AsyncClient() as http:
            assert (await http.get(f"http://{host}:{port}/api/v1/jobs")).status_code == 200
            foreign = await http.get(f"http://{host}:{port}/api/v1/jobs", headers={"Host": "evil.example"})
            assert foreign.status_code == 421


@pytest.mark.parametrize("host", ["256.1.1.1", "::zz", "192.0.2.1"])
async def test_what_is_no_address_of_this_machine_is_said_so(tmp_path: Path, host: str) -> None:
    """Another port would not help: the message says what is wrong with the host."""
    clock = SystemClock()
    async with open_bus(f"file://{tmp_path}", clock) as bus:
        app = make_app(bus, IncidentList(), clock, token=Token("right"))
        with pytest.raises(CannotListen, match="no address of this machine") as refused:
            async with serve(app, host):
                pass
        assert "port, or 0" not in str(refused.value)


async def test_a_port_that_is_taken_is_said_so(here: World, tmp_path: Path) -> None:
    """The error names the address and what to do."""
    clock = SystemClock()
    async with open_bus(f"file://{tmp_path / 'other'}", clock) as bus:
        app = make_app(bus, IncidentList(), clock)
        with pytest.raises(CannotListen, match=f"127.0.0.1:{here.port}"):
            async with serve(app, "127.0.0.1", here.port):
                pass
