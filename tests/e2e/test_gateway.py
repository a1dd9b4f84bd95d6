"""The tree as processes of their own: collectors, a gateway of a rack, one at the top, and a bus; and their deaths."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.processes import Talking, talking
from telemetry_bus import (
    BusUnavailable,
    Earliest,
    FrameRefused,
    OutletOptions,
    Topic,
    decode,
    open_bus,
    open_outlet,
)
from telemetry_bus.errors import GatewayRefused
from telemetry_bus.gateway.wire import LinkFault
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.runtime.secret import Secret
from tests.telemetry_bus.gateway.authority import Authority

READY_SECONDS = 60.0
WAIT_SECONDS = 90.0
TOKEN = "for-the-rack-4711"
COLLECTORS = ("with-certificate", "with-token")


@dataclass
class Tree:
    """A bus in a folder, and the processes that lead to it; each may be killed and started again at its address."""

    folder: Path
    authority: Authority
    stack: contextlib.AsyncExitStack
    ports: dict[str, int]
    running: dict[str, Talking] = field(default_factory=dict)
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def start(self, name: str) -> None:
        """Start it, and wait until it is ready."""
        role, environment = self.orders()[name]
        environment |= {"NANTUCKET_STATE": str(self.folder / name), "NANTUCKET_NODE": name}
        process = await self.stack.enter_async_context(talking(name, ["app.cli", role, "--json"], env=environment))
        self.ready[name] = await process.line(lambda line: line.get("ready"), READY_SECONDS)
        self.running[name] = process

    def orders(self) -> dict[str, tuple[str, dict[str, str]]]:
        """Role and environment of each: the top asks for certificates, the rack for a token."""
        shown = {kind: self.authority.sign(kind) for kind in ("gateway", "below")}
        top, rack = f"gateways://localhost:{self.ports['top']}", f"gateway://127.0.0.1:{self.ports['rack']}"
        link = {
            "NANTUCKET_LINK__CA": str(self.authority.cert),
            "NANTUCKET_LINK__CERT": str(shown["below"].cert),
            "NANTUCKET_LINK__KEY": str(shown["below"].key),
        }
        listening = {"NANTUCKET_GATEWAY__HTTP_PORT": "0", "NANTUCKET_METRICS__PORT": "0"}
        collecting = {"NANTUCKET_COLLECT__SIMULATE": "16", "NANTUCKET_COLLECT__HZ": "5"}
        return {
            "top": ("gateway", {
                **listening, "NANTUCKET_BUS": (self.folder / "bus").as_uri(),
                "NANTUCKET_GATEWAY__PORT": str(self.ports["top"]),
                "NANTUCKET_GATEWAY__CERT": str(shown["gateway"].cert),
                "NANTUCKET_GATEWAY__KEY": str(shown["gateway"].key),
                "NANTUCKET_GATEWAY__CLIENT_CA": str(self.authority.cert),
            }),
            "rack": ("gateway", {
                **listening, **link, "NANTUCKET_BUS": top,
                "NANTUCKET_GATEWAY__PORT": str(self.ports["rack"]), "NANTUCKET_GATEWAY__TOKEN": TOKEN,
            }),
            "with-certificate": ("collect", {**collecting, **link, "NANTUCKET_BUS": top}),
            "with-token": ("collect", {
                **collecting, "NANTUCKET_BUS": rack, "NANTUCKET_LINK__TOKEN": TOKEN, "NANTUCKET_COLLECT__SEED": "7",
            }),
        }  # fmt: skip

    async def kill(self, name: str) -> None:
        """Kill it as the kernel does."""
        process = self.running.pop(name).process
        process.kill()
        await process.wait()

    async def arrived(self) -> dict[str, set[int]]:
        """The numbers of the frames of GPU rows that are on the bus, by source and boot of each collector."""
        found: dict[str, set[int]] = {}
        topics = (Topic.GPU, Topic.BACKLOG)
        async with open_bus((self.folder / "bus").as_uri(), SystemClock()) as bus:
            if not sum([sum((await bus.ends(topic)).values()) for topic in topics]):
                return found
            async with bus.subscribe(topics, Earliest()) as subscription:
                async for records in subscription:
                    for run in (run for record in records for run in decode(record.payload).manifest):
                        if run.source.endswith("/gpu"):
                            found.setdefault(f"{run.source} {run.boot}", set()).add(run.seq)
                    if await subscription.caught_up():
                        break
        return found

    async def until(self, true: Callable[[dict[str, set[int]]], bool]) -> dict[str, set[int]]:
        """What is on the bus, as soon as it is so."""
        found: dict[str, set[int]] = {}
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not true(found := await self.arrived()):
                    await asyncio.sleep(0.2)
        except TimeoutError:
            pytest.fail(f"so far: {found}; {[(name, one.stderr) for name, one in self.running.items()]}")
        return found

    async def figure(self, name: str, metric: str) -> float:
        """A figure of a gateway, over all its labels."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(self.ready[name]["metrics"])).raise_for_status().text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return sum(sample.value for sample in samples if sample.name == f"nantucket_{metric}")


