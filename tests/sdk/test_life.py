"""Phases, times, heartbeats, stacks and ends of a real job's process, as they arrive through a real listener."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from collectors.training import TrainingListener
from collectors.training_stacks import FRAMES_MAX, stack_cells, stacks_in
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.topics import Topic
from tests.sdk.recorder import Recorder, run_job, start_job
from tests.sdk.test_delivery import CREDENTIALS, VERSIONS, kill, listener_at

WAIT_SECONDS = 20.0
QUICK = "import nantucket._pulse as pulse\npulse.QUIET_SECONDS = pulse.BEAT_SECONDS = 0.2\n"


@pytest.fixture
async def started() -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Return a list for the processes of a test, none of which outlives it."""
    processes: list[asyncio.subprocess.Process] = []
    yield processes
    for process in processes:
        if process.returncode is None:
            await kill(process)


def socket_of(folder: Path) -> dict[str, str]:
    """Where the job finds the listener."""
    return {"NANTUCKET_URL": f"unix://{folder}/c.sock"}


async def events(recorder: Recorder, kind: str, number: int = 1) -> list[dict[str, Any]]:
    """Wait for so many events of a kind."""

    def found() -> list[dict[str, Any]]:
        return [
            row | {"detail": json.loads(row["detail"])} for row in recorder.rows(Topic.EVENTS) if row["kind"] == kind
        ]

    async with asyncio.timeout(WAIT_SECONDS):
        while len(found()) < number:
            await asyncio.sleep(0.02)
    return found()


PHASES = """
with nantucket.init("j", attempt="a") as run:
    for step, batch in enumerate(run.loading(range(6))):
        time.sleep(0.02)
        run.log(step=step, loss=1.0)
        run.log(step=step, accuracy=0.5)
        if step == 2:
            with run.phase("eval"):
                run.log(step=step, loss=2.0)
                time.sleep(0.3)
                with run.phase("checkpoint"):
                    pass
            run.checkpoint(step, "/ckpt/2")
            run.note("data mix changed")
    run.log(step=9, loss=1.0, step_seconds=7.0)
"""


async def test_steps_are_timed_and_phases_are_no_part_of_them(tmp_path: Path) -> None:
    """What the job did not say is filled in; the first step, and the one after a phase, have no time of their own."""
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        assert (await run_job(PHASES, socket_of(tmp_path)))[::2] == (0, "")
    rows = recorder.rows(Topic.TRAIN)
    told = [
        (row["step"], row["phase"], row["step_seconds"] is not None, row["data_seconds"] is not None) for row in rows
    ]
    steps = [(0, None, False, True), (1, None, True, True), (2, None, True, True), (2, "eval", False, False)]
    assert told == [
        *steps,
        (3, None, False, True),
        (4, None, True, True),
        (5, None, True, True),
        (9, None, True, True),
    ]
    assert rows[-1]["step_seconds"] == 7.0
    assert all(row["step_seconds"] > 0.015 for row in rows[:-1] if row["step_seconds"] is not None)
    phases = [(row["detail"]["phase"], row["detail"]["state"]) for row in await events(recorder, "phase")]
    assert phases == [("eval", "begin"), ("checkpoint", "begin"), ("checkpoint", "end"), ("eval", "end")]
    (kept,) = await events(recorder, "checkpoint_end")
    assert (kept["step"], kept["detail"]) == (2, {"path": "/ckpt/2"})
    assert [row["message"] for row in await events(recorder, "announced_change")] == ["data mix changed"]


STUCK = (
    QUICK
    + """
def next_batch():
    time.sleep(60)
run = nantucket.init("j", rank=517, attempt="a", stack_seconds=0.5)
run.log(step=4)
next_batch()
"""
)
HOLDING = (
    QUICK
    + """
import ctypes
def hold_the_lock():
    ctypes.PyDLL(None).sleep(60)  # a C function that is called with Python's lock held: no thread of Python runs
run = nantucket.init("j", rank=517, attempt="a", stack_seconds=0.5)
run.log(step=4)
time.sleep(0.3)
hold_the_lock()
"""
)


