"""A client of dcgm-exporter: where NVML is not at hand, GPUs are read from what it serves to Prometheus.

It scrapes each of its URLs, reads the three generations of its names, and makes rows of what is new. It cannot give
what the exporter does not have: a value a second, every XID (the exporter has the last one, as a gauge), or profiling
beside somebody who profiles.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from collectors.dcgm_page import DcgmGpu, DcgmPage, Key, read_page
from collectors.dcgm_text import DcgmText, read_text
from collectors.errors import FieldFailure, SourceClosed
from collectors.gpu_users import GpuUsers, Holder, Origin
from collectors.source import LINKS, METRICS, Column, EventRow, GpuRows, LinkRows, SourceReading
from collectors.xids import GpuIdentity, XidLedger
from collectors.xids import Origin as XidOrigin
from telemetry_bus.runtime.clock import Clock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.schemas import EventKind

if TYPE_CHECKING:
    import httpx

PERIOD_SECONDS = 10.0
"""The exporter asks DCGM every 30 s unless it was told otherwise. A text that has not changed gives no rows."""
TIMEOUT_SECONDS = 8.0
"""It answers in milliseconds; it is known to take ten seconds where DCGM is slow, and then the next scrape has more."""
BODY_BYTES_MAX = 32 * 1024 * 1024
"""72 GPUs of 7 instances and 100 fields are 20 MiB; an answer that does not end is none."""
STALE_SECONDS = 120.0
"""Four of the exporter's own rounds. A GPU's energy or temperature does not stand still for so long: its DCGM does."""
IN_LOOP_BYTES_MAX = 4 * 1024
"""A larger text is read in a thread: 8 GPUs with 35 fields are 51 KiB, and take 17 ms."""
FIELD = "dcgm_exporter"
"""The field under which it is counted what a scrape did not give."""


@dataclass(frozen=True, slots=True)
class DcgmExporter:
    """The exporters at ``urls``, each a ``http(s)://[USER:PASSWORD@]HOST:PORT/metrics``.

    ``node`` is this machine's name: that of the rows where the exporter does not say it, and of all rows where
    ``rename`` is set (an exporter in Kubernetes may give its pod's name). ``users`` is told of pods on this node.
    """

    urls: tuple[Secret[str], ...]
    node: str
    rename: bool = False
    period_seconds: float = PERIOD_SECONDS
    timeout_seconds: float = TIMEOUT_SECONDS
    users: GpuUsers | None = None

    def build(self, clock: Clock) -> "DcgmSource":
        """The source, not yet open."""
        del clock  # its time is what it is read at
        return DcgmSource(self)


def shown(url: str) -> str:
    """A URL as anybody may see it: without user and password, and without a query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(slots=True)
class _Exporter:
    """What is remembered of one exporter."""

    url: Secret[str]
    shown: str
    body: bytes = b""
    changed_at: float = 0.0
    trouble: str = ""
    stale: bool = False
    given: dict[Key, frozenset[str]] = field(default_factory=dict)
    """What each GPU had in the last page."""


class DcgmSource:
    """A running :class:`DcgmExporter`. Opening always succeeds: an exporter may come later."""

    name = "dcgm_exporter"
    urgent: asyncio.Event | None = None

    def __init__(self, config: DcgmExporter) -> None:
        self.config = config
        self.period_seconds: float | None = config.period_seconds
        self._exporters = [_Exporter(url, shown(url.reveal())) for url in config.urls]
        self._client: httpx.AsyncClient | None = None
        self._stack = AsyncExitStack()
        self._known: dict[str, list[dict[str, Any]]] = {}
        self._ledgers: dict[str, XidLedger] = {}
        self._xids: dict[Key, int] = {}
        self._events: list[EventRow] = []
        self.unknown: Counter[str] = Counter()
        """Lines of DCGM that are no field of ours, by name."""

    async def __aenter__(self) -> Self:
        """Get ready to ask."""
        import httpx  # noqa: PLC0415 - 10 MiB that no other source needs

        timeout = httpx.Timeout(self.config.timeout_seconds)
        self._client = await self._stack.enter_async_context(httpx.AsyncClient(timeout=timeout, follow_redirects=False))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Hang up."""
        self._client = None
        await self._stack.aclose()

    async def read(self, now: float) -> SourceReading:
        """All exporters at once. One that does not answer has no rows, and is told."""
        if self._client is None:
            raise SourceClosed(self.name)
        failures: Counter[tuple[str, FieldFailure]] = Counter()
        answers = await asyncio.gather(*(self._scrape(self._client, exporter) for exporter in self._exporters))
        pages = []
        for exporter, answer in zip(self._exporters, answers, strict=True):
            page = await self._page(exporter, answer, now, failures)
            if page is not None:
                pages.append(page)
        gpus = {key: gpu for page in pages for key, gpu in page.gpus.items()}
        links = {key: values for page in pages for key, values in page.links.items()}
        self._tell_inventories(gpus)
        self._tell_xids(gpus, now)
        self._tell_users(gpus)
        events, self._events = self._events, []
        return SourceReading(_gpu_rows(gpus), events, failures, _link_rows(links))

    def unreadable(self) -> Sequence[str]:
        """Which exporters give nothing, and what they say that nobody here understands."""
        said = [f"{each.shown}: {each.trouble}" for each in self._exporters if each.trouble]
        said += [
            f"{each.shown} says the same for {STALE_SECONDS:g} s and more" for each in self._exporters if each.stale
        ]
        if self.unknown:
            names = ", ".join(name for name, _ in self.unknown.most_common(8))
            said.append(f"{len(self.unknown)} names of fields are not known here: {names}")
        return said

    async def _scrape(self, client: "httpx.AsyncClient", exporter: _Exporter) -> bytes | str:
        """The text, or what was wrong, in words without the URL's secrets."""
        import httpx  # noqa: PLC0415 - see above

        try:
            async with (
                asyncio.timeout(self.config.timeout_seconds),
                client.stream("GET", exporter.url.reveal()) as answer,
            ):
                if answer.status_code != httpx.codes.OK:
                    return f"it answers {answer.status_code} {answer.reason_phrase}"
                body = bytearray()
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > BODY_BYTES_MAX:
                        return f"it answers with more than {BODY_BYTES_MAX} bytes"
                return bytes(body)
        except TimeoutError:
            return f"no answer within {self.config.timeout_seconds:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return f"no answer ({type(error).__name__})"

    async def _page(
        self, exporter: _Exporter, answer: bytes | str, now: float, failures: Counter[tuple[str, FieldFailure]]
    ) -> DcgmPage | None:
        """What is new of one exporter; ``None`` where it says nothing, or the same as before."""
        if isinstance(answer, str):
            failures[FIELD, FieldFailure.NO_ANSWER] += 1
            self._troubled(exporter, answer)
            return None
        self._troubled(exporter, "")
        if answer == exporter.body:
            self._stands_still(exporter, now - exporter.changed_at)
            return None
        exporter.body, exporter.changed_at = answer, now
        reading = (lambda: self._read(answer)) if len(answer) <= IN_LOOP_BYTES_MAX else None
        text, page = reading() if reading is not None else await asyncio.to_thread(self._read, answer)
        behind = 0.0 if page.oldest is None else now - page.oldest
        self._stands_still(exporter, behind)
        if text.bad or text.left_out:
            failures[FIELD, FieldFailure.DRIVER_ERROR] += text.bad + text.left_out
        if text.blank:
            failures[FIELD, FieldFailure.UNSUPPORTED] += text.blank
        if not page.gpus:
            failures[FIELD, FieldFailure.UNSUPPORTED] += 1
        self.unknown = page.unknown
        self._compare(exporter, page, failures)
        return page if behind <= STALE_SECONDS else None

    def _read(self, body: bytes) -> tuple[DcgmText, DcgmPage]:
        text = read_text(body)
        return text, read_page(text.samples, self.config.node if self.config.rename else None, self.config.node)

    def _troubled(self, exporter: _Exporter, trouble: str) -> None:
        if trouble and not exporter.trouble:
            self._say(f"the exporter {exporter.shown}: {trouble}", "exporter_silent", exporter)
        elif exporter.trouble and not trouble:
            self._say(f"the exporter {exporter.shown} answers again", "exporter_answers", exporter)
        exporter.trouble = trouble

    def _stands_still(self, exporter: _Exporter, seconds: float) -> None:
        stale = seconds > STALE_SECONDS
        if stale and not exporter.stale:
            words = f"the exporter {exporter.shown} has said the same for {seconds:.0f} s: its DCGM may hang"
            self._say(words, "exporter_stale", exporter)
        elif exporter.stale and not stale:
            self._say(f"the exporter {exporter.shown} has something new to say", "exporter_answers", exporter)
        exporter.stale = stale

    def _compare(self, exporter: _Exporter, page: DcgmPage, failures: Counter[tuple[str, FieldFailure]]) -> None:
        """Half a page is noticed: a GPU or a field that was there and is not."""
        given = {key: frozenset(gpu.values) for key, gpu in page.gpus.items()}
        for key, before in exporter.given.items():
            if key not in given:
                self._say(f"GPU {key[1]} of {key[0]} is missing at {exporter.shown}", "gpu_lost", exporter, key)
                continue
            for metric in before - given[key]:
                failures[metric, FieldFailure.LOST] += 1
            given[key] |= before  # it stays missing until it is there again
        for key in given.keys() - exporter.given.keys() if exporter.given else ():
            self._say(f"GPU {key[1]} of {key[0]} is there at {exporter.shown}", "gpu_back", exporter, key)
        exporter.given = given

    def _say(self, words: str, state: str, exporter: _Exporter, key: Key | None = None) -> None:
        node, gpu, instance = (self.config.node, None, None) if key is None else key
        detail = {"source": self.name, "state": state, "url": exporter.shown, "instance": instance}
        self._events.append(EventRow(EventKind.DRIVER, node, f"{node}: {words}", False, gpu, detail=detail))

    def _tell_inventories(self, gpus: Mapping[Key, DcgmGpu]) -> None:
        by_node: dict[str, list[dict[str, Any]]] = {}
        drivers: dict[str, str | None] = {}
        for (node, index, instance), gpu in sorted(gpus.items(), key=lambda item: (item[0][:2], item[0][2] or "")):
            if instance is None or not any(each["gpu"] == index for each in by_node.get(node, ())):
                uuid = gpu.uuid if instance is None else None
                by_node.setdefault(node, []).append({"gpu": index, "uuid": uuid, "name": gpu.name, "pci": gpu.pci})
            drivers[node] = gpu.driver or drivers.get(node)
        for node, listed in by_node.items():
            if listed == self._known.get(node):
                continue
            self._known[node] = listed
            detail = {"hostname": node, "driver_version": drivers[node], "gpus": listed, "simulated": False}
            words = f"{node}: {len(listed)} GPUs, as a dcgm-exporter lists them"
            self._events.append(EventRow(EventKind.NODE_INVENTORY, node, words, False, detail=detail))

    def _tell_xids(self, gpus: Mapping[Key, DcgmGpu], now: float) -> None:
        """The gauge holds the last XID: another number is news, and the same one again cannot be seen."""
        for key, gpu in gpus.items():
            before, self._xids[key] = self._xids.get(key), gpu.xid or 0
            if before is None or not gpu.xid or gpu.xid == before:
                continue
            ledger = self._ledgers.setdefault(key[0], XidLedger(key[0]))
            if gpu.uuid is not None and gpu.pci is not None:
                ledger.know([GpuIdentity(key[1], gpu.uuid, gpu.pci)])
            detail = {"source": self.name, "repeats_unseen": True}
            row = ledger.saw(XidOrigin.NVML, now, pci=gpu.pci, uuid=gpu.uuid, code=gpu.xid, detail=detail, time=now)
            self._events += [] if row is None else [row]

    def _tell_users(self, gpus: Mapping[Key, DcgmGpu]) -> None:
        if self.config.users is None or not gpus:
            return
        held: dict[str, list[Holder]] = {}
        for (node, _, instance), gpu in gpus.items():
            if node == self.config.node and gpu.uuid is not None and instance is None:
                held[gpu.uuid] = [Holder(*who, Origin.DCGM_EXPORTER) for who in sorted(gpu.holders, key=str)]
        self.config.users.saw_holders(Origin.DCGM_EXPORTER, held)


def _gpu_rows(gpus: Mapping[Key, DcgmGpu]) -> GpuRows | None:
    if not gpus:
        return None
    ordered = sorted(gpus.items(), key=lambda item: (item[0][:2], item[0][2] or ""))
    nodes = Counter(key[0] for key, _ in ordered)
    has = set[str]().union(*(gpu.values for _, gpu in ordered))
    metrics = {name: Column.of(name, [gpu.values.get(name) for _, gpu in ordered]) for name in METRICS if name in has}
    # The exporter gives an instance the UUID of its GPU, which is another thing.
    uuids = pa.array([gpu.uuid if key[2] is None else None for key, gpu in ordered], pa.string())
    instances = [key[2] for key, _ in ordered]
    instance = pa.array(instances, pa.string()) if any(instances) else None
    index = np.array([key[1] for key, _ in ordered], dtype=np.int32)
    return GpuRows(list(nodes.items()), index, uuids, False, metrics, instance)


def _link_rows(links: Mapping[tuple[str, int, int], Mapping[str, float]]) -> LinkRows | None:
    if not links:
        return None
    ordered = sorted(links.items())
    has = set[str]().union(*(values for _, values in ordered))
    return LinkRows(
        nodes=list(Counter(key[0] for key, _ in ordered).items()),
        kind=["nvlink"] * len(ordered),
        device=[f"gpu{key[1]}" for key, _ in ordered],
        port=[key[2] for key, _ in ordered],
        gpu=[key[1] for key, _ in ordered],
        uuid=[None] * len(ordered),
        simulated=False,
        metrics={n: Column.of(n, [values.get(n) for _, values in ordered]) for n in LINKS if n in has},
    )
