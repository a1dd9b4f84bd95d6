"""``nantucket bench NAME``: parses, and hands over to the benchmark's own file."""

from pathlib import Path
from typing import Annotated

import typer

from app.command import Json, finite, run_command

# As in app/cli.py: a benchmark is imported where it runs.
# ruff: noqa: PLC0415

bench = typer.Typer(help="Measure, beside a peer where there is one.", no_args_is_help=True, rich_markup_mode=None)


@bench.command("page")
def bench_page(
    events: Annotated[
        int, typer.Option(min=1, max=10_000, help="Bad steps, each of another job at a random moment.")
    ] = 200,
    gpus: Annotated[int, typer.Option(min=0, max=100_000, help="Simulated GPUs that stream meanwhile.")] = 1000,
    seconds: Annotated[
        float, typer.Option(min=1, callback=finite, help="Time over which the bad steps are spread.")
    ] = 60.0,
    peer: Annotated[str | None, typer.Option(help="Also measure a peer on the same events: prometheus.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the moments.")] = 0,
    as_json: Json = False,
) -> None:
    """From run.log() of a bad step to the receiver's socket."""
    from app.bench.page import PageOptions, bench_page_command

    if peer not in (None, "prometheus"):
        raise typer.BadParameter(f"expected prometheus, found {peer!r}", param_hint="--peer")
    run_command(bench_page_command(PageOptions(events, gpus, seconds, peer, seed), as_json=as_json))


@bench.command("fanout")
def bench_fanout(
    readers: Annotated[int, typer.Option(min=1, max=1_000, help="Live readers, each a connection.")] = 1_000,
    slow: Annotated[int, typer.Option(min=0, max=999, help="How many of them do not read.")] = 100,
    seconds: Annotated[
        float, typer.Option(min=1, callback=finite, help="How long each of the four parts is measured.")
    ] = 20.0,
    peer: Annotated[str | None, typer.Option(help="Also let consumers read the topic themselves: kafka.")] = None,
    as_json: Json = False,
) -> None:
    """Many live readers of one page and one topic, and what they cost the bus."""
    from app.bench.fanout import FanOutOptions, bench_fanout_command

    if peer not in (None, "kafka"):
        raise typer.BadParameter(f"expected kafka, found {peer!r}", param_hint="--peer")
    if slow >= readers:
        raise typer.BadParameter(f"expected fewer than {readers} readers that do not read", param_hint="--slow")
    run_command(bench_fanout_command(FanOutOptions(readers, slow, seconds, peer), as_json=as_json))


@bench.command("pipeline")
def bench_pipeline(
    gpus: Annotated[int, typer.Option(min=2_500, max=1_000_000, help="GPUs, 500 to a rack.")] = 300_000,
    metrics: Annotated[int, typer.Option(min=1, max=45, help="Metrics of each GPU.")] = 40,
    hz: Annotated[float, typer.Option(min=0.1, max=10, callback=finite, help="Samples a second of each.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=5, callback=finite, help="Measured seconds.")] = 60.0,
    bus: Annotated[
        str | None, typer.Option(help="URL of the bus, or kafka for a broker started here. Default: the embedded log.")
    ] = None,
    tier: Annotated[str, typer.Option(help="top: merged racks; rack: one rack's gateway with 64 collectors.")] = "top",
    slices: Annotated[int, typer.Option(min=1, max=64, help="Detectors that share the partitions.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of values and moments.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole fleet through gateway, log, detectors and live state."""
    from app.bench.pipeline import PipelineOptions, bench_pipeline_command

    if tier not in ("top", "rack"):
        raise typer.BadParameter(f"expected top or rack, found {tier!r}", param_hint="--tier")
    options = PipelineOptions(gpus, metrics, hz, seconds, bus, tier, slices, seed)
    run_command(bench_pipeline_command(options, as_json=as_json))


@bench.command("spool")
def bench_spool(
    outage: Annotated[float, typer.Option(min=10, max=14_400, callback=finite, help="Seconds without a bus.")] = 600.0,
    nodes: Annotated[
        int, typer.Option(min=0, max=10_000, help="Instead: so many nodes return together after four compressed hours.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """A bus is taken away and put back: what arrives, how fast, and who was paged."""
    from app.bench.spool import SpoolOptions, bench_spool_command

    run_command(bench_spool_command(SpoolOptions(outage, nodes), as_json=as_json))


@bench.command("collect")
def bench_collect(
    gpus: Annotated[
        int, typer.Option(min=1, max=64, help="GPUs of the fake driver, where this machine has no real one.")
    ] = 8,
    hz: Annotated[float, typer.Option(min=0.1, max=10, callback=finite, help="Samples a second of each GPU.")] = 1.0,
    seconds: Annotated[float, typer.Option(min=5, callback=finite, help="Measured seconds.")] = 60.0,
    fast: Annotated[
        str, typer.Option(metavar="METRIC,...", help="Metrics that alone are read faster than once a second.")
    ] = "",
    peer: Annotated[bool, typer.Option("--peer", help="Also measure what people run today.")] = False,
    as_json: Json = False,
) -> None:
    """What a node pays for its collector: CPU and memory of the process tree, and whether a sample is late."""
    from app.bench.collect import CollectOptions, bench_collect_command

    run_command(bench_collect_command(CollectOptions(gpus, hz, seconds, fast, peer), as_json=as_json))


@bench.command("sdk")
def bench_sdk(
    framework: Annotated[str, typer.Option(help="torch, or none for run.log alone.")] = "torch",
    seconds: Annotated[float, typer.Option(min=5, callback=finite, help="Measured seconds of training.")] = 60.0,
    python: Annotated[
        Path | None, typer.Option(help="An interpreter that has the framework. Default: that of the tests.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What a training step pays: run.log, and run.watch beside the same step without it."""
    from app.bench.sdk import FRAMEWORKS, SdkOptions, bench_sdk_command

    if framework not in FRAMEWORKS:
        raise typer.BadParameter(f"expected {' or '.join(FRAMEWORKS)}, found {framework!r}", param_hint="--framework")
    run_command(bench_sdk_command(SdkOptions(framework, seconds, python), as_json=as_json))


@bench.command("copies")
def bench_copies(
    gpus: Annotated[int, typer.Option(min=60, max=300_000, help="Simulated GPUs that stream meanwhile.")] = 30_000,
    outage: Annotated[
        float, typer.Option(min=0, callback=finite, help="Seconds for which the broker is stopped; 0: not at all.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the moments.")] = 0,
    as_json: Json = False,
) -> None:
    """Detectors come and go over a real Kafka, and its broker stops."""
    from app.bench.copies import CopiesOptions, bench_copies_command

    run_command(bench_copies_command(CopiesOptions(gpus, outage, seed), as_json=as_json))
