"""A link: who may connect, what happens to what is under way when it breaks, and how it comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from telemetry_bus import BusUnavailable, FrameMaker, OutletOptions, Topic, UnknownBus, UnusableCredentials, open_outlet
from telemetry_bus.errors import GatewayRefused
from telemetry_bus.gateway import CannotListen, Gateway, GatewayOptions, GatewayOutlet, MergeOptions, OpenToAll
from telemetry_bus.gateway import link as link_module
from telemetry_bus.gateway.wire import LinkFault
from telemetry_bus.runtime.secret import Secret
from tests.telemetry_bus.gateway.authority import Authority
from tests.telemetry_bus.gateway.scene import CLOCK, FarEnd, a_gateway, gpu, listening, until

TOKEN = Secret("the-token")
AT_ONCE = GatewayOptions(merging=MergeOptions(seconds=0))


@pytest.fixture
def far_end() -> FarEnd:
    """Return what stands behind the gateway."""
    return FarEnd()


@pytest.fixture
async def gateway(far_end: FarEnd) -> AsyncIterator[Gateway]:
    """Return a gateway that passes on what comes."""
    async with a_gateway(far_end, AT_ONCE) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Return an authority."""
    return Authority(tmp_path_factory.mktemp("authority")).begin()


def linked(url: str, **options: object) -> GatewayOutlet:
    """A collector's way up."""
    return GatewayOutlet(url, CLOCK, OutletOptions(node="n1", **options))  # type: ignore[arg-type]


async def sends(outlet: GatewayOutlet) -> None:
    """Send one frame."""
    await outlet.publish(Topic.GPU, [gpu(FrameMaker("n1/gpu"))], "n1")


async def test_the_right_token_opens(gateway: Gateway, far_end: FarEnd) -> None:
    """With it frames go through."""
    async with listening(gateway, token=TOKEN) as server, linked(server.url, token=TOKEN) as outlet:
        await sends(outlet)
    assert len(far_end.taken) == 1


@pytest.mark.parametrize(
    "token", [None, Secret("another"), Secret("the-token-and-more")], ids=["none", "other", "longer"]
)
async def test_without_the_token_nothing_goes_through_and_the_reason_is_said(
    gateway: Gateway, far_end: FarEnd, token: Secret[str] | None
) -> None:
    """The sender learns why, its frames wait as for any bus that is away, and the token is in no message."""
    async with listening(gateway, token=TOKEN) as server, linked(server.url, token=token) as outlet:
        with pytest.raises(GatewayRefused) as caught:
            await sends(outlet)
    assert caught.value.reason == LinkFault.UNAUTHENTICATED
    assert "the-token" not in str(caught.value)
    assert gateway.counters.links_ended[LinkFault.UNAUTHENTICATED] >= 1
    assert far_end.taken == []


async def test_mutual_tls_opens(gateway: Gateway, far_end: FarEnd, authority: Authority) -> None:
    """Both sides show a certificate of the authority."""
    ours, theirs = authority.sign("gateway"), authority.sign("n1")
    async with (
        listening(gateway, cert=ours.cert, key=ours.key, client_ca=authority.cert) as server,
        linked(server.url, ca=authority.cert, cert=theirs.cert, key=theirs.key) as outlet,
    ):
        assert server.url.startswith("gateways://")
        await sends(outlet)
    assert len(far_end.taken) == 1


@pytest.mark.parametrize("shows", ["nothing", "a-strangers"])
async def test_without_a_certificate_of_the_authority_nothing_goes_through(
    gateway: Gateway, far_end: FarEnd, authority: Authority, tmp_path: Path, shows: str
) -> None:
    """Neither without one nor with one that somebody else has signed."""
    ours, stranger = authority.sign("gateway"), Authority(tmp_path, "stranger").begin().sign("n1")
    shown = {} if shows == "nothing" else {"cert": stranger.cert, "key": stranger.key}
    async with (
        listening(gateway, cert=ours.cert, key=ours.key, client_ca=authority.cert) as server,
        linked(server.url, ca=authority.cert, **shown) as outlet,
    ):
        with pytest.raises(BusUnavailable):
            await sends(outlet)
    assert far_end.taken == []


async def test_a_gateway_that_a_stranger_signed_is_not_believed(
    gateway: Gateway, far_end: FarEnd, authority: Authority, tmp_path: Path
) -> None:
    """Nothing, and no token, is sent to whoever stands at the address."""
    stranger = Authority(tmp_path, "stranger").begin().sign("gateway")
    async with (
        listening(gateway, cert=stranger.cert, key=stranger.key, token=TOKEN) as server,
        linked(server.url, ca=authority.cert, token=TOKEN) as outlet,
    ):
        with pytest.raises(BusUnavailable, match="certificate"):
            await sends(outlet)
    assert far_end.taken == []


