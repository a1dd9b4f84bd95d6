"""A dcgm-exporter for tests: a real HTTP server whose text, status and manners a test may change."""

from __future__ import annotations

import asyncio
import gzip
from types import TracebackType
from typing import Self

LABELS = (
    'gpu="{gpu}",UUID="GPU-{gpu}",pci_bus_id="00000000:{slot:02X}:00.0",device="nvidia{gpu}",'
    'modelName="NVIDIA H100 80GB HBM3",{host}="gpu-7",DCGM_FI_DRIVER_VERSION="575.57.08"'
)
FIELDS = {
    "DCGM_FI_DEV_SM_CLOCK": "1755", "DCGM_FI_DEV_MEM_CLOCK": "2619", "DCGM_FI_DEV_MEMORY_TEMP": "70",
    "DCGM_FI_DEV_GPU_TEMP": "61", "DCGM_FI_DEV_POWER_USAGE": "691.5", "DCGM_FI_DEV_GPU_UTIL": "97",
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": "1234567890", "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": "3",
    "DCGM_FI_DEV_XID_ERRORS": "0", "DCGM_FI_DEV_FB_USED": "70000", "DCGM_FI_DEV_FB_FREE": "10939",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "0.412", "DCGM_FI_PROF_PCIE_TX_BYTES": "1.5e9",
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": "0",
}  # fmt: skip


def page(gpus: int = 2, *, host: str = "Hostname", more: str = "", without: str = "", **fields: str) -> str:
    """What an exporter of healthy GPUs serves; ``fields`` replace values, ``more`` is added to the labels."""
    lines = []
    for name, value in {**FIELDS, **fields}.items():
        lines += [f"# HELP {name} Something (in units).", f"# TYPE {name} gauge"]
        for gpu in range(gpus):
            labels = LABELS.format(gpu=gpu, slot=0x1B + gpu, host=host) + more
            if name != without:
                lines.append(f"{name}{{{labels}}} {value}")
    return "\n".join(lines) + "\n"


class Exporter:
    """Serves ``text`` at ``url`` while open. ``status`` and ``promised`` (more bytes than come) are its manners."""

    def __init__(self, text: str = "") -> None:
        self.text: str | bytes = text or page()
        self.status = "200 OK"
        self.compressed = False
        self.promised = 0
        self.silent = False
        self.heads: list[str] = []
        self.url = ""
        self._over = asyncio.Event()
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.url = f"http://{host}:{port}/metrics"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and let go of whoever still waits."""
        self._server.close()
        self._over.set()
        await asyncio.gather(*self._handlers)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._answered(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # who asked has gone
        finally:
            writer.close()
            self._handlers.discard(task)

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        if self.silent:
            await self._over.wait()
            return
        body = self.text if isinstance(self.text, bytes) else self.text.encode()
        head = f"HTTP/1.1 {self.status}\r\nConnection: close\r\nContent-Type: text/plain; version=0.0.4\r\n"
        if self.compressed:
            body, head = gzip.compress(body), head + "Content-Encoding: gzip\r\n"
        writer.write(f"{head}Content-Length: {len(body) + self.promised}\r\n\r\n".encode() + body)
        await writer.drain()
