"""Files that grow, are rotated and begun anew, followed to a real collector: every entry once, in its attempt."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.follow.follower import Place
from app.processes import Talking, talking
from telemetry_bus.topics import Topic
from tests.e2e.machine import READY_SECONDS, Machine
from tests.sdk.recorder import Recorder
from tests.sdk.test_delivery import listener_at

pytestmark = pytest.mark.timeout(120)
WAIT_SECONDS = 20.0


class Collector:
    """A real listener, and ``nantucket follow`` as a process that delivers to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recorder = folder, Recorder()
        self.url = f"unix://{folder}/c.sock"

    def words(self, *words: str) -> list[str]:
        """The command."""
        return ["app.cli", "follow", "--json", "--state", str(self.folder), "--url", self.url, *words]

    async def once(self, *words: str) -> list[dict[str, Any]]:
        """Follow to the end of what is there; return what it said."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *self.words("--once", *words), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return [json.loads(line) for line in out.decode().splitlines()]

    def rows(self) -> list[tuple[str, int, float | None]]:
        """Attempt, step and loss of each row."""
        return [(row["attempt"], row["step"], row["loss"]) for row in self.recorder.rows(Topic.TRAIN)]

    async def steps(self, wanted: list[int]) -> None:
        """Wait until these steps have come, and no others."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.rows()) < len(wanted):
                await asyncio.sleep(0.05)
        assert [step for _, step, _ in self.rows()] == wanted


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    """Return a collector that listens."""
    made = Collector(tmp_path)
    async with listener_at(tmp_path / "c.sock", made.recorder):
        yield made


def write(path: Path, *steps: int, mode: str = "a") -> None:
    """Append JSON lines."""
    with path.open(mode) as file:
        file.writelines(json.dumps({"step": step, "loss": 1.0 + step}) + "\n" for step in steps)


async def following(follow: Talking) -> None:
    """Wait until it has looked at what is there."""
    await follow.line(lambda said: "watching" in said, READY_SECONDS)


async def stopped(follow: Talking) -> int:
    """Stop it as a terminal does."""
    follow.process.send_signal(signal.SIGINT)
    async with asyncio.timeout(WAIT_SECONDS):
        return await follow.process.wait()


async def test_rows_come_as_the_file_grows_and_say_whose_numbers_they_are(collector: Collector) -> None:
    """What was there before is history; no rank is ever proven by what a job prints, and no time is made up."""
    log = collector.folder / "train.jsonl"
    write(log, 1, 2)
    async with talking("follow", collector.words(str(log), "--job", "gpt")) as follow:
        await following(follow)
        write(log, 3)
        await collector.steps([3])
        write(log, 4, 5)
        await collector.steps([3, 4, 5])
        assert await stopped(follow) == 0
    for row in collector.recorder.rows(Topic.TRAIN):
        assert (row["job"], row["scope"], row["role"]) == ("gpt", "global", "follow")
        assert (row["step_seconds"], row["world_size"]) == (None, None)


async def test_rotation_truncation_and_a_file_that_is_not_there_yet(collector: Collector) -> None:
    """Renamed and made anew, with a last line in the old one; cut and written from its beginning."""
    log = collector.folder / "train.log"
    async with talking("follow", collector.words(str(log))) as follow:
        await following(follow)
        write(log, 1, 2)
        await collector.steps([1, 2])
        log.rename(collector.folder / "train.log.1")
        write(collector.folder / "train.log.1", 3)
        write(log, 4)
        await collector.steps([1, 2, 3, 4])
        write(log, 5, mode="w")
        await collector.steps([1, 2, 3, 4, 5])
        assert await stopped(follow) == 0
    assert len({attempt for attempt, _, _ in collector.rows()}) == 1


async def test_a_restart_of_the_follower_sends_nothing_twice_and_misses_nothing(collector: Collector) -> None:
    """Also what was written while it was down, under the same attempt; a kill repeats at most what had no answer."""
    log = collector.folder / "train.jsonl"
    write(log, 1, 2, 3)
    await collector.once(str(log))
    await collector.steps([1, 2, 3])
    write(log, 4, 5)
    said = await collector.once(str(log))
    await collector.steps([1, 2, 3, 4, 5])
    assert said[-1]["entries"] == 2
    assert len({attempt for attempt, _, _ in collector.rows()}) == 1


