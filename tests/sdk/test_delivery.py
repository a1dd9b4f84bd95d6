"""From ``run.log`` in a job's process to frames: what arrives, whatever becomes of the collector meanwhile."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from collectors.credentials import JobCredentials
from collectors.training import TrainingListener
from telemetry_bus.bus import Earliest, open_bus
from telemetry_bus.intake import Intake
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.topics import Topic
from tests.sdk.recorder import ROOT, Recorder, run_job, start_job

CREDENTIALS = JobCredentials(Secret(bytes(range(32))))
VERSIONS = ("3.9.18", "3.10.13", "3.12.1", "3.13.0")
"""The oldest Python that the SDK runs on, and the newest; the tests' own is among them anyway."""


def listener_at(path: Path, recorder: Recorder, **options: Any) -> TrainingListener:
    """Return a listener on a socket."""
    return TrainingListener(recorder.publish, SystemClock(), node="n1", unix_path=path, **options)


@pytest.fixture
async def started() -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Return a list for the processes of a test, none of which outlives it."""
    processes: list[asyncio.subprocess.Process] = []
    yield processes
    for process in processes:
        if process.returncode is None:
            await kill(process)


FOUR_ANSWERS = """
with nantucket.init("j", rank=2, attempt="a", region="eu", dp=1) as run:
    run.log(step=0)
    run.log(step=1, loss=None, reward=None)
    run.log(step=2, loss=0.0, nonfinite=0, reward=0.0)
    run.log(step=3, loss=float("nan"), nonfinite=7, first_nonfinite="layers.3.weight", reward=float("nan"))
    run.log(step=4, loss=float("inf"), grad_norm=float("-inf"))
    run.log({"reward/mean": 1.5}, step=5)
print(run.dropped, run.counts()["acknowledged"])
"""


@pytest.mark.parametrize("version", ["this one", *VERSIONS])
async def test_absent_zero_nan_and_infinity_arrive_as_four_things(tmp_path: Path, version: str) -> None:
    """A value that was not given is null, zero is zero, and what arithmetic made is what it was, on every Python."""
    python = sys.executable if version == "this one" else str(Path.home() / ".pyenv/versions" / version / "bin/python")
    if not await asyncio.to_thread(Path(python).exists):
        pytest.skip(f"Python {version} is not at {python}")
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        status, out, err = await run_job(FOUR_ANSWERS, {"NANTUCKET_URL": f"unix://{tmp_path}/c.sock"}, python)
    assert (status, err) == (0, "")
    assert out == "0 10\n"
    train = recorder.rows(Topic.TRAIN)
    assert [row["step"] for row in train] == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in train[:3]] == [None, None, 0.0]
    assert math.isnan(train[3]["loss"])
    assert (train[4]["loss"], train[4]["grad_norm"]) == (math.inf, -math.inf)
    assert [row["nonfinite"] for row in train] == [None, None, 0, 7, None]
    assert train[3]["first_nonfinite"] == "layers.3.weight"
    metrics = [(row["step"], row["name"], str(row["value"])) for row in recorder.rows(Topic.METRICS)]
    assert metrics == [(2, "reward", "0.0"), (3, "reward", "nan"), (5, "reward/mean", "1.5")]
    events = [(row["kind"], row["rank"], row["simulated"]) for row in recorder.rows(Topic.EVENTS)]
    assert events == [("job_start", 2, False), ("job_end", 2, False)]
    assert {(row["attempt"], row["rank"], row["dp"], row["region"], row["node"]) for row in train} == {
        ("a", 2, 1, "eu", "n1")
    }


KILLED = """
run = nantucket.init("j", attempt="a")
for step in range(900):
    run.log(step=step, loss=1.0, reward=step)
    time.sleep(0.01)