@pytest.mark.parametrize(
    ("job", "function"),
    [pytest.param(STUCK, "next_batch", id="waiting"), pytest.param(HOLDING, "hold_the_lock", id="lock")],
)
async def test_a_process_that_hangs_says_where_it_stands(
    tmp_path: Path, started: list[asyncio.subprocess.Process], job: str, function: str
) -> None:
    """Also while it holds Python's lock, when nothing of the SDK runs any more."""
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        started.append(await start_job(job, socket_of(tmp_path)))
        (stack, *_) = await events(recorder, "stack")
        assert any(frame.startswith(f"{function} (") for frame in stack["detail"]["frames"][:2])
        assert (stack["job"], stack["attempt"], stack["rank"], stack["node"]) == ("j", "a", 517, "n1")
        await kill(started[0])
        (end,) = await events(recorder, "job_end")
    assert (end["detail"], end["rank"]) == ({"status": "ended without goodbye"}, 517)


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_python_writes_a_stack_that_is_understood(
    tmp_path: Path, started: list[asyncio.subprocess.Process], version: str
) -> None:
    """What faulthandler writes differs from one to the other."""
    python = Path.home() / ".pyenv/versions" / version / "bin/python"
    if not await asyncio.to_thread(python.exists):
        pytest.skip(f"Python {version} is not at {python}")
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        started.append(await start_job(STUCK, socket_of(tmp_path), str(python)))
        (stack, *_) = await events(recorder, "stack")
    assert stack["message"].startswith("next_batch (")


async def test_heartbeats_go_on_while_the_training_thread_hangs(
    tmp_path: Path, started: list[asyncio.subprocess.Process]
) -> None:
    """They tell the last step and for how long nothing was heard; a thread that logs needs none."""
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        started.append(await start_job(STUCK, socket_of(tmp_path)))
        beats = await events(recorder, "heartbeat", 3)
    idle = [beat["detail"]["idle_seconds"] for beat in beats]
    assert idle == sorted(idle)
    assert {beat["step"] for beat in beats} == {4}


async def test_where_nobody_may_look_into_the_process_it_reads_its_own_stack(
    tmp_path: Path, started: list[asyncio.subprocess.Process]
) -> None:
    """Over a port the kernel names no process: the SDK's own thread sends what it wrote."""
    recorder = Recorder()
    listener = TrainingListener(
        recorder.publish, SystemClock(), node="n1", tcp=("127.0.0.1", 0), credentials=CREDENTIALS
    )
    async with listener:
        assert listener.tcp_address is not None
        place = {
            "NANTUCKET_URL": f"http://127.0.0.1:{listener.tcp_address[1]}",
            "NANTUCKET_TOKEN": CREDENTIALS.token("j"),
        }
        started.append(await start_job(STUCK, place))
        (stack, *_) = await events(recorder, "stack")
        await kill(started[0])
        await asyncio.sleep(0.1)
        assert [row["kind"] for row in recorder.rows(Topic.EVENTS) if row["kind"] == "job_end"] == []
    assert stack["message"].startswith("next_batch (")


GOODBYES = {
    "finish": "run = nantucket.init('j', attempt='a'); run.log(step=1); run.finish()",
    "exit": "run = nantucket.init('j', attempt='a'); run.log(step=1); sys.exit(3)",
    "fork": """
run = nantucket.init('j', attempt='a', stack_seconds=0.3)
run.log(step=1)
child = os.fork()
if child == 0:
    time.sleep(1.0)
    os._exit(0)
os.waitpid(child, 0)
run.log(step=2)
run.finish()
""",
}


@pytest.mark.parametrize("how", GOODBYES)
async def test_a_process_that_says_goodbye_ends_once(tmp_path: Path, how: str) -> None:
    """One end, its own, also where it has forked a child that ended otherwise."""
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        await run_job(GOODBYES[how], socket_of(tmp_path))
        await asyncio.sleep(0.3)
        ends = await events(recorder, "job_end")
    assert [end["detail"]["status"] for end in ends] == [{"exit": "exited"}.get(how, "finished")]


