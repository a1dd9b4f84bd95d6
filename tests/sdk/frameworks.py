"""Real training jobs on PyTorch and its kin: programs of ``tests/sdk/jobs`` in the environment that has the frameworks.

They import what a job would install: the built wheel, unpacked, and nothing of this repository.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.recorder import ROOT

JOBS = Path(__file__).with_name("jobs")
JOB_SECONDS_MAX = 100.0


@dataclass(frozen=True, slots=True)
class Frameworks:
    """The interpreter that has them, and the folder with the SDK's wheel."""

    python: Path
    wheel: Path

    async def start(self, job: str, *words: str, ranks: int = 0, **environment: str) -> asyncio.subprocess.Process:
        """Start ``tests/sdk/jobs/JOB.py``; with ``ranks`` by torchrun, on this machine."""
        program = [str(JOBS / f"{job}.py"), *words]
        if ranks:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            program = [*launcher, "--rdzv-id", "one", *program]
        return await asyncio.create_subprocess_exec(
            str(self.python),
            *program,
            env=self.environment | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, job: str, *words: str, ranks: int = 0, **environment: str) -> list[dict[str, Any]]:
        """Run it to its end; return the JSON lines that it printed. Fails with what it said if it failed."""
        process = await self.start(job, *words, ranks=ranks, **environment)
        return await ended(process)

    @property
    def environment(self) -> dict[str, str]:
        """What a job sees of this machine."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        quiet = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
        return kept | quiet | {"PYTHONPATH": str(self.wheel)}


async def ended(process: asyncio.subprocess.Process, status: int = 0) -> list[dict[str, Any]]:
    """Wait for a job; return the JSON lines that it printed."""
    try:
        async with asyncio.timeout(JOB_SECONDS_MAX):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        pytest.fail(f"the job did not end: {out.decode()[-2000:]}\n{err.decode()[-4000:]}")
    assert process.returncode == status, out.decode()[-2000:] + err.decode()[-6000:]
    return [json.loads(line) for line in out.decode().splitlines() if line.startswith('{"')]


@pytest.fixture(scope="session")
def frameworks(service_binary: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Frameworks:
    """Return the environment of the frameworks, with the SDK as it is released."""
    python = service_binary("frameworks")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*build, "-w", str(folder), str(ROOT / "sdk")], check=True, cwd=folder)
    (wheel,) = folder.glob("nantucket-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return Frameworks(python, folder / "unpacked")