@pytest.mark.parametrize("option", ["ca", "cert"])
async def test_a_certificate_that_cannot_be_read_is_said_when_it_is_opened(tmp_path: Path, option: str) -> None:
    """The message names the file."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(UnusableCredentials, match=r"wrong\.pem"):
        async with linked("gateways://127.0.0.1:1", **{option: wrong}):
            pass


@pytest.mark.parametrize(
    "options",
    [{}, {"cert": Path("c.pem")}, {"client_ca": Path("ca.pem")}],
    ids=["nothing", "tls-only", "ca-without-tls"],
)
async def test_nobody_listens_where_others_can_reach_without_asking_who_comes(
    gateway: Gateway, options: dict[str, Path]
) -> None:
    """Only loopback goes without a token or client certificates."""
    with pytest.raises(OpenToAll):
        async with listening(gateway, host="0.0.0.0", **options):
            pass


async def test_an_address_in_use_is_said(gateway: Gateway) -> None:
    """The message says what to set."""
    async with listening(gateway) as server:
        with pytest.raises(CannotListen, match=r"gateway\.port"):
            async with listening(gateway, port=server.port):
                pass


@pytest.mark.parametrize(
    "url", ["gateway://h", "gateway://:1", "gateway://h:99999", "gateway://h:1/path", "gateway://u:p@h:1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """A host and a port, and nothing else."""
    with pytest.raises(UnknownBus):
        open_outlet(url, CLOCK)


async def test_a_gateway_that_is_away_is_no_error_until_something_is_sent(unused_tcp_port: int) -> None:
    """Opening succeeds, sending says so soon, and closing does not hang."""
    began = CLOCK.monotonic()
    async with linked(f"gateway://127.0.0.1:{unused_tcp_port}") as outlet:
        with pytest.raises(BusUnavailable):
            await sends(outlet)
    assert CLOCK.monotonic() - began < 5


async def test_what_is_under_way_fails_when_the_gateway_goes_and_the_link_comes_back(far_end: FarEnd) -> None:
    """Nothing hangs on a gateway that was killed; a new one at the address is found."""
    far_end.answers.clear()
    async with contextlib.AsyncExitStack() as first:
        gateway = await first.enter_async_context(a_gateway(far_end, AT_ONCE))
        server = await first.enter_async_context(listening(gateway))
        port = server.port
        outlet = await first.enter_async_context(linked(server.url))
        sending = [asyncio.ensure_future(sends(outlet)) for _ in range(5)]
        await until(lambda: far_end.asked == 5)
        for link in tuple(server._links):
            link._transport.abort()  # type: ignore[union-attr]
        done = await asyncio.gather(*sending, return_exceptions=True)
        assert [type(error) for error in done] == [BusUnavailable] * 5
        far_end.answers.set()
        await until(lambda: outlet.is_connected)
        await sends(outlet)
        assert server.port == port


async def test_a_far_end_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pulled cable sends no reset: who answers no PING is gone, and frames fail."""
    monkeypatch.setattr(link_module, "PING_SECONDS", 0.05)
    monkeypatch.setattr(link_module, "DEAD_SECONDS", 0.3)
    from telemetry_bus.gateway import wire  # noqa: PLC0415

    async def welcome_and_nothing_else(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(wire.encode_message(wire.Welcome(1, 1e6, 1 << 25, 1 << 24)))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(welcome_and_nothing_else, "127.0.0.1", 0)
    async with server, linked(f"gateway://127.0.0.1:{server.sockets[0].getsockname()[1]}") as outlet:
        with pytest.raises(BusUnavailable, match="nothing was heard"):
            await sends(outlet)


async def test_who_gets_no_answer_in_time_is_told(gateway: Gateway, far_end: FarEnd) -> None:
    """Publishing never hangs for ever; the late answer disturbs nobody."""
    far_end.answers.clear()
    async with listening(gateway) as server, linked(server.url, timeout_seconds=0.2) as outlet:
        with pytest.raises(BusUnavailable, match="no answer within"):
            await sends(outlet)
        far_end.answers.set()
        await sends(outlet)


async def test_more_is_sent_than_may_be_under_way(gateway: Gateway, far_end: FarEnd) -> None:
    """A sender with a lot waits for room instead of being put off, and all of it arrives in order."""
    payload = gpu(FrameMaker("n1/gpu"), rows=8_192)
    async with listening(gateway) as server, linked(server.url) as outlet, asyncio.TaskGroup() as tasks:
        for _ in range(40 * 1024 * 1024 // len(payload)):
            tasks.create_task(outlet.publish(Topic.GPU, [payload], "n1"))
    assert gateway.counters.put_off.total() == 0


async def test_returning_links_are_told_their_share_of_the_pace(gateway: Gateway) -> None:
    """Two that send their backlog have half each; when one has gone the other has all."""
    pace = gateway.options.backlog_bytes_per_second
    async with listening(gateway) as server, linked(server.url) as one:
        async with linked(server.url) as two:
            for outlet in (one, two):
                await outlet.publish(Topic.BACKLOG, [gpu(FrameMaker("n1/gpu"))], "n1")
            await until(lambda: one.backlog_bytes_per_second == two.backlog_bytes_per_second == pace / 2)
        await until(lambda: one.backlog_bytes_per_second == pace)


async def test_a_gateway_that_has_no_place_says_so(gateway: Gateway) -> None:
    """One connection too many is refused in words, and gets in when there is a place."""
    async with listening(gateway, links_max=1) as server:
        async with linked(server.url) as one:
            await sends(one)
            async with linked(server.url) as two:
                with pytest.raises(GatewayRefused, match="no place"):
                    await sends(two)
                await one.__aexit__(None, None, None)
                await until(lambda: two.is_connected)
        assert gateway.counters.links_ended[LinkFault.FULL] >= 1