def whole(found: dict[str, set[int]], least: int) -> bool:
    """Whether both nodes of both collectors are there, each with so many frames and without a hole."""
    return len(found) == 4 and all(len(seqs) >= least and seqs == set(range(max(seqs) + 1)) for seqs in found.values())


@pytest.fixture
async def tree(tmp_path: Path, unused_tcp_port_factory: Callable[[], int]) -> AsyncIterator[Tree]:
    """Return a tree of which everything runs; what still runs at the end is stopped."""
    (tmp_path / "authority").mkdir()
    authority = await asyncio.to_thread(Authority(tmp_path / "authority").begin)
    ports = {name: unused_tcp_port_factory() for name in ("top", "rack")}
    async with contextlib.AsyncExitStack() as stack:
        tree = Tree(tmp_path, authority, stack, ports)
        for name in ("top", "rack", *COLLECTORS):
            await tree.start(name)
        yield tree


@pytest.mark.timeout(300)
async def test_gateways_are_killed_and_no_frame_is_missing(tree: Tree) -> None:
    """A rack's gateway and the one at the top die in the middle: what was not acknowledged is sent again."""
    await tree.until(lambda found: whole(found, 5))
    for name in ("rack", "top"):
        before = await tree.arrived()
        await tree.kill(name)
        await asyncio.sleep(1.0)  # frames come to a door that is not there
        await tree.start(name)
        least = 8 + max(len(seqs) for seqs in before.values())
        await tree.until(lambda found, least=least: whole(found, least))  # type: ignore[misc]
    for name in COLLECTORS:
        tree.running[name].process.terminate()
        assert await tree.running[name].process.wait() == 0
    await tree.until(lambda found: whole(found, 20))


@pytest.mark.timeout(300)
async def test_strangers_get_nowhere_and_the_rest_goes_on(tree: Tree) -> None:
    """Without token or certificate, with garbage, with another protocol, by socket and by HTTP: refused and counted."""
    rack, top = tree.ports["rack"], tree.ports["top"]
    for token in (None, Secret("another")):
        async with open_outlet(f"gateway://127.0.0.1:{rack}", SystemClock(), OutletOptions(token=token)) as outlet:
            with pytest.raises(GatewayRefused, match=LinkFault.UNAUTHENTICATED):
                await outlet.publish(Topic.GPU, [b"x"])
    options = OutletOptions(ca=tree.authority.cert)
    async with open_outlet(f"gateways://localhost:{top}", SystemClock(), options) as outlet:
        with pytest.raises(BusUnavailable):
            await outlet.publish(Topic.GPU, [b"x"])
    for port in (rack, top):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(1_000))
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()
    async with open_outlet(f"gateway://127.0.0.1:{rack}", SystemClock(), OutletOptions(token=Secret(TOKEN))) as outlet:
        for topic, payload in ((Topic.GPU, b"garbage" * 10), (Topic.TICKS, b"tick"), (Topic.VERDICTS, b"verdict")):
            with pytest.raises(FrameRefused):
                await outlet.publish(topic, [payload])
    async with httpx.AsyncClient(base_url=tree.ready["rack"]["gateway_http"]) as client:
        kind = {"Content-Type": "application/octet-stream"}
        assert (await client.post("/v1/frames", content=b"x", headers=kind)).status_code == 401
        shown = {"Authorization": f"Bearer {TOKEN}", **kind}
        assert (await client.post("/v1/frames", content=b"x", headers=shown)).status_code == 422
    assert await tree.figure("rack", "gateway_links_ended_total") >= 3
    assert await tree.figure("rack", "gateway_refused_total") == 4
    arrived = await tree.arrived()
    least = 5 + max((len(seqs) for seqs in arrived.values()), default=0)
    await tree.until(lambda found: whole(found, least))
    async with open_bus((tree.folder / "bus").as_uri(), SystemClock()) as bus:
        assert sum((await bus.ends(Topic.DEAD_LETTER)).values()) > 0
    spoken = [line for one in tree.running.values() for line in one.stderr]
    assert TOKEN not in "\n".join(spoken)
