"""SIGKILL at any instant, fifty times: nothing that was durable is lost, and nobody is paged twice."""

import asyncio
import base64
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import nantucket
from alerting.reader import IncidentReader
from alerting.store import StoreReader
from app.processes import Talking, talking
from telemetry_bus import Earliest, FindingKind, FindingState, Intake, Topic, findings_in, open_bus
from telemetry_bus.bus import Bus
from telemetry_bus.runtime.clock import SystemClock

ROUNDS = 50
ANSWER_SECONDS = 0.05
"""How long the receiver thinks, so that kills also fall between a page's arrival and its answer."""
WINDOW_SECONDS = 0.09
"""From run.log to the receiver's answer, as measured: some 30 ms to the receiver, 50 ms until it answers."""
HEALTHY_STEPS = 5
SEED = int(os.environ.get("KILL_SEED", "20261121"))


@dataclass
class Round:
    """One job's bad step and the kill that followed it (monotonic nanoseconds)."""

    job: str
    logged_ns: int
    killed_ns: int


@contextlib.asynccontextmanager
async def running_up(config: Path) -> AsyncIterator[Talking]:
    """``nantucket up``, ready."""
    async with talking("nantucket up", ["app.cli", "up", "--config", str(config), "--json"]) as up:
        await up.line(lambda line: line.get("ready"), 30)
        yield up


async def one_round(config: Path, url: str, index: int, chance: random.Random) -> Round:
    """Start ``up``, let a job report a bad step, and kill ``up`` within the window, or (one in four) at any time."""
    async with running_up(config) as up:
        job = f"kill-{index:02d}"
        run = nantucket.init(job=job, rank=0, world_size=1, url=url)
        for step in range(HEALTHY_STEPS):
            run.log(step=step, loss=1.0, grad_norm=1.0, nonfinite=0, scope="shard")
            await asyncio.sleep(0.01)
        wait = chance.uniform(0, WINDOW_SECONDS if index % 4 else 1.0)
        logged = time.monotonic_ns()
        run.log(step=HEALTHY_STEPS, loss=float("nan"), nonfinite=3, first_nonfinite="w", scope="shard")
        await asyncio.sleep(wait)
        up.process.kill()
        killed = time.monotonic_ns()
        await up.process.wait()
    RUNS.append(run)
    return Round(job, logged, killed)


RUNS: list[Any] = []


def first_pages(receiver: Talking) -> dict[str, dict[str, Any]]:
    """The first delivery that each job's page had."""
    first: dict[str, dict[str, Any]] = {}
    for line in receiver.lines:
        if line.get("verified") and line["body"]["status"] == "firing" and line["body"]["incident"]["job"] is not None:
            first.setdefault(line["body"]["incident"]["job"], line)
    return first


@pytest.mark.timeout(400)
async def test_fifty_kills_lose_nothing_and_page_nobody_twice(tmp_path: Path, artifacts_folder: Path) -> None:
    """What was durable survives SIGKILL; a receiver that honours the id has every page exactly once."""
    chance = random.Random(SEED)
    secret = "whsec_" + base64.b64encode(chance.randbytes(24)).decode()
    command = ["app.demo.receiver", "--answer-seconds", str(ANSWER_SECONDS)]
    async with talking("the receiver", command, stdin=secret + "\n") as receiver:
        port = (await receiver.line(lambda line: "listening" in line, 30))["listening"]
        config, url = write_config(tmp_path, port, secret), f"unix://{tmp_path / 'c.sock'}"
        rounds = [await one_round(config, url, index, chance) for index in range(ROUNDS)]
        async with running_up(config):
            for run in RUNS:
                await asyncio.to_thread(run.finish)
            await receiver.line(lambda _: len(first_pages(receiver)) == ROUNDS, 60)
            await asyncio.sleep(1.0)
        within = sum(was_within(item, first_pages(receiver)[item.job]) for item in rounds)
        report(rounds, first_pages(receiver), artifacts_folder / "kills.txt")
        assert within >= ROUNDS // 2, (
            f"only {within} kills fell between run.log and the receiver's answer (seed {SEED})"
        )
        assert all(run.dropped == 0 for run in RUNS)
        ids = {line["body"]["incident"]["job"]: set[str]() for line in receiver.lines if "body" in line}
        for line in receiver.lines:
            if "body" in line and line["body"]["status"] == "firing":
                ids[line["body"]["incident"]["job"]].add(line["id"])
        assert {job: len(ids[job]) for job in first_pages(receiver)} == {item.job: 1 for item in rounds}
    await nothing_is_missing(tmp_path, [item.job for item in rounds])


def write_config(folder: Path, port: int, secret: str) -> Path:
    """A configuration with one receiver, everything in ``folder``."""
    config = folder / "nantucket.toml"
    config.write_text(
        f"state = {json.dumps(str(folder))}\n[collect]\nsimulate = 8\nsocket = {json.dumps(str(folder / 'c.sock'))}\n"
        f'[serve]\nport = 0\n[receivers.r]\nurl = "http://127.0.0.1:{port}/"\nsecret = {json.dumps(secret)}\n'
    )
    return config


def was_within(item: Round, page: dict[str, Any]) -> bool:
    """Whether the kill fell between run.log and the receiver's answer to the job's first page."""
    return bool(item.logged_ns <= item.killed_ns <= page["answered_ns"])


def report(rounds: list[Round], pages: dict[str, dict[str, Any]], path: Path) -> None:
    """Print, and keep in ``path``, when each kill fell: before or after the page arrived and was answered."""
    lines = []
    for item in rounds:
        page = pages[item.job]
        after = (item.killed_ns - item.logged_ns) / 1e6
        place = "before the page" if item.killed_ns < page["monotonic_ns"] else "before the answer"
        said = place if was_within(item, page) else "after the answer"
        lines.append(f"{item.job}: killed {after:6.1f} ms after run.log, {said}\n")
    sys.stdout.write("".join(lines))
    path.write_text("".join(lines))


async def nothing_is_missing(folder: Path, jobs: list[str]) -> None:
    """Every row once (as the ledger counts), a finding for every job, and one incident for each."""
    clock = SystemClock()
    async with open_bus((folder / "bus").as_uri(), clock) as bus:
        rows = await rows_of(bus, Topic.TRAIN)
        expected = {(job, step): 1 for job in jobs for step in range(HEALTHY_STEPS + 1)}
        assert Counter((row["job"], row["step"]) for row in rows) == expected
        found = {row["job"] for row in await rows_of(bus, Topic.FINDINGS) if row["kind"] == FindingKind.NONFINITE}
        assert found == set(jobs)
    async with StoreReader(folder / "alerts.sqlite") as store:
        incidents = await IncidentReader(store, clock).incidents(limit=1000)
    assert Counter(item["job"] for item in incidents if item["kind"] == FindingKind.NONFINITE) == dict.fromkeys(jobs, 1)


async def rows_of(bus: Bus, topic: Topic) -> list[dict[str, Any]]:
    """All fresh rows of a topic."""
    intake, rows = Intake(), []
    async with bus.subscribe([topic], Earliest()) as subscription:
        async for records in subscription:
            for record in records:
                frame = intake.take(record).frame
                if frame is not None and topic is Topic.FINDINGS:
                    rows += [
                        {"job": f.job, "kind": f.kind} for f in findings_in(frame) if f.state is FindingState.FIRING
                    ]
                elif frame is not None:
                    rows += frame.batch.select(["job", "step"]).to_pylist()
            if await subscription.caught_up():
                return rows
    return rows
