"""The command line: ``nantucket COMMAND``. It parses, and hands over; what commands do stands in files of their own.

Exit status: 0 done; 1 it failed; 2 wrong usage or configuration; 130 interrupted.
"""

import asyncio
import logging
import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli_bench import bench
from app.command import Json, finite, run_command
from app.output import console, print_json
from app.settings import Settings, SettingsError, load
from telemetry_bus.runtime.clock import SystemClock
from telemetry_bus.topics import TELEMETRY, Topic

# Commands import their roles where they run: `nantucket --help` need not load Arrow, faust and uvicorn.
# ruff: noqa: PLC0415

app = typer.Typer(
    help="Watch a GPU training fleet: every GPU, every step, and a page within a second of the first bad one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
alerts = typer.Typer(help="Receivers of pages.", no_args_is_help=True, rich_markup_mode=None)
job = typer.Typer(help="Jobs and their credentials.", no_args_is_help=True, rich_markup_mode=None)
profiling = typer.Typer(
    help="Profiling metrics of GPUs, and who else needs the counters.", no_args_is_help=True, rich_markup_mode=None
)
buses = typer.Typer(help="The bus itself.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(alerts, name="alerts")
app.add_typer(buses, name="bus")
app.add_typer(job, name="job")
app.add_typer(profiling, name="profiling")
app.add_typer(bench, name="bench")

Config = Annotated[Path | None, typer.Option("--config", envvar="NANTUCKET_CONFIG", help="Configuration file (TOML).")]
State = Annotated[
    Path | None,
    typer.Option("--state", envvar="NANTUCKET_STATE", help="Folder for everything that is kept on this machine."),
]
Bus = Annotated[
    str | None,
    typer.Option(
        "--bus", envvar="NANTUCKET_BUS", help="URL of the bus. Default: the embedded log in the state folder."
    ),
]
# Values are text here: the settings read them, so that option, variable and file are refused in the same words.
Simulate = Annotated[
    str | None,
    typer.Option(
        "--simulate",
        envvar="NANTUCKET_COLLECT__SIMULATE",
        metavar="N",
        help="N simulated GPUs, marked as simulated everywhere.",
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        envvar="NANTUCKET_COLLECT__SOURCE",
        metavar="NAME,...",
        help="What is read: auto, or some of nvml, dcgm_exporter, simulated, kernel_log, network, gpu_users.",
    ),
]
Socket = Annotated[
    Path | None,
    typer.Option("--socket", envvar="NANTUCKET_COLLECT__SOCKET", help="Unix socket on which training jobs deliver."),
]
TrainPort = Annotated[
    str | None,
    typer.Option(
        "--train-port", envvar="NANTUCKET_COLLECT__PORT", help="Loopback port on which jobs with a credential deliver."
    ),
]
Store = Annotated[
    Path | None, typer.Option("--store", envvar="NANTUCKET_ALERT__STORE", help="File of the incident store.")
]
MetricsHost = Annotated[
    str | None,
    typer.Option(
        "--metrics-host",
        envvar="NANTUCKET_METRICS__HOST",
        help="Address of /metrics and /healthz; anything but loopback needs serve.token.",
    ),
]
Part = Annotated[
    str | None,
    typer.Option("--slice", envvar="NANTUCKET_DETECT__SLICE", help="Slice INDEX/COUNT of the bus's partitions."),
]
MetricsPort = Annotated[
    str | None,
    typer.Option(
        "--metrics-port",
        metavar="PORT",
        envvar="NANTUCKET_METRICS__PORT",
        help="Port of this process's /metrics and /healthz; 0 takes a free one. Default: none.",
    ),
]
Hz = Annotated[
    str | None, typer.Option("--hz", metavar="HZ", envvar="NANTUCKET_COLLECT__HZ", help="Samples a second of each GPU.")
]
Host = Annotated[
    str | None,
    typer.Option(
        "--host", envvar="NANTUCKET_SERVE__HOST", help="Address to listen on; anything but loopback needs a token."
    ),
]
Port = Annotated[
    str | None,
    typer.Option(
        "--port",
        metavar="PORT",
        envvar="NANTUCKET_SERVE__PORT",
        help="Port of the page and the API; 0 takes a free one.",
    ),
]
GatewayHost = Annotated[
    str | None,
    typer.Option(
        "--host",
        envvar="NANTUCKET_GATEWAY__HOST",
        help="Address to listen on; anything but loopback needs gateway.token or gateway.client_ca.",
    ),
]
GatewayPort = Annotated[
    str | None,
    typer.Option(
        "--port", metavar="PORT", envvar="NANTUCKET_GATEWAY__PORT", help="Port of the links; 0 takes a free one."
    ),
]
GatewayHttpPort = Annotated[
    str | None,
    typer.Option(
        "--http-port", metavar="PORT", envvar="NANTUCKET_GATEWAY__HTTP_PORT", help="Port of POST /v1/frames; 0: any."
    ),
]
GatewayGroup = Annotated[
    str | None,
    typer.Option("--group", envvar="NANTUCKET_GATEWAY__GROUP", help="Partition key of all nodes' frames: the rack."),
]
Token = Annotated[
    str | None,
    typer.Option("--token", envvar="NANTUCKET_SERVE__TOKEN", help="Bearer token that every reader must show."),
]


def _settings(config: Path | None, **options: Any) -> Settings:
    """The settings, with ``section__key`` options that were given laid over them."""
    nested: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None:
            section, _, key = name.rpartition("__")
            (nested.setdefault(section, {}) if section else nested)[key] = value
    return load(config, nested)


@app.command()
def demo(
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the job; another seed breaks at another step.")
    ] = None,
    simulate: Annotated[int, typer.Option(min=0, max=400_000, help="Simulated GPUs that stream beside the job.")] = 64,
    linger: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Seconds for which the page stays up after the page was sent."),
    ] = 0.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole system on this machine, against a small real training job that goes bad. Ends by itself."""
    from app.demo.run import DemoOptions, run_demo
    from app.demo.story import tell

    out = console(as_json=as_json)
    options = DemoOptions(secrets.randbelow(100_000) if seed is None else seed, simulate, linger, port)
    result = asyncio.run(run_demo(options, lambda text: out.print(text, markup=False)))
    print_json(result) if as_json else tell(out, result)
    raise typer.Exit(0 if result["ok"] else 1)


@app.command()
def up(
    config: Config = None,
    state: State = None,
    bus: Bus = None,
    simulate: Simulate = None,
    source: Source = None,
    socket: Socket = None,
    train_port: TrainPort = None,
    hz: Hz = None,
    host: Host = None,
    port: Port = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """All roles in one process: this machine's GPUs if there are any, else simulated ones with --simulate N."""
    from app.up import up as run

    settings = _settings(
        config, state=state, bus=bus, collect__simulate=simulate, collect__source=source,
        collect__socket=socket,
        collect__port=train_port, collect__hz=hz, serve__host=host, serve__port=port, serve__token=token,
    )  # fmt: skip
    run_command(run(settings, frozenset({"collect", "detect", "alert", "serve"}), as_json=as_json))


@app.command()
def collect(
    config: Config = None,
    state: State = None,
    bus: Bus = None,
    simulate: Simulate = None,
    source: Source = None,
    socket: Socket = None,
    train_port: TrainPort = None,
    hz: Hz = None,
    metrics_host: MetricsHost = None,
    metrics_port: MetricsPort = None,
    once: Annotated[
        bool, typer.Option("--once", help="Read every source once, print what would be sent, and end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """A node's collector: its GPUs, and the training jobs that deliver to it."""
    from app.collect_once import collect_once_command
    from app.up import up as run

    settings = _settings(
        config, state=state, bus=bus, collect__simulate=simulate, collect__source=source,
        collect__socket=socket,
        collect__port=train_port, collect__hz=hz, metrics__host=metrics_host, metrics__port=metrics_port,
    )  # fmt: skip
    run_command(
        collect_once_command(settings, as_json=as_json)
        if once
        else run(settings, frozenset({"collect"}), as_json=as_json)
    )


@app.command()
def gateway(
    config: Config = None,
    state: State = None,
    bus: Bus = None,
    host: GatewayHost = None,
    port: GatewayPort = None,
    http_port: GatewayHttpPort = None,
    group: GatewayGroup = None,
    metrics_host: MetricsHost = None,
    metrics_port: MetricsPort = None,
    as_json: Json = False,
) -> None:
    """Many nodes' frames in, few large ones up, to the bus or to another gateway."""
    from app.up import up as run

    settings = _settings(
        config, state=state, bus=bus, gateway__host=host, gateway__port=port, gateway__http_port=http_port,
        gateway__group=group, metrics__host=metrics_host, metrics__port=metrics_port,
    )  # fmt: skip
    run_command(run(settings, frozenset({"gateway"}), as_json=as_json))


@app.command()
def detect(
    config: Config = None,
    state: State = None,
    bus: Bus = None,
    part: Part = None,
    metrics_host: MetricsHost = None,
    metrics_port: MetricsPort = None,
    as_json: Json = False,
) -> None:
    """The detectors over the bus."""
    from app.up import up as run

    settings = _settings(
        config, state=state, bus=bus, detect__slice=part, metrics__host=metrics_host, metrics__port=metrics_port
    )
    run_command(run(settings, frozenset({"detect"}), as_json=as_json))


@app.command()
def alert(
    config: Config = None,
    state: State = None,
    bus: Bus = None,
    store: Store = None,
    metrics_host: MetricsHost = None,
    metrics_port: MetricsPort = None,
    as_json: Json = False,
) -> None:
    """Findings to incidents to deliveries."""
    from app.up import up as run

    settings = _settings(
        config, state=state, bus=bus, alert__store=store, metrics__host=metrics_host, metrics__port=metrics_port
    )
    run_command(run(settings, frozenset({"alert"}), as_json=as_json))


@app.command()
def serve(
    config: Config = None,
    state: State = None,
    bus: Bus = None,
    store: Store = None,
    host: Host = None,
    port: Port = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """The live page, the API and Prometheus metrics."""
    from app.up import up as run

    settings = _settings(
        config, state=state, bus=bus, alert__store=store, serve__host=host, serve__port=port, serve__token=token
    )
    run_command(run(settings, frozenset({"serve"}), as_json=as_json))


@app.command()
def replay(
    paths: Annotated[list[Path], typer.Argument(help="CSV, JSON lines or trainer_state.json files.")],
    plot: Annotated[Path | None, typer.Option(help="Write a PNG for each file into this folder.")] = None,
    as_json: Json = False,
) -> None:
    """Run the detectors over recorded runs and say what would have been paged."""
    from app.replay import replay_command

    raise typer.Exit(replay_command(paths, as_json, plot))


def a_format(value: str) -> str:
    """A format that files may be in."""
    from app.follow.reading import FORMATS

    if value not in FORMATS:
        raise typer.BadParameter(f"expected one of {', '.join(FORMATS)}, found {value!r}")
    return value


@app.command()
def follow(
    paths: Annotated[list[Path], typer.Argument(help="Files, also ones that are not there yet, or folders of them.")],
    job: Annotated[str | None, typer.Option(help="The job's name. Default: made from the folder and the file.")] = None,
    attempt: Annotated[
        str | None, typer.Option(help="Names this start of the job. Default: made from the time; remembered.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(envvar="NANTUCKET_URL", help="The collector. Default: this machine's socket.")
    ] = None,
    file_format: Annotated[
        str, typer.Option("--format", callback=a_format, help="Default: by the name and the content of each file.")
    ] = "auto",
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Send what is there already, and not only what comes.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Read what is there, and end.")] = False,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Send what a job writes anyway (logs, TensorBoard, W&B offline, JSON lines) as training rows, as it grows.

    The collector takes the rows as it takes a job's: NANTUCKET_TOKEN is the job's token where one is asked for.
    """
    from app.follow.command import FollowOptions, follow_command
    from app.settings import state_folder

    folder = state_folder() if state is None else state
    options = FollowOptions(tuple(paths), folder, job, attempt, url, file_format, from_start, once)
    run_command(follow_command(options, as_json=as_json))


@app.command()
def annotate(
    job: Annotated[str, typer.Argument(help="The job.")],
    text: Annotated[str, typer.Argument(help="What has changed: data mix 2, learning rate halved.")],
    attempt: Annotated[str | None, typer.Option(help="Its attempt, where that matters.")] = None,
    step: Annotated[int | None, typer.Option(help="The step from which on it holds.")] = None,
    config: Config = None,
    state: State = None,
    bus: Bus = None,
    as_json: Json = False,
) -> None:
    """Announce a change to a job's watchers."""
    from app.annotate import annotate as run

    settings = _settings(config, state=state, bus=bus)
    run_command(run(settings, SystemClock(), job, text, attempt=attempt, step=step, as_json=as_json))


@app.command()
def tail(
    topic: Annotated[
        Topic | None, typer.Argument(help="Topic to follow. Default: all telemetry and the findings.")
    ] = None,
    since: Annotated[
        float | None, typer.Option(min=0, callback=finite, metavar="SECONDS", help="Begin that far back.")
    ] = None,
    config: Config = None,
    state: State = None,
    bus: Bus = None,
    as_json: Json = False,
) -> None:
    """Follow the stream in the terminal."""
    from app.tail import tail as run

    topics = (topic,) if topic is not None else (*TELEMETRY, Topic.FINDINGS)
    run_command(
        run(_settings(config, state=state, bus=bus), topics, SystemClock(), since_seconds=since, as_json=as_json)
    )


@app.command()
def doctor(config: Config = None, state: State = None, bus: Bus = None, as_json: Json = False) -> None:
    """Check this machine and configuration, and say what to do about each fault."""
    from app.doctor import doctor as run

    run_command(run(_settings(config, state=state, bus=bus), as_json=as_json))


@alerts.command("test")
def alerts_test(
    receiver: Annotated[str, typer.Argument(help="Name of a configured receiver.")],
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Send a test page to RECEIVER."""
    from app.send_test_page import send_test_page

    run_command(send_test_page(_settings(config, state=state), receiver, as_json=as_json))


@job.command("token")
def job_token(
    name: Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")],
    config: Config = None,
    state: State = None,
) -> None:
    """Make the credential of JOB, for NANTUCKET_TOKEN."""
    from app.job_names import checked_job
    from app.settings import secret_of
    from collectors.credentials import job_token as make

    settings = _settings(config, state=state)
    print(make(secret_of(settings.state), checked_job(name)))


@job.command("key")
def job_key(
    name: Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")],
    config: Config = None,
    state: State = None,
) -> None:
    """Make the key under which JOB believes verdicts, for NANTUCKET_VERDICT_KEY."""
    from app.job_names import checked_job
    from app.settings import secret_of
    from telemetry_bus.verdicts import key_text, verdict_key

    settings = _settings(config, state=state)
    print(key_text(verdict_key(secret_of(settings.state), checked_job(name))))


@profiling.command("pause")
def pause_profiling(
    minutes: Annotated[float, typer.Option(min=0.1, max=240, callback=finite, help="For how long, at most.")] = 30.0,
    config: Config = None,
    state: State = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Leave the profiling counters of this node's GPUs alone, for Nsight or CUPTI."""
    from app.profiling import switch_profiling

    settings = _settings(config, state=state, collect__socket=socket)
    run_command(switch_profiling(settings, minutes * 60.0, as_json=as_json))


@profiling.command("resume")
def resume_profiling(config: Config = None, state: State = None, socket: Socket = None, as_json: Json = False) -> None:
    """Read them again."""
    from app.profiling import switch_profiling

    run_command(switch_profiling(_settings(config, state=state, collect__socket=socket), 0.0, as_json=as_json))


@profiling.command("status")
def profiling_status(config: Config = None, state: State = None, socket: Socket = None, as_json: Json = False) -> None:
    """Say whether they are read."""
    from app.profiling import switch_profiling

    run_command(switch_profiling(_settings(config, state=state, collect__socket=socket), None, as_json=as_json))


@buses.command("init")
def init_bus(
    partitions: Annotated[
        str | None,
        typer.Option(
            "--partitions",
            metavar="N",
            envvar="NANTUCKET_KAFKA__PARTITIONS",
            help="Partitions of each telemetry topic. Default: 32, or as many as there are.",
        ),
    ] = None,
    replication: Annotated[
        str | None,
        typer.Option(
            "--replication",
            metavar="N",
            envvar="NANTUCKET_KAFKA__REPLICATION",
            help="Copies of each record. Default: 3, or the number of brokers if there are fewer.",
        ),
    ] = None,
    config: Config = None,
    state: State = None,
    bus: Bus = None,
    as_json: Json = False,
) -> None:
    """Make the topics of a Kafka-protocol cluster; what is there already is checked and left as it is."""
    from app.bus_init import bus_init

    settings = _settings(
        config, state=state, bus=bus, kafka__partitions=partitions, kafka__replication=replication
    )  # fmt: skip
    run_command(bus_init(settings, as_json=as_json))


def main() -> None:
    """Parse, run, and turn what went wrong into an exit status and a message."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        app()
    except SettingsError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has enough (`nantucket tail | head`): the interpreter must not flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - raised again where it is not known, without the groups around it
        from app.failures import explain, fault_of

        known = explain(error)
        if known is None:
            raise fault_of(error) from None
        status, message = known
        print(message, file=sys.stderr)
        sys.exit(status)


if __name__ == "__main__":
    main()