run.finish(20)
print(run.dropped, run.counts()["rows"], run.counts()["acknowledged"])
"""


async def start_collector(folder: Path, started: list[asyncio.subprocess.Process]) -> asyncio.subprocess.Process:
    """Start the collector's process and wait until it listens."""
    program = ("-m", "tests.sdk.collector_process", str(folder / "c.sock"), str(folder / "bus"))
    process = await asyncio.create_subprocess_exec(sys.executable, *program, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    started.append(process)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"listening\n"
    return process


async def kill(process: asyncio.subprocess.Process) -> None:
    """Kill a process as a machine's out-of-memory killer does."""
    process.kill()
    await process.communicate()


@pytest.mark.timeout(120)
async def test_a_collector_that_is_killed_again_and_again_costs_no_row(
    tmp_path: Path, started: list[asyncio.subprocess.Process]
) -> None:
    """A job logs 100 steps a second, its collector is killed and away for a second: no row is missing or doubled."""
    await asyncio.to_thread((tmp_path / "bus").mkdir)
    collector = await start_collector(tmp_path, started)
    job = await start_job(KILLED, {"NANTUCKET_URL": f"unix://{tmp_path}/c.sock"})
    started.append(job)
    chance = random.Random(7)
    for _ in range(5):
        await asyncio.sleep(chance.uniform(0.1, 0.8))
        await kill(collector)
        await asyncio.sleep(chance.uniform(0.0, 1.5))
        collector = await start_collector(tmp_path, started)
    out, err = await job.communicate()
    await kill(collector)
    # On a loaded machine a collector may take more than 3 s to come back, and that is said; nothing else is.
    said = [line for line in err.decode().splitlines() if "no collector at" not in line]
    assert (job.returncode, said) == (0, [])
    assert out == b"0 1802 1802\n"
    intake, found = await read_bus(tmp_path / "bus", 900)
    assert found == list(range(900))
    assert (intake.ledger.outstanding, intake.ledger.lost_total) == (0, 0)
    assert intake.clock_offsets == {}
    assert sum(intake.refused.values()) == 0


async def read_bus(folder: Path, wanted: int) -> tuple[Intake, list[int]]:
    """Read the bus from the start as every reader does; return the train rows' steps."""
    intake = Intake()
    found: list[int] = []
    topics = [Topic.TRAIN, Topic.METRICS, Topic.EVENTS]
    async with (
        open_bus(f"file://{folder}", SystemClock()) as bus,
        bus.subscribe(topics, Earliest()) as subscription,
    ):
        async for records in subscription:
            for record in records:
                taken = intake.take(record)
                if taken.frame is not None and record.topic is Topic.TRAIN:
                    found += taken.frame.numbers("step")[0].tolist()
            if len(found) >= wanted and await subscription.caught_up():
                return intake, found
    raise AssertionError("the subscription ended")


OVERFLOW = """
run = nantucket.init("j", attempt="a")
for step in range(40_000):
    run.log(step=step, loss=float("nan") if step == 5 else 1.0)
    if step % 1000 == 0:
        time.sleep(0.05)
while run.counts()["rows"] + run.counts()["dropped"] < 40_000:
    time.sleep(0.01)
print("full", flush=True)
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.01)
run.finish(30)
print(run.dropped)
"""


@pytest.mark.timeout(120)
async def test_what_the_queues_bound_forces_out_is_counted_and_said_once(
    tmp_path: Path, started: list[asyncio.subprocess.Process]
) -> None:
    """Without a collector the oldest rows go, but not the bad one; the count reaches the collector that comes back."""
    job = await start_job(OVERFLOW, {"NANTUCKET_URL": f"unix://{tmp_path}/c.sock", "GO": str(tmp_path / "go")})
    started.append(job)
    assert job.stdout is not None
    assert await job.stdout.readline() == b"full\n"
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder) as listener:
        await recorder.until(Topic.TRAIN, 16_384)
        await asyncio.to_thread((tmp_path / "go").touch)
        out, err = await job.communicate()
    dropped = int(out)
    steps = [row["step"] for row in recorder.rows(Topic.TRAIN)]
    assert len(steps) + dropped == 40_000
    assert dropped > 20_000
    assert steps[0] == 5
    assert math.isnan(recorder.rows(Topic.TRAIN)[0]["loss"])
    assert steps[1:] == sorted(set(steps[1:]))
    assert steps[-1] == 39_999
    assert err.decode().count("is full") == 1
    told = [json.loads(row["detail"]) for row in recorder.rows(Topic.EVENTS) if row["kind"] == "rows_dropped"]
    assert sum(detail["rows"] for detail in told) == dropped
    assert listener.counters.rows_dropped_by_sdks == dropped
    assert recorder.ledger().outstanding == 0


