"""The commands as somebody types them: exit statuses, what is printed where, and what is told about each fault."""

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from app.bench.fake_driver.library import FakeDriver, compile_fake
from app.cli import app
from app.failures import explain, fault_of
from app.processes import talking
from app.settings import SettingsError
from collectors.spool import SpoolConfig
from telemetry_bus.embedded import EmbeddedBus
from telemetry_bus.embedded.store import PAGE_BYTES
from telemetry_bus.errors import BusClosed, BusUnavailable
from telemetry_bus.metric_names import GPU_METRIC_NAMES
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.schemas import SCHEMAS
from telemetry_bus.topics import Topic
from tests.app.commands import REPOSITORY, configured, in_this_process, nantucket
from tests.fakes.sysfs import DOWN, Sysfs
from tests.fakes.webhook_server import SECRET, Answer, WebhookServer

READY_SECONDS = 50.0
CHECKS = ["state", "bus", "spool", "store", "nvml", "simulated", "training socket", "receivers", "clock"]
IDENTITY = ("schema", "node", "gpu", "uuid")


def all_commands() -> list[list[str]]:
    """Every command and group of commands."""
    found, pending = list[list[str]](), [([""][:0], get_command(app))]
    while pending:
        words, command = pending.pop()
        found.append(words)
        pending += [([*words, name], below) for name, below in getattr(command, "commands", {}).items()]
    return found


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_every_command_and_option_says_what_it_does(words: list[str]) -> None:
    """`--help` of each command has a sentence about it, and one about each of its options."""
    command: Any = get_command(app)
    for word in words:
        command = command.commands[word]
    said = CliRunner().invoke(app, [*words, "--help"])
    assert said.exit_code == 0
    assert command.help
    assert command.help.split()[0] in said.stdout
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


def closed_port() -> str:
    """An address on which nobody listens."""
    with WebhookServer() as server:
        return server.url


async def test_doctor_finds_nothing_wrong_on_a_fresh_machine_and_changes_nothing(tmp_path: Path) -> None:
    """A line for each check, each `ok` or a `note`; status 0; the state folder is not even made."""
    ended = await nantucket("doctor", "--json", "--state", tmp_path / "state", NANTUCKET_COLLECT__SOURCE="simulated")
    assert ended.status == 0, ended
    assert [row["check"] for row in ended.rows] == CHECKS
    assert {row["verdict"] for row in ended.rows if row["check"] != "state"} <= {"ok", "note"}
    assert all(set(row) == {"check", "verdict", "found", "remedy"} and row["found"] for row in ended.rows)
    assert not (tmp_path / "state").exists()


async def test_doctor_names_every_fault_and_what_to_do(tmp_path: Path) -> None:
    """A damaged log, a damaged store, a file in the socket's place and a receiver that is away: four faults, each with
    a remedy, and status 1."""
    state = tmp_path / "state"
    (state / "bus").mkdir(parents=True)
    (state / "bus" / "log.sqlite").write_bytes(b"not a database at all" * 100)
    (state / "alerts.sqlite").write_bytes(b"not a database either" * 100)
    (state / "collector.sock").touch()
    config = configured(tmp_path, {"oncall": closed_port()})
    ended = await nantucket("doctor", "--json", "--config", config)
    faults = {row["check"]: row for row in ended.rows if row["verdict"] == "fault"}
    assert ended.status == 1
    assert set(faults) - {"state"} == {"bus", "store", "training socket", "receivers"}
    assert all(row["remedy"] for row in faults.values())
    assert "cannot be read as a log" in faults["bus"]["found"]
    assert "alerts.sqlite" in faults["store"]["found"]
    assert "is not a socket" in faults["training socket"]["found"]
    assert "oncall" in faults["receivers"]["found"]
    assert SECRET not in "\n".join(ended.lines) + ended.error


async def test_doctor_says_what_waits_in_the_spool_and_leaves_it_there(tmp_path: Path) -> None:
    """A note with frames, bytes and age while a collector has it, and `ok` where nothing waits."""
    state, clock = tmp_path / "state", SystemClock()
    async with SpoolConfig(state / "spool").build(clock) as spool:
        for _ in range(3):
            await spool.append(Topic.GPU, b"x", key="n", rows=1, simulated=True, stamped=spool.moment())
        ended = await nantucket("doctor", "--json", "--state", state)
        (row,) = [row for row in ended.rows if row["check"] == "spool"]
        assert (row["verdict"], "3 frames" in row["found"]) == ("note", True)
        assert "the oldest for" in row["found"]
        assert len(await spool.read()) == 3
        await spool.settle(await spool.read())
    ended = await nantucket("doctor", "--json", "--state", state)
    (row,) = [row for row in ended.rows if row["check"] == "spool"]
    assert (row["verdict"], "nothing waits" in row["found"]) == ("ok", True)


