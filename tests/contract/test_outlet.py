"""What every outlet promises: a bus, a gateway, and a gateway behind a gateway.

What `publish` has returned is on the bus, with the rows, the manifests and the order of what was handed up.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from telemetry_bus import (
    BusClosed,
    Earliest,
    Finding,
    FindingKind,
    FindingState,
    Frame,
    FrameError,
    FrameFault,
    FrameMaker,
    Outlet,
    OutletOptions,
    Report,
    Severity,
    Topic,
    decode,
    encode,
    finding_id,
    findings_frame,
    findings_in,
    open_outlet,
)
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.frames import FRAME_BYTES_MAX
from telemetry_bus.gateway import Gateway, GatewayOptions, LinkServer, ListenOptions
from telemetry_bus.outlet import BusOutlet
from telemetry_bus.runtime.clock import SystemClock

CLOCK = SystemClock()
WAIT_SECONDS = 30.0
"""A guard against a test that hangs; no test waits for it to pass."""


@contextlib.asynccontextmanager
async def gateway_over(upstream: Outlet) -> AsyncIterator[str]:
    """The URL of a gateway over `upstream`."""
    async with (
        Gateway(upstream, CLOCK, GatewayOptions()) as gateway,
        LinkServer(gateway, CLOCK, ListenOptions()) as server,
    ):
        yield server.url


@contextlib.asynccontextmanager
async def straight(bus: EmbeddedBus) -> AsyncIterator[Outlet]:
    """The bus itself."""
    async with BusOutlet(bus, is_open=True) as outlet:
        yield outlet


@contextlib.asynccontextmanager
async def by_gateway(bus: EmbeddedBus) -> AsyncIterator[Outlet]:
    """One gateway over the bus."""
    async with (
        BusOutlet(bus, is_open=True) as upstream,
        gateway_over(upstream) as url,
        open_outlet(url, CLOCK, OutletOptions(node="n1")) as outlet,
    ):
        yield outlet


@contextlib.asynccontextmanager
async def by_two_gateways(bus: EmbeddedBus) -> AsyncIterator[Outlet]:
    """A gateway over a gateway over the bus."""
    async with (
        by_gateway(bus) as upstream,
        gateway_over(upstream) as url,
        open_outlet(url, CLOCK, OutletOptions(node="n1")) as outlet,
    ):
        yield outlet


WAYS: dict[str, Callable[[EmbeddedBus], AbstractAsyncContextManager[Outlet]]] = {
    "bus": straight,
    "gateway": by_gateway,
    "two-gateways": by_two_gateways,
}


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[EmbeddedBus]:
    """Return an empty bus."""
    async with EmbeddedBus(tmp_path / "bus", CLOCK) as bus:
        yield bus


@pytest.fixture(params=WAYS)
async def outlet(request: pytest.FixtureRequest, bus: EmbeddedBus) -> AsyncIterator[Outlet]:
    """Return each way up to the bus, open."""
    async with WAYS[request.param](bus) as outlet:
        yield outlet


def gpu_frame(maker: FrameMaker, *, rows: int = 8, power: float = 500.0) -> Frame:
    """A node's second."""
    now = CLOCK.now()
    columns = {
        "time": [now] * rows,
        "node": [maker.source.partition("/")[0]] * rows,
        "gpu": list(range(rows)),
        "simulated": [True] * rows,
        "power_watts": [power] * rows,
    }
    return maker.make("gpu/1", columns, now)


def train_frame(maker: FrameMaker, step: int, loss: float | None = 1.0) -> Frame:
    """One step of one rank."""
    now = CLOCK.now()
    columns = {"time": [now], "job": ["j"], "attempt": ["a"], "rank": [0], "step": [step], "loss": [loss]}
    return maker.make("train/1", columns, now)


def finding_frame() -> Frame:
    """A critical finding."""
    finding = Finding(
        finding_id("nonfinite", "j"), CLOCK.now(), "nonfinite", FindingKind.NONFINITE, FindingState.FIRING,
        Severity.CRITICAL, "loss is NaN", job="j", attempt="a", step=3,
    )  # fmt: skip
    return findings_frame(FrameMaker("n1/ripcord"), [finding], CLOCK.now())


async def frames_on(bus: EmbeddedBus, topic: Topic) -> list[Frame]:
    """What is on the bus now."""
    frames: list[Frame] = []
    if not sum((await bus.ends(topic)).values()):
        return frames
    async with asyncio.timeout(WAIT_SECONDS), bus.subscribe([topic], Earliest()) as subscription:
        async for records in subscription:
            frames += [decode(record.payload) for record in records]
            if await subscription.caught_up():
                break
    return frames


async def test_what_was_published_is_on_the_bus_with_its_manifest(outlet: Outlet, bus: EmbeddedBus) -> None:
    """Rows and runs arrive as they were made."""
    maker = FrameMaker("n1/gpu")
    made = gpu_frame(maker)
    await outlet.publish(Topic.GPU, [encode(made)], "n1")
    (found,) = await frames_on(bus, Topic.GPU)
    assert list(found.manifest) == list(made.manifest)
    assert found.batch.equals(made.batch)


