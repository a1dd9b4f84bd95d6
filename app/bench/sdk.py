"""``bench sdk``: what a training step pays for being watched, beside the same step without."""

import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nantucket
from app.bench.machine import machine
from app.output import console, print_json
from app.processes import talking

READY_SECONDS = 60.0
FRAMEWORKS = ("none", "torch")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nantucket" / "services" / "frameworks"
"""Where ``python -m scripts.services`` puts the environment with the frameworks."""


@dataclass(frozen=True, slots=True)
class SdkOptions:
    """``python`` is an interpreter that has the framework; the SDK is taken from where this process has it."""

    framework: str = "torch"
    seconds: float = 60.0
    python: Path | None = None


async def bench_sdk_command(options: SdkOptions, *, as_json: bool) -> int:
    """Measure and print; 1 where the framework is not to be had."""
    out = console(as_json=as_json)
    python = options.python or _python_of(options.framework)
    if python is None:
        out.print("PyTorch is not here: name an interpreter that has it with --python", markup=False)
        return 1
    out.print(f"run.log and run.watch on {options.framework}, {options.seconds:.0f} s ...", markup=False)
    result = await _measured(options, python)
    if "error" in result:
        out.print(str(result["error"]), markup=False)
        return 1
    print_json(result) if as_json else out.print(_words(result), markup=False)
    return 0


def _python_of(framework: str) -> Path | None:
    if framework == "none":
        return Path(sys.executable)
    found = sorted(CACHE.glob("usr/bin/nantucket-frameworks-*"))
    return found[-1] if found else None


async def _measured(options: SdkOptions, python: Path) -> dict[str, Any]:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nantucket-bench-") as name:
        words = ["app.cli", "collect", "--json", "--state", name, "--bus", f"file://{name}/bus"]
        async with talking("collect", [*words, "--socket", f"{name}/c.sock"]) as collector:
            await collector.line(lambda line: line.get("ready"), READY_SECONDS)
            job = await asyncio.create_subprocess_exec(
                str(python),
                str(Path(__file__).with_name("sdk_job.py")),
                options.framework,
                str(options.seconds),
                env=os.environ | _place(name),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await job.communicate()
    if job.returncode != 0:
        return {"error": f"{python} failed: {err.decode()[-2000:]}"}
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return {
        "bench": "sdk",
        "seconds": round(time.monotonic() - started, 1),
        "machine": machine(),
        "framework": options.framework,
        **found,
    }


def _place(folder: str) -> dict[str, str]:
    sdk = Path(nantucket.__file__).parents[1]
    return {"NANTUCKET_URL": f"unix://{folder}/c.sock", "PYTHONPATH": str(sdk), "OMP_NUM_THREADS": "1"}


def _words(result: dict[str, Any]) -> str:
    said = (
        f"run.log with ten values: {result['log_p50_us']} us, p99 {result['log_p99_us']} us; the sender's thread takes "
        f"{result['idle_percent']} % of a core while nothing is logged."
    )
    if "step_ms" in result:
        said += (
            f"\nA step of {result['elements']:,} parameters on {result['device']}: {result['step_ms']} ms, watched "
            f"{result['watched_step_ms']} ms ({result['overhead_percent']:+.2f} %, medians of {result['steps']} steps)."
        )
    return said