async def test_without_a_collector_the_job_trains_on_and_ends(tmp_path: Path) -> None:
    """A job whose collector never comes ends with its own status, and its log has one line about the rows."""
    code = "run = nantucket.init('j')\nfor step in range(50): run.log(step=step, loss=1.0)\nsys.exit(3)"
    status, _, err = await run_job(code, {"NANTUCKET_URL": f"unix://{tmp_path}/none.sock"})
    assert status == 3
    assert err.splitlines() == [
        "WARNING:nantucket:nantucket: 50 rows were not delivered: no collector took them in time"
    ]


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        pytest.param("run.finish(); run.finish()", "finished", id="finish"),
        pytest.param("pass", "exited", id="the end of the program"),
        pytest.param("run.__exit__(ValueError, ValueError(), None)", "failed: ValueError", id="an exception in with"),
    ],
)
async def test_how_a_job_ended_is_told(tmp_path: Path, ending: str, status: str) -> None:
    """The last event of a process says how it ended, and everything that was logged has been delivered before."""
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        code = f"run = nantucket.init('j')\nrun.log(step=1)\n{ending}\n"
        found, _, err = await run_job(code, {"NANTUCKET_URL": f"unix://{tmp_path}/c.sock"})
    assert (found, err) == (0, "")
    assert len(recorder.rows(Topic.TRAIN)) == 1
    assert [topic for topic, _ in recorder.frames][-1] is Topic.EVENTS, "the end of a job overtook its last step"
    last = recorder.rows(Topic.EVENTS)[-1]
    assert (last["kind"], json.loads(last["detail"])) == ("job_end", {"status": status, "rows_dropped": 0})


FORK = """
run = nantucket.init("j", attempt="a")
run.log(step=1)
child = os.fork()
if child == 0:
    run.log(step=2)
    run.log(step=3)
    print(run.dropped, flush=True)
    sys.exit(0)
os.waitpid(child, 0)
run.log(step=4)
run.finish()
"""


async def test_a_forked_child_reports_nothing_and_says_so_once(tmp_path: Path) -> None:
    """A data loader's child neither sends the parent's rows again nor ends its connection; the parent goes on."""
    recorder = Recorder()
    async with listener_at(tmp_path / "c.sock", recorder):
        environment = {"NANTUCKET_URL": f"unix://{tmp_path}/c.sock", "PYTHONWARNINGS": "ignore"}
        status, out, err = await run_job(FORK, environment)
    assert (status, out) == (0, "2\n")
    assert err.count("forked child is not reported") == 1
    assert [row["step"] for row in recorder.rows(Topic.TRAIN)] == [1, 4]
    assert recorder.ledger().duplicate_total == 0


async def test_a_wrong_token_is_said_once_and_shown_nowhere(tmp_path: Path) -> None:
    """A job with another job's token trains on; its log says what is wrong, and no log or repr shows the token."""
    token = CREDENTIALS.token("other")
    code = "run = nantucket.init('j')\nrun.log(step=1)\nprint(run, vars(run), vars(run._sender))\nrun.finish(0.3)\n"
    async with listener_at(tmp_path / "c.sock", Recorder(), credentials=CREDENTIALS):
        environment = {"NANTUCKET_URL": f"unix://{tmp_path}/c.sock", "NANTUCKET_TOKEN": token}
        status, out, err = await run_job(code, environment)
    assert status == 0
    assert err.count("the collector refused this job (HTTP 403): the token is not that of job j") == 1
    assert token not in out + err
    assert "Secret(***)" in out


async def test_a_token_may_be_in_a_file(tmp_path: Path) -> None:
    """As a secret is mounted, with a line's end behind it; a file that is not there is said, and no token is sent."""
    recorder = Recorder()
    await asyncio.to_thread((tmp_path / "token").write_text, CREDENTIALS.token("j") + "\n")
    code = "run = nantucket.init('j')\nrun.log(step=1)\nrun.finish(2)\nprint(run.dropped)\n"
    listening = {"credentials": CREDENTIALS, "require_token": True}
    async with listener_at(tmp_path / "c.sock", recorder, **listening):
        place = {"NANTUCKET_URL": f"unix://{tmp_path}/c.sock"}
        taken = await run_job(code, place | {"NANTUCKET_TOKEN_FILE": str(tmp_path / "token")})
        _, _, err = await run_job(code, place | {"NANTUCKET_TOKEN_FILE": str(tmp_path / "nothing")})
    assert taken == (0, "0\n", "")
    assert err.count("NANTUCKET_TOKEN_FILE cannot be read: No such file or directory") == 1
    assert len(recorder.rows(Topic.TRAIN)) == 1


async def test_on_a_port_the_jobs_token_lets_it_in(tmp_path: Path) -> None:
    """The same protocol over a loopback port, with the job's credential."""
    recorder = Recorder()
    listener = TrainingListener(
        recorder.publish, SystemClock(), node="n1", tcp=("127.0.0.1", 0), credentials=CREDENTIALS
    )
    async with listener:
        assert listener.tcp_address is not None
        environment = {
            "NANTUCKET_URL": f"http://127.0.0.1:{listener.tcp_address[1]}",
            "NANTUCKET_TOKEN": CREDENTIALS.token("j"),
        }
        status, _, err = await run_job("with nantucket.init('j') as run: run.log(step=1)", environment)
    assert (status, err) == (0, "")
    assert len(recorder.rows(Topic.TRAIN)) == 1