LOGGING = """
run = nantucket.init("j", attempt="a")
for step in range(400):
    run.log(step=step)
    time.sleep(0.02)
"""


async def test_a_listener_that_goes_away_ends_no_job(tmp_path: Path, started: list[asyncio.subprocess.Process]) -> None:
    """A connection that ends is no process that ends: the next listener hears from it again."""
    one, two = Recorder(), Recorder()
    async with listener_at(tmp_path / "c.sock", one):
        started.append(await start_job(LOGGING, socket_of(tmp_path)))
        await one.until(Topic.TRAIN, 5)
    async with listener_at(tmp_path / "c.sock", two):
        await two.until(Topic.TRAIN, 5)
    for recorder in (one, two):
        assert [row for row in recorder.rows(Topic.EVENTS) if row["kind"] == "job_end"] == []


async def test_a_descriptor_that_is_no_pipe_is_not_opened(tmp_path: Path) -> None:
    """What a process offers is looked at before it is touched."""
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "c.sock")
        writer.write(b"GET /v1/sdk HTTP/1.1\r\nHost: l\r\nUpgrade: nantucket-sdk/1\r\nNantucket-Job: j\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        descriptor = os.open("/dev/zero", os.O_RDONLY)
        try:
            hello = {"type": "hello", "version": 1, "boot": "594c99ed-a89f-4ea0-b464-7de201abdd59", "job": "j"}
            hello |= {"attempt": "a", "rank": 0, "stack_fd": descriptor, "thread": "0x1", "welcome": True}
            text = json.dumps(hello).encode()
            writer.write(len(text).to_bytes(4, "little") + text)
            size = int.from_bytes(await reader.readexactly(4), "little")
            welcome = json.loads(await reader.readexactly(size))
        finally:
            os.close(descriptor)
            writer.close()
    assert (welcome["type"], welcome["stacks"]) == ("welcome", False)
    assert {"heartbeat", "phase", "stack"} <= set(welcome["events"])


DUMP = """Timeout (0:00:05)!
Thread 0x00007f0000000002 [sender] (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait

Thread 0x00007f0000000001 (most recent call first):
  File "/job/data.py", line 12 in next_batch
  File "/job/train.py", line 40 in <module>
"""


def test_of_several_threads_the_one_that_trains_is_told() -> None:
    """Innermost first; without its number nothing is guessed."""
    cells = stack_cells(DUMP, "0x00007f0000000001")
    assert cells is not None
    assert json.loads(cells["detail"]) == {
        "frames": ["next_batch (/job/data.py:12)", "<module> (/job/train.py:40)"],
        "threads": 2,
    }
    assert stack_cells(DUMP, "0x00007f0000000009") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0" * 5000,
        "Thread 0x1 (most recent call first):",
        '  File "x", line 1 in f',
        'Thread 0x00007f0000000001 (most recent call first):\n  File "x", line 99999999999999 in f\n',
        "Thread 0x00007f0000000001 (most recent call first):\n" + '  File "' + "x" * 9000 + '", line 1 in f\n',
    ],
)
def test_what_is_no_dump_is_no_stack(text: str) -> None:
    """A stranger may write anything into his pipe."""
    assert stack_cells(text, "0x00007f0000000001") is None


def test_a_deep_stack_is_cut_and_its_texts_are_printable() -> None:
    """Bounded in frames and in characters."""
    frame = '  File "/a/b/c/d.py", line 1 in f\x1b[31m' + "g" * 900 + "\n"
    stacks = stacks_in("Thread 0x00007f0000000001 (most recent call first):\n" + frame * 500)
    frames = stacks["0x00007f0000000001"]
    assert len(frames) == FRAMES_MAX
    assert all(frame.isprintable() and len(frame) <= 240 for frame in frames)