async def test_steps_that_go_back_are_another_attempt(collector: Collector) -> None:
    """The job was resumed from a checkpoint in the same file; so it is when it is read again."""
    log = collector.folder / "train.jsonl"
    write(log, 1, 2, 3, 2, 3, 4)
    await collector.once(str(log), "--attempt", "a")
    write(log, 5, 1)
    await collector.once(str(log), "--attempt", "ignored, it is known")
    await collector.steps([1, 2, 3, 2, 3, 4, 5, 1])
    assert [attempt for attempt, _, _ in collector.rows()] == ["a"] * 3 + ["a.1"] * 4 + ["a.2"]


async def test_each_checkpoint_of_a_trainer_adds_what_is_new(collector: Collector) -> None:
    """Every one of them holds all that came before."""
    for last in (2, 4):
        place = collector.folder / "out" / f"checkpoint-{last}" / "trainer_state.json"
        place.parent.mkdir(parents=True)
        history = [{"step": step, "loss": 1.0} for step in range(1, last + 1)]
        place.write_text(json.dumps({"log_history": history}))
        os.utime(place, (1_000_000_000 + last, place.stat().st_mtime))
        await collector.once(str(collector.folder / "out"))
    await collector.steps([1, 2, 3, 4])


async def test_a_folder_is_looked_through_and_new_files_are_found(collector: Collector) -> None:
    """What fits by its name; a file that appears later is new from its first line."""
    folder = collector.folder / "runs" / "gpt"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(b"\0" * 100)
    async with talking("follow", collector.words(str(collector.folder / "runs"))) as follow:
        await following(follow)
        write(folder / "late.jsonl", 1, 2)
        await collector.steps([1, 2])
        assert await stopped(follow) == 0
    assert {row["job"] for row in collector.recorder.rows(Topic.TRAIN)} == {"gpt-late"}


async def test_a_collector_that_is_away_costs_nothing(tmp_path: Path) -> None:
    """Rows wait in the SDK's queue; what never arrived is sent by the next follower."""
    made = Collector(tmp_path)
    log = tmp_path / "train.jsonl"
    write(log, 1, 2)
    await made.once(str(log))
    write(log, 3)
    async with listener_at(tmp_path / "c.sock", made.recorder):
        await made.once(str(log))
    assert [step for _, step, _ in made.rows()] == [1, 2, 3]


async def test_a_job_that_says_that_it_is_done_has_ended(collector: Collector) -> None:
    """Its last iteration ends it, so that nobody is paged because no more come; a later start begins anew."""
    log = collector.folder / "megatron.log"
    line = " iteration {}/ 30 | lm loss: 2.5E+00 | grad norm: 0.7 | number of skipped iterations: 0 |\n"
    async with talking("follow", collector.words(str(log))) as follow:
        await following(follow)
        log.write_text("".join(line.format(step) for step in (10, 20, 30)))
        await collector.steps([10, 20, 30])
        async with asyncio.timeout(WAIT_SECONDS):
            while [row["kind"] for row in collector.recorder.rows(Topic.EVENTS)] != ["job_start", "job_end"]:
                await asyncio.sleep(0.05)
        with log.open("a") as file:
            file.write(line.format(10))
        await collector.steps([10, 20, 30, 10])
        assert await stopped(follow) == 0
    assert len({attempt for attempt, _, _ in collector.rows()}) == 2


def test_places_are_in_order() -> None:
    """Attempt, step, and entry within the step."""
    places = [Place()]
    for step in (1, 1, 2, 1, 1):
        places.append(places[-1].after(step))
    assert [(place.attempt, place.step, place.entry) for place in places[1:]] == [
        (0, 1, 0),
        (0, 1, 1),
        (0, 2, 0),
        (1, 1, 0),
        (1, 1, 1),
    ]
    assert all(one <= other for one, other in itertools.pairwise(places))


async def test_a_nan_in_a_log_is_paged_and_accuses_no_rank(machine: Machine) -> None:
    """From a Megatron-LM log that grows to the page."""
    log = machine.folder / "megatron.log"
    line = " iteration {:8d}/ 1000 | elapsed time per iteration (ms): 50.0 | lm loss: 2.5E+00 | grad norm: {} | number of skipped iterations: 0 |\n"  # noqa: E501
    await machine.start("up")
    url = f"unix://{machine.folder}/collector.sock"
    words = ["app.cli", "follow", "--json", "--state", str(machine.folder), "--url", url, "--job", "gpt", str(log)]
    async with talking("follow", words) as follow:
        await following(follow)
        with log.open("a") as file:
            for step in range(10, 200, 10):
                file.write(line.format(step, "nan" if step == 190 else "0.7"))
                file.flush()
        await follow.line(lambda said: said.get("job") == "gpt", READY_SECONDS)
        incident = await machine.paged("gpt")
    assert (incident["onset_step"], incident["kind"], incident["where"]["rank"]) == (190, "nonfinite", None)