async def test_frames_of_one_key_keep_their_order(outlet: Outlet, bus: EmbeddedBus) -> None:
    """Many publishes under way at once arrive in the order in which they began."""
    maker = FrameMaker("j/a/0/train")
    payloads = [encode(train_frame(maker, step)) for step in range(200)]
    async with asyncio.TaskGroup() as tasks:
        for payload in payloads:
            tasks.create_task(outlet.publish(Topic.TRAIN, [payload], "j"))
    steps = [step for frame in await frames_on(bus, Topic.TRAIN) for step in frame.numbers("step")[0].tolist()]
    assert steps == list(range(200))


async def test_several_payloads_of_one_call_are_all_there(outlet: Outlet, bus: EmbeddedBus) -> None:
    """A call with many frames returns when the last of them is durable."""
    maker = FrameMaker("n1/gpu")
    await outlet.publish(Topic.GPU, [encode(gpu_frame(maker)) for _ in range(50)], "n1")
    seqs = [run.seq for frame in await frames_on(bus, Topic.GPU) for run in frame.manifest]
    assert seqs == list(range(50))


async def test_absent_zero_and_nan_stay_three_things(outlet: Outlet, bus: EmbeddedBus) -> None:
    """Null, 0.0 and NaN of a loss are the same on the bus."""
    maker = FrameMaker("j/a/0/train")
    for step, loss in enumerate([None, 0.0, math.nan]):
        await outlet.publish(Topic.TRAIN, [encode(train_frame(maker, step, loss))], "j")
    found = [frame.batch.column("loss").to_pylist()[0] for frame in await frames_on(bus, Topic.TRAIN)]
    assert found[:2] == [None, 0.0]
    assert found[2] is not None
    assert math.isnan(found[2])


async def test_the_largest_frame_goes_through(outlet: Outlet, bus: EmbeddedBus) -> None:
    """A frame near the bound arrives whole."""
    now, texts = CLOCK.now(), 230
    columns = {
        "time": [now] * texts, "kind": ["stack"] * texts, "simulated": [True] * texts, "message": ["x" * 65_536] * texts
    }  # fmt: skip
    payload = encode(FrameMaker("n1/gpu-events").make("event/1", columns, now))
    assert FRAME_BYTES_MAX * 0.85 < len(payload) <= FRAME_BYTES_MAX
    await outlet.publish(Topic.EVENTS, [payload], "n1")
    (found,) = await frames_on(bus, Topic.EVENTS)
    assert found.rows == texts


async def test_an_oversized_payload_is_refused_and_the_rest_goes_on(outlet: Outlet, bus: EmbeddedBus) -> None:
    """What is larger than any frame is refused by that reason; the next frame is taken."""
    with pytest.raises(FrameError) as refused:
        await outlet.publish(Topic.GPU, [bytes(FRAME_BYTES_MAX + 1)], "n1")
    assert refused.value.reason is FrameFault.TOO_LARGE
    await outlet.publish(Topic.GPU, [encode(gpu_frame(FrameMaker("n1/gpu")))], "n1")
    assert len(await frames_on(bus, Topic.GPU)) == 1


async def test_a_reported_finding_is_on_the_bus(outlet: Outlet, bus: EmbeddedBus) -> None:
    """While the bus is there, a report is a publication."""
    made = finding_frame()
    assert await outlet.report(encode(made)) == Report(published=True)
    (found,) = await frames_on(bus, Topic.FINDINGS)
    assert findings_in(found) == findings_in(made)


async def test_the_backlog_has_its_own_topic_and_a_pace(outlet: Outlet, bus: EmbeddedBus) -> None:
    """A frame of the backlog keeps its manifest; how fast it may go is a number above zero."""
    made = gpu_frame(FrameMaker("n1/gpu"))
    assert outlet.backlog_bytes_per_second > 0
    await outlet.publish(Topic.BACKLOG, [encode(made)], "n1")
    (found,) = await frames_on(bus, Topic.BACKLOG)
    assert list(found.manifest) == list(made.manifest)
    assert await frames_on(bus, Topic.GPU) == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_closed_outlet_says_so(way: str, bus: EmbeddedBus) -> None:
    """Who publishes after closing is told, and nothing hangs."""
    async with WAYS[way](bus) as outlet:
        pass
    if way == "bus":
        await bus.__aexit__(None, None, None)
    with pytest.raises(BusClosed):
        await outlet.publish(Topic.GPU, [encode(gpu_frame(FrameMaker("n1/gpu")))], "n1")


@pytest.mark.parametrize("way", WAYS)
async def test_an_error_of_its_user_comes_out_as_it_is(way: str, bus: EmbeddedBus) -> None:
    """Whoever fails within an open outlet sees that failure, in no group."""
    with pytest.raises(KeyError):
        async with WAYS[way](bus):
            raise KeyError("the user's own")
