"""The demo: starts everything, waits for the page, and holds it against what really happened."""

import asyncio
import base64
import contextlib
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.demo.witness import Watched, agrees, frames_counted, ledger_entry, watch_stream
from app.processes import ProcessFailed, Talking, talking
from telemetry_bus.json_text import dumps

JOB = "leviathan-demo"
READY_SECONDS = 60.0
BAD_STEP_SECONDS = 150.0
"""The job trains a few hundred steps before its arithmetic breaks: some 20 s on one quiet core."""
PAGE_SECONDS = 20.0
"""How long a page may take before the demo calls it missing; it is expected within 250 ms."""

AFTER_SECONDS = 10.0
"""How long the job trains on after its first bad step, as a real one would that nobody stops."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """``simulate`` GPUs stream beside the job; the page stays up for ``linger_seconds`` after the page was sent."""

    seed: int
    simulate: int = 64
    linger_seconds: float = 0.0
    port: int = 0


@dataclass(frozen=True, slots=True)
class System:
    """The processes of the demo: ``up`` and the receiver."""

    url: str
    socket: str
    receiver: Talking
    folder: Path

    @property
    def ledger(self) -> Path:
        """Where the job writes what really happened."""
        return self.folder / "ledger.jsonl"


async def run_demo(options: DemoOptions, say: Say) -> dict[str, Any]:
    """Run it and return the result of ``demo --json``; ``ok`` tells whether page, ledger and dashboard agree."""
    with tempfile.TemporaryDirectory(prefix="nantucket-demo-") as name:
        async with _system(Path(name), options, say) as system:
            say(f"The page is at {system.url}; {options.simulate} simulated GPUs stream beside the real job.")
            watched = Watched()
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch_stream(system.url, watched))
                async with asyncio.timeout(READY_SECONDS):
                    await watched.connected.wait()
                async with _training(system, options, say):
                    result = await _judged(system, watched, say)
                    if options.linger_seconds:
                        say(
                            f"The job trains on, and the page stays up for {options.linger_seconds:.0f} s: {system.url}"
                        )
                        await asyncio.sleep(options.linger_seconds)
                watching.cancel()
            return result


@contextlib.asynccontextmanager
async def _system(folder: Path, options: DemoOptions, say: Say) -> AsyncIterator[System]:
    """A receiver and ``nantucket up``, each a process of its own."""
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    async with talking("the receiver", ["app.demo.receiver"], stdin=secret + "\n") as receiver:
        port = (await receiver.line(lambda line: "listening" in line, READY_SECONDS))["listening"]
        config = folder / "nantucket.toml"
        await asyncio.to_thread(_write_config, config, folder, port, secret, options)
        say("Starting Nantucket: collectors, bus, detectors, alerting, dashboard ...")
        async with talking("nantucket up", ["app.cli", "up", "--config", str(config), "--json"]) as up:
            ready = await up.line(lambda line: line.get("ready"), READY_SECONDS)
            yield System(ready["url"], ready["socket"], receiver, folder)


def _write_config(path: Path, folder: Path, port: int, secret: str, options: DemoOptions) -> None:
    path.touch(mode=0o600)
    path.write_text(
        f"state = {json.dumps(str(folder))}\n"
        f"[collect]\nsimulate = {options.simulate}\nseed = {options.seed}\n"
        f"socket = {json.dumps(str(folder / 'collector.sock'))}\n"
        f"[serve]\nport = {options.port}\n"
        f'[receivers.demo]\nurl = "http://127.0.0.1:{port}/page"\nsecret = {json.dumps(secret)}\n'
    )


def _training(system: System, options: DemoOptions, say: Say) -> contextlib.AbstractAsyncContextManager[Talking]:
    """The job, in a process of its own. After its first bad step it trains on for as long as somebody looks."""
    command = ["app.demo_job", "--job", JOB, "--rank", "0", "--seed", str(options.seed)]
    command += ["--ledger", str(system.ledger), "--after-seconds", str(AFTER_SECONDS + options.linger_seconds)]
    say(
        f"Training a small language model in numpy, for real (seed {options.seed}); "
        "at some step its learning rate is kicked."
    )
    return talking("the training job", command, env={"NANTUCKET_URL": f"unix://{system.socket}"})


async def _judged(system: System, watched: Watched, say: Say) -> dict[str, Any]:
    """The page held against the ledger, once both are there."""
    bad = await ledger_entry(system.ledger, BAD_STEP_SECONDS)
    if bad is None:
        return {"ok": False, "error": f"the job had no bad step within {BAD_STEP_SECONDS:.0f} s"}
    say(f"Step {bad['step']}: arithmetic made the first non-finite number, in {bad['parameter']}.")
    delivery = await _delivery(system.receiver, bad)
    if delivery is not None:
        return await _result(system, watched, bad, delivery)
    return {
        "ok": False,
        "error": f"no page names the ledger's step within {PAGE_SECONDS:.0f} s",
        "ledger": bad,
        "pages": [line["body"] for line in system.receiver.lines if "body" in line],
    }


async def _delivery(receiver: Talking, bad: dict[str, Any]) -> dict[str, Any] | None:
    with contextlib.suppress(ProcessFailed):
        return await receiver.line(lambda line: line.get("verified") and agrees(line["body"], bad), PAGE_SECONDS)
    return None


async def _result(system: System, watched: Watched, bad: dict[str, Any], delivery: dict[str, Any]) -> dict[str, Any]:
    incident = delivery["body"]["incident"]
    latency_ms = (delivery["monotonic_ns"] - bad["monotonic_ns"]) / 1e6
    shown = await _shown(watched, incident["id"], bad["parameter"])
    seen, missing = await frames_counted(system.url)
    return {
        "ok": shown and missing == 0,
        "job": incident["job"],
        "first_bad_step": bad["step"],
        "first_bad_parameter": bad["parameter"],
        "paged_step": incident["detected_step"],
        "bad_step_to_page_ms": round(latency_ms, 1),
        "page": delivery["body"],
        "dashboard": {"url": system.url, "frames_seen": seen},
        "frames_missing": missing,
    }


async def _shown(watched: Watched, incident_id: str, parameter: str) -> bool:
    """Whether the dashboard's stream carries the incident, with the same place, within two seconds."""
    for _ in range(40):
        incident = watched.incidents.get(incident_id)
        if incident is not None and incident["where"]["parameter"] == parameter:
            return True
        await asyncio.sleep(0.05)
    return False


def as_line(result: dict[str, Any]) -> str:
    """The result as the one line of ``demo --json``."""
    return dumps(result)