async def test_doctor_finds_damage_inside_a_log_that_opens(tmp_path: Path) -> None:
    """A page in the middle of the file is overwritten: the log still opens and has an end, and is no good."""
    folder = tmp_path / "bus"
    async with EmbeddedBus(folder, SystemClock()) as bus:
        await bus.publish(Topic.TRAIN, [os.urandom(1000) for _ in range(1000)])
    path = folder / "log.sqlite"
    good = path.read_bytes()
    path.write_bytes(good[: 30 * PAGE_BYTES] + b"\xff" * PAGE_BYTES + good[31 * PAGE_BYTES :])
    ended = await nantucket("doctor", "--json", "--state", tmp_path / "state", "--bus", folder.as_uri())
    (bus_row,) = [row for row in ended.rows if row["check"] == "bus"]
    assert ended.status == 1
    assert bus_row["verdict"] == "fault"
    assert "log.sqlite" in bus_row["found"]


async def test_who_only_reads_makes_no_log(tmp_path: Path) -> None:
    """A mistyped bus is said by `tail` and by `doctor`, with status 1; neither makes the folder and waits in it."""
    folder = tmp_path / "typo" / "bus"
    tailed = await nantucket("tail", "--bus", folder.as_uri())
    assert (tailed.status, tailed.lines) == (1, [])
    assert f"{folder}/log.sqlite is not there" in tailed.error
    looked = await nantucket("doctor", "--json", "--state", tmp_path / "state", "--bus", folder.as_uri())
    assert looked.status == 1
    assert {row["check"]: row["verdict"] for row in looked.rows}["bus"] == "fault"
    assert not folder.parent.exists()


async def test_doctor_says_that_a_state_folder_cannot_be(tmp_path: Path) -> None:
    """A file where a folder should be is found before anything is started."""
    (tmp_path / "file").touch()
    ended = await nantucket("doctor", "--state", tmp_path / "file" / "state")
    assert ended.status == 1
    assert any(line.startswith("FAULT state: ") and line.endswith("is not a folder") for line in ended.lines)


def test_doctor_says_that_a_state_folder_is_not_writable() -> None:
    """A folder of somebody else is a fault, with the way out."""
    script = (
        "import os, sys, app.doctor, telemetry_bus.embedded, encodings.idna, rich.console\n"
        "from app.settings import load\nimport asyncio\n"
        "os.geteuid() or (os.setgid(65534), os.setuid(65534))\n"
        "sys.exit(asyncio.run(app.doctor.doctor(load(None, {'state': sys.argv[1]}), as_json=True)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "/proc/1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stdout, done.stderr
    rows = {row["check"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 1
    assert rows["state"]["verdict"] == "fault"
    assert rows["state"]["found"] == "/proc/1 is not writable by this user"
    assert "--state" in rows["state"]["remedy"]


@pytest.mark.timeout(120)
async def test_on_a_machine_that_runs_doctor_is_content_and_tail_shows_the_stream(tmp_path: Path) -> None:
    """Beside `nantucket up`: no check finds a fault; `tail` prints JSON rows and ends with 130 when interrupted; a pipe
    that is closed ends it without a word."""
    with WebhookServer() as server:
        config = configured(tmp_path, {"oncall": server.url}, ["[collect]", "simulate = 8", "[serve]", "port = 0"])
        async with talking("up", ["app.cli", "up", "--config", str(config), "--json"]) as up:
            await up.line(lambda line: line.get("ready"), READY_SECONDS)
            ended = await nantucket("doctor", "--json", "--config", config)
            verdicts = {row["check"]: row["verdict"] for row in ended.rows}
            assert {verdicts[check] for check in ("bus", "store", "training socket", "receivers")} == {"ok"}
            tail = ["app.cli", "tail", "telemetry.gpu", "--since", "60", "--json", "--config", str(config)]
            async with talking("tail", tail) as tailing:
                row = await tailing.line(lambda line: line["topic"] == "telemetry.gpu", READY_SECONDS)
                assert row["simulated"] is True
                assert row["time"].endswith("Z")
                assert set(row) <= {"topic", "offset", *SCHEMAS["gpu/1"].names}
                assert None not in row.values()
                tailing.process.send_signal(signal.SIGINT)
                assert await tailing.process.wait() == 130
                assert tailing.stderr == []
            piped = f"{sys.executable} -m app.cli tail --since 60 --config {config} | head -n 1"
            shell = await asyncio.create_subprocess_shell(
                piped, cwd=REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            async with asyncio.timeout(READY_SECONDS):
                out, error = await shell.communicate()
            assert (out.count(b"\n"), error) == (1, b"")


@pytest.mark.parametrize(
    ("receiver", "status", "says"),
    [("oncall", 0, "took the test page"), ("strict", 1, "401"), ("away", 1, "away"), ("nobody", 2, "nobody")],
)
def test_a_test_page_tells_by_its_exit_status_whether_it_arrived(
    tmp_path: Path, receiver: str, status: int, says: str
) -> None:
    """0: taken. 1: refused, or nobody there. 2: no such receiver, and the names of those that there are."""
    with WebhookServer() as server, WebhookServer(Answer(401)) as strict:
        config = configured(tmp_path, {"oncall": server.url, "strict": strict.url, "away": closed_port()})
        ended = in_this_process("alerts", "test", receiver, "--config", config)
        assert ended.status == status, ended
        assert says in "\n".join(ended.lines) + ended.error
        assert [body["incident"]["kind"] for body in server.taken] == (["test"] if receiver == "oncall" else [])


def test_a_test_page_as_json_is_one_line(tmp_path: Path) -> None:
    """A script reads whether it was taken, with which status, and how long it took."""
    with WebhookServer(Answer(503)) as server:
        ended = in_this_process("alerts", "test", "r", "--json", "--config", configured(tmp_path, {"r": server.url}))
    (row,) = ended.rows
    assert (ended.status, row["ok"], row["receiver"], row["status"]) == (1, False, "r", 503)
    assert set(row) == {"ok", "receiver", "status", "seconds", "message"}


def test_a_jobs_credential_is_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    """One line on standard output, the same for the same job and state, another for another job."""
    first, again, other = [in_this_process("job", "token", job, "--state", tmp_path).lines for job in ("a", "a", "b")]
    assert len(first) == 1
    assert first == again != other


@pytest.mark.parametrize("name", ["bad name!", "", "-x", "a" * 97, "ä"])
def test_no_credential_is_made_for_a_name_that_no_job_can_have(tmp_path: Path, name: str) -> None:
    """The SDK would have to change the name, and the credential would be another job's: status 2, and the rule."""
    with pytest.raises(SettingsError, match="expected 1 to 96 letters"):
        in_this_process("job", "token", "--state", tmp_path, "--", name)


def test_collect_once_prints_every_row_with_the_keys_of_its_schema(tmp_path: Path) -> None:
    """Simulated GPUs, a line each, marked as simulated, absent values as null."""
    ended = in_this_process(
        "collect", "--once", "--json", "--simulate", "3", "--source", "simulated", "--state", tmp_path
    )
    assert ended.status == 0, ended
    gpus = [row for row in ended.rows if row["schema"] == "gpu/1"]
    assert [row["gpu"] for row in gpus] == [0, 1, 2]
    assert all(set(row) == {"schema", *SCHEMAS[row["schema"]].names} for row in ended.rows)
    assert all(tuple(row)[:4] == IDENTITY and row["simulated"] is True for row in gpus)
    assert abs(gpus[0]["time"] - SystemClock().now()) < 3600


async def test_collect_once_reads_the_driver_of_this_machine(tmp_path: Path) -> None:
    """Through the real pynvml: the driver's numbers in our units, what it does not know as null."""
    driver = FakeDriver(compile_fake(tmp_path), tmp_path / "answers")
    driver.say("temperature", "!3", gpu=1)
    ended = await nantucket(
        "collect", "--once", "--json", "--source", "nvml", "--state", tmp_path, **driver.environment
    )
    assert ended.status == 0, ended
    gpus = [row for row in ended.rows if row["schema"] == "gpu/1"]
    assert [row["uuid"] for row in gpus] == ["GPU-0", "GPU-1"]
    assert [row["power_watts"] for row in gpus] == [691.5, 691.5]
    assert [row["temperature_celsius"] for row in gpus] == [61.0, None]
    assert {row["simulated"] for row in gpus} == {False}
    assert set(GPU_METRIC_NAMES) <= set(gpus[0])


async def test_where_there_is_nothing_to_collect_the_command_says_so(tmp_path: Path) -> None:
    """Without a driver and without simulated GPUs, status 1 and a hint on standard error, standard output empty."""
    words = ["collect", "--once", "--json", "--source", "nvml", "--state", str(tmp_path)]
    ended = await nantucket(*words, LD_LIBRARY_PATH=str(tmp_path))
    if ended.status == 0:
        pytest.skip("this machine has an NVIDIA driver")
    assert (ended.status, ended.lines) == (1, [])
    assert ended.error.strip()


@pytest.mark.timeout(120)
async def test_the_page_benchmark_prints_one_object_of_the_contracts_shape() -> None:
    """Five bad steps: every figure is there, nothing is lost or doubled, and the percentiles are in order."""
    ended = await nantucket("bench", "page", "--events", "5", "--gpus", "8", "--seconds", "2", "--json")
    (result,) = ended.rows
    assert ended.status == 0, ended
    assert set(result) == {
        "bench", "seconds", "cpu_seconds", "peak_rss_mib", "machine", "events", "gpus", "p50_ms", "p99_ms", "max_ms",
        "lost", "duplicated",
    }  # fmt: skip
    assert set(result["machine"]) == {"cores", "memory_gib", "cpu"}
    assert (result["bench"], result["events"], result["gpus"]) == ("page", 5, 8)
    assert (result["lost"], result["duplicated"]) == (0, 0)
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["max_ms"] < math.inf
    assert result["cpu_seconds"] > 0


def test_when_one_part_fails_only_what_went_wrong_is_said() -> None:
    """The groups around it and the closed bus that followed are no news; a fault of the program is shown itself."""
    useful, closed = BusUnavailable("file:///b", "append", OSError("disk full")), BusClosed("file:///b", "read")
    nested = BaseExceptionGroup("outer", [closed, BaseExceptionGroup("inner", [useful, closed])])
    assert explain(nested) == (1, str(useful))
    assert explain(BaseExceptionGroup("outer", [closed])) == (1, str(closed))
    fault = KeyError("our own")
    broken = BaseExceptionGroup("outer", [closed, BaseExceptionGroup("inner", [fault])])
    assert explain(broken) is None
    assert fault_of(broken) is fault


async def test_doctor_says_of_each_source_what_it_reads_and_what_it_could_not_and_why(tmp_path: Path) -> None:
    """A log that is not there is a fault where it was named; a link that is down is a note."""
    sysfs = Sysfs(tmp_path / "sys")
    sysfs.link(sysfs.infiniband("mlx5_0"), DOWN)
    sysfs.ethernet("eth0")
    ended = await nantucket(
        "doctor", "--json", "--state", tmp_path / "state", NANTUCKET_COLLECT__SOURCE="kernel_log,network",
        NANTUCKET_COLLECT__KERNEL_LOG=str(tmp_path / "absent"), NANTUCKET_COLLECT__SYSFS=str(sysfs.root),
    )  # fmt: skip
    rows = {row["check"]: row for row in ended.rows}
    assert ended.status == 1
    assert rows["kernel_log"]["verdict"] == "fault"
    assert "mount the host's /dev/kmsg" in rows["kernel_log"]["found"]
    assert rows["network"]["verdict"] == "note"
    assert "2 link rows" in rows["network"]["found"]
    assert "no link: mlx5_0/1" in rows["network"]["found"]


async def test_collecting_once_prints_links_and_names_what_cannot_be_read(tmp_path: Path) -> None:
    """A person sees what this node would send, and on standard error what is missing."""
    sysfs = Sysfs(tmp_path / "sys")
    sysfs.infiniband("mlx5_0")
    ended = await nantucket(
        "collect", "--once", "--json", "--state", tmp_path / "state", "--source", "network",
        NANTUCKET_COLLECT__SYSFS=str(sysfs.root),
    )  # fmt: skip
    (row,) = ended.rows
    assert (row["schema"], row["device"], row["port"], row["rate_gigabits_per_second"]) == (
        "link/1",
        "mlx5_0",
        1,
        400.0,
    )
    assert row["gpu"] is None


async def test_a_collector_whose_named_source_cannot_be_opened_says_what_to_do(tmp_path: Path) -> None:
    """Nobody believes to be watched who is not."""
    ended = await nantucket(
        "collect", "--once", "--state", tmp_path / "state", "--source", "kernel_log",
        NANTUCKET_COLLECT__KERNEL_LOG=str(tmp_path / "absent"),
    )  # fmt: skip
    assert ended.status == 1
    assert "mount the host's /dev/kmsg" in " ".join(ended.lines)
