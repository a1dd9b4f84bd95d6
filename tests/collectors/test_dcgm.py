"""The dcgm-exporter client on real HTTP: three generations of names, MIG, pods, blanks, bad lines, half pages."""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.dcgm_exporter import STALE_SECONDS, DcgmExporter, DcgmSource, shown
from collectors.dcgm_fields import FIELDS, LEFT_ALONE, LINK_FIELDS, XID_NAMES, gpu_field, link_field
from collectors.dcgm_page import read_page
from collectors.dcgm_text import LINE_CHARACTERS_MAX, read_text
from collectors.errors import FieldFailure, SourceClosed
from collectors.gpu_users import GpuUsers
from collectors.source import LINKS, METRICS, SourceReading
from telemetry_bus.runtime.clock import ManualClock
from telemetry_bus.runtime.secret import Secret
from telemetry_bus.schemas import EventKind
from tests.fakes.exporter import Exporter, page

NOW = 1_700_000_000.0
Reading = Callable[..., AbstractAsyncContextManager[DcgmSource]]


@asynccontextmanager
async def reading(*exporters: Exporter, **options: Any) -> Any:
    """The source over running exporters."""
    urls = tuple(Secret(exporter.url) for exporter in exporters)
    async with DcgmExporter(urls, "node-1", **{"timeout_seconds": 5.0} | options).build(ManualClock()) as source:
        yield source


def values(found: SourceReading, metric: str) -> list[float | None]:
    """A metric of every row."""
    assert found.gpus is not None
    if metric not in found.gpus.metrics:
        return [None] * found.gpus.rows
    listed: list[float | None] = found.gpus.metrics[metric].to_arrow().to_pylist()
    return listed


def states(found: SourceReading) -> list[str]:
    """What the driver events say."""
    return [event.detail["state"] for event in found.events if event.kind is EventKind.DRIVER]


async def test_a_page_becomes_rows_in_our_units_with_an_inventory() -> None:
    """Millijoules become joules, shares stay shares, and the node is what the exporter says."""
    async with Exporter() as exporter, reading(exporter) as source:
        found = await source.read(NOW)
    assert found.gpus is not None
    assert (found.gpus.nodes, found.gpus.gpu.tolist()) == ([("gpu-7", 2)], [0, 1])
    assert found.gpus.uuid.to_pylist() == ["GPU-0", "GPU-1"]
    expected = {
        "power_watts": 691.5, "energy_joules": 1_234_567.89, "tensor_active_ratio": 0.412, "sm_clock_mhz": 1_755.0,
        "pcie_replay_count": 3, "memory_used_mib": 70_000.0, "pcie_tx_bytes_per_second": 1.5e9,
    }  # fmt: skip
    for metric, value in expected.items():
        assert values(found, metric) == pytest.approx([value, value]), metric
    (inventory,) = found.events
    assert (inventory.kind, inventory.detail["driver_version"]) == (EventKind.NODE_INVENTORY, "575.57.08")
    assert inventory.detail["gpus"][1] == {
        "gpu": 1, "uuid": "GPU-1", "name": "NVIDIA H100 80GB HBM3", "pci": "00000000:1C:00.0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "metric", "value"),
    [
        ('dcgm_gpu_temp{gpu="0",uuid="GPU-0"} 55', "temperature_celsius", 55.0),
        ('dcgm_fi_prof_gr_engine_active{gpu="0",uuid="GPU-0"} 0.5', "graphics_active_ratio", 0.5),
        ('DCGM_FI_DEV_GPU_TEMP_CELSIUS{gpu="0",UUID="GPU-0"} 56', "temperature_celsius", 56.0),
        ('DCGM_FI_DEV_BOARD_POWER_WATTS{gpu="0",UUID="GPU-0"} 300.25', "power_watts", 300.25),
        ('DCGM_FI_DEV_GPU_UTIL_RATIO{gpu="0",UUID="GPU-0"} 0.97', "gpu_utilization_percent", 97.0),
        ('DCGM_FI_DEV_GPU_UTIL_RATIO{gpu="0",UUID="GPU-0"} 97', "gpu_utilization_percent", 97.0),
        ('DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-0"} 1', "gpu_utilization_percent", 1.0),
        ('DCGM_FI_DEV_POWER_VIOLATION{gpu="0",UUID="GPU-0"} 2500000000', "power_cap_seconds", 2.5),
        ('DCGM_FI_PROF_TENSOR_UTIL_RATIO{gpu="0",UUID="GPU-0"} 0.25', "tensor_active_ratio", 0.25),
        ('DCGM_FI_DEV_GPU_TEMP{gpu="0", UUID="GPU-0"} 61 1700000000000', "temperature_celsius", 61.0),
        ('DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-0"} 61 # {trace="x"} 1 1.0', "temperature_celsius", 61.0),
        ('DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-0",pod="a\\"b\\\\c"} 61\r', "temperature_celsius", 61.0),
    ],
)
def test_every_generation_of_names_and_every_form_of_a_line(line: str, metric: str, value: float) -> None:
    """The number of a field has stayed, its name has not."""
    text = read_text((line + "\n").encode())
    (gpu,) = read_page(text.samples, None, "node-1").gpus.values()
    assert gpu.values == pytest.approx({metric: value})
    assert (gpu.uuid, text.bad) == ("GPU-0", 0)


@pytest.mark.parametrize("host", ["Hostname", "hostname"])
async def test_nodes_come_from_the_label_however_it_is_written_or_are_renamed(host: str) -> None:
    """One exporter may stand for a rack; one in Kubernetes may give its pod's name."""
    text = page(1, host=host) + page(1, host=host).replace("gpu-7", "gpu-8").replace("GPU-0", "GPU-8")
    async with Exporter(text) as exporter, reading(exporter) as source, reading(exporter, rename=True) as renamed:
        found, given = await source.read(NOW), await renamed.read(NOW)
    assert found.gpus is not None
    assert given.gpus is not None
    assert found.gpus.nodes == [("gpu-7", 1), ("gpu-8", 1)]
    assert given.gpus.nodes == [("node-1", 1)]


async def test_mig_instances_are_rows_of_their_own_and_pods_are_no_series() -> None:
    """The GPU's UUID is not the instance's; a row for each pod is still one row; who holds the GPU is told once."""
    users = GpuUsers("gpu-7")
    pods = [',container="c",namespace="ml",pod="train-0"', ',container="d",namespace="ml",pod="train-1"']
    text = "".join(page(1, more=more) for more in pods) + page(1, more=',GPU_I_PROFILE="3g.40gb",GPU_I_ID="2"')
    async with Exporter(text) as exporter, reading(exporter, users=users) as source:
        source.config = DcgmExporter(source.config.urls, "gpu-7", users=users)
        found = await source.read(NOW)
    assert found.gpus is not None
    assert found.gpus.instance is not None
    assert found.gpus.instance.to_pylist() == [None, "2"]
    assert found.gpus.uuid.to_pylist() == ["GPU-0", None]
    users.saw_processes("GPU-0", None, [], NOW, gpu=0)
    told = [event.detail for event in users.changes(NOW)]
    assert {user["pod"] for detail in told for user in detail["users"]} == {"train-0", "train-1"}


async def test_links_have_rows_of_their_own() -> None:
    """Their labels have other names."""
    link = 'nvlink="{}",gpu="1",gpu_uuid="GPU-1",pci_bus_id="x",device="nvidia1",model_name="H100",hostname="gpu-7"'
    lines = [f"DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL{{{link.format(port)}}} {port * 2}\n" for port in (0, 3)]
    async with Exporter(page() + "".join(lines)) as exporter, reading(exporter) as source:
        found = await source.read(NOW)
    assert found.links is not None
    assert (found.links.device, found.links.port) == (["gpu1", "gpu1"], [0, 3])
    assert found.links.metrics["replay_count"].to_arrow().to_pylist() == [0, 6]
    assert values(found, "nvlink_replay_count") == [None, None]


@pytest.mark.parametrize(
    "blank", ["9223372036854775794", "9223372036854775792", "2147483632", "140737488355328", "140737488355328.0"]
)
async def test_dcgms_marks_for_blank_are_null_and_counted(blank: str) -> None:
    """They leak out of real exporters; 9 exabytes of memory temperature are none."""
    async with Exporter(page(DCGM_FI_DEV_MEMORY_TEMP=blank)) as exporter, reading(exporter) as source:
        found = await source.read(NOW)
    assert values(found, "memory_temperature_celsius") == [None, None]
    assert values(found, "temperature_celsius") == [61.0, 61.0]
    assert found.failures == {("dcgm_exporter", FieldFailure.UNSUPPORTED): 2}


@pytest.mark.parametrize(
    "bad",
    [
        "DCGM_FI_DEV_GPU_TEMP{gpu=\"0\"} <<<NULL>>>",
        "DCGM_FI_DEV_GPU_TEMP{gpu=\"0\",...} 61",
        "DCGM_FI_DEV_GPU_TEMP{gpu=\"0\",modelName=\"a\"b\"} 61",
        "DCGM_FI_DEV_GPU_TEMP{gpu=\"0\"",
        "DCGM_FI_DEV_GPU_TEMP{gpu=\"0\"} +Inf",
        "}{",
        "x" * (LINE_CHARACTERS_MAX + 1),
    ],
)  # fmt: skip
async def test_a_line_that_cannot_be_read_is_counted_and_takes_no_other_with_it(bad: str) -> None:
    """Values are rendered without escaping: lines like these come from real exporters."""
    async with Exporter(f"{bad}\n{page()}") as exporter, reading(exporter) as source:
        found = await source.read(NOW)
    assert found.failures == {("dcgm_exporter", FieldFailure.DRIVER_ERROR): 1}
    assert values(found, "power_watts") == [691.5, 691.5]


async def test_invalid_utf_8_open_metrics_and_gzip_are_read() -> None:
    """As proxies and newer exporters serve them."""
    async with Exporter() as exporter, reading(exporter) as source:
        exporter.text = b"# HELP \xff\xfe\n" + page().replace("\n", "\r\n").encode() + b"# EOF\n"
        exporter.compressed = True
        found = await source.read(NOW)
    assert values(found, "power_watts") == [691.5, 691.5]
    assert "gzip" in exporter.heads[0]


async def test_an_exporter_that_does_not_answer_is_told_once_and_so_is_its_return() -> None:
    """An error, a page that is not there, an answer that is cut off: no rows, and never a number that was half read."""
    async with Exporter() as exporter, reading(exporter) as source:
        await source.read(NOW)
        exporter.status = "503 Service Unavailable"
        away = [await source.read(NOW + 10), await source.read(NOW + 20)]
        assert "503" in source.unreadable()[0]
        exporter.status, exporter.promised = "200 OK", 100
        cut = await source.read(NOW + 30)
        exporter.promised, exporter.text = 0, page(DCGM_FI_DEV_GPU_TEMP="62")
        back = await source.read(NOW + 40)
    assert [states(each) for each in (*away, cut, back)] == [["exporter_silent"], [], [], ["exporter_answers"]]
    assert all(each.gpus is None for each in (*away, cut))
    assert away[0].failures == {("dcgm_exporter", FieldFailure.NO_ANSWER): 1}
    assert values(back, "temperature_celsius") == [62.0, 62.0]


async def test_an_exporter_that_is_slow_or_not_there_holds_up_no_other() -> None:
    """Each has its own deadline."""
    async with Exporter() as slow, Exporter() as good, reading(slow, good, timeout_seconds=0.3) as source:
        slow.silent = True
        found = await source.read(NOW)
        assert found.gpus is not None
        assert "no answer within 0.3 s" in source.unreadable()[0]
    async with reading(good, timeout_seconds=0.3) as source:
        assert states(await source.read(NOW)) == ["exporter_silent"]


async def test_passwords_are_shown_nowhere() -> None:
    """Not in an event, in words, or in a repr."""
    async with Exporter() as exporter:
        exporter.status = "401 Unauthorized"
        url = exporter.url.replace("http://", "http://scraper:hunter2@") + "?token=hunter2"
        async with DcgmExporter((Secret(url),), "node-1").build(ManualClock()) as source:
            found = await source.read(NOW)
            said = [*source.unreadable(), repr(source.config), *(event.message for event in found.events)]
            said += [str(event.detail) for event in found.events]
    assert "Authorization: Basic" in exporter.heads[0] or "authorization: Basic" in exporter.heads[0]
    assert "hunter2" not in "".join(said)
    assert shown(url) == exporter.url


async def test_the_same_text_again_is_no_new_row_and_after_a_while_it_is_stale() -> None:
    """The exporter collects every 30 s; what it repeats is old. What stands still for minutes is told."""
    async with Exporter() as exporter, reading(exporter) as source:
        found = [await source.read(NOW + after) for after in (0, 10, 60, STALE_SECONDS + 1, STALE_SECONDS + 11)]
        exporter.text = page(DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION="1234567891")
        again = await source.read(NOW + STALE_SECONDS + 21)
    assert [each.gpus is not None for each in found] == [True, False, False, False, False]
    assert [states(each) for each in found] == [[], [], [], ["exporter_stale"], []]
    assert (states(again), again.gpus is not None) == (["exporter_answers"], True)


async def test_rows_whose_own_time_stands_still_are_stale() -> None:
    """A proxy may serve yesterday's page with today's text around it."""
    stamp = int((NOW - 600) * 1000)
    old = "".join(f"{line} {stamp}\n" for line in page().splitlines() if line.startswith("DCGM"))
    async with Exporter(old) as exporter, reading(exporter) as source:
        found = await source.read(NOW)
    assert (found.gpus, states(found)) == (None, ["exporter_stale"])


async def test_half_a_page_is_noticed() -> None:
    """A GPU that was there is told; a field that was there is null and counted as long as it is missing."""
    async with Exporter() as exporter, reading(exporter) as source:
        await source.read(NOW)
        exporter.text = page(1, without="DCGM_FI_DEV_POWER_USAGE")
        half = await source.read(NOW + 10)
        exporter.text = page(1, without="DCGM_FI_DEV_POWER_USAGE", DCGM_FI_DEV_GPU_TEMP="60")
        still = await source.read(NOW + 20)
        exporter.text = page()
        whole = await source.read(NOW + 30)
    assert states(half) == ["gpu_lost"]
    assert [event.gpu for event in half.events if event.kind is EventKind.DRIVER] == [1]
    assert values(half, "power_watts") == [None]
    assert half.failures == still.failures == {("power_watts", FieldFailure.LOST): 1}
    assert (states(still), states(whole)) == ([], ["gpu_back"])


async def test_another_xid_in_the_gauge_is_an_event_and_the_first_one_seen_is_history() -> None:
    """The gauge never resets: what stood there before is no news, and a repetition cannot be seen, which is said."""
    async with Exporter(page(DCGM_FI_DEV_XID_ERRORS="31")) as exporter, reading(exporter) as source:
        first = await source.read(NOW)
        exporter.text = page(DCGM_FI_DEV_XID_ERRORS="79")
        second = await source.read(NOW + 10)
    assert not [event for event in first.events if event.kind is EventKind.XID]
    told = [event for event in second.events if event.kind is EventKind.XID]
    assert [(event.code, event.gpu, event.uuid, event.node) for event in told] == [
        (79, 0, "GPU-0", "gpu-7"), (79, 1, "GPU-1", "gpu-7"),
    ]  # fmt: skip
    assert told[0].detail["repeats_unseen"] is True
    assert told[0].detail["action"] == "RESTART_BM"


async def test_what_is_no_field_of_ours_is_named_and_the_exporters_own_figures_are_not() -> None:
    """A field of tomorrow is seen to be missing."""
    text = page() + 'DCGM_FI_DEV_TOMORROW{gpu="0",UUID="GPU-0"} 1\ngo_goroutines 12\n'
    text += 'DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL{gpu="0",UUID="GPU-0"} 5\nDCGM_FI_DEV_CPU_TEMP{cpu="0"} 50\n'
    async with Exporter(text) as exporter, reading(exporter) as source:
        await source.read(NOW)
        assert source.unknown == {"DCGM_FI_DEV_TOMORROW": 1, "rows of no GPU": 1}
        assert "DCGM_FI_DEV_TOMORROW" in source.unreadable()[-1]


async def test_reading_outside_its_block_is_refused() -> None:
    """As of every source."""
    with pytest.raises(SourceClosed):
        await DcgmExporter((), "node-1").build(ManualClock()).read(NOW)


@given(st.binary(max_size=400), st.text(max_size=80), st.floats())
def test_whatever_an_exporter_serves_nothing_is_raised_and_counts_are_counts(
    rubbish: bytes, label: str, value: float
) -> None:
    """It may be another program altogether."""
    line = f'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{gpu="0",UUID="{label}"}} {value}\n'
    found = read_page(read_text(rubbish + b"\n" + line.encode("utf-8", "replace")).samples, None, "node-1")
    for gpu in found.gpus.values():
        assert all(isinstance(each, int) and 0 <= each < 2**63 for each in gpu.values.values())


def test_every_field_is_a_metric_of_ours_once_and_no_name_means_two() -> None:
    """A table that says two things is none."""
    assert {field.metric for field in FIELDS} <= METRICS.keys()
    assert {field.metric for field in LINK_FIELDS} <= LINKS.keys()
    for table in (FIELDS, LINK_FIELDS):
        names = [name for field in table for name in field.names]
        assert len(names) == len(set(names))
        assert len({field.id for field in table}) == len(table)


@pytest.mark.needs_shared
@pytest.mark.parametrize("name", ["default-counters", "dcp-metrics-included", "1.x-compatibility-metrics"])
def test_every_field_of_the_exporters_own_lists_is_read_or_left_alone_for_a_reason(
    shared_folder: Path, name: str
) -> None:
    """What is on by default, and what people switch on."""
    text = (shared_folder / f"data/dcgm_fields/dcgm-exporter_{name}.csv").read_text()
    rows = [row for row in csv.reader(line.lstrip("# ") for line in text.splitlines()) if len(row) >= 3]
    named = {row[0].strip().upper() for row in rows if row[1].strip() in ("gauge", "counter") and row[0].strip()}
    left = {*map(str.upper, LEFT_ALONE), *XID_NAMES}
    assert len(named) > 15
    assert not {each for each in named if not (gpu_field(each) or link_field(each) or each in left)}


@pytest.mark.needs_shared
def test_every_real_text_is_read_rightly(shared_folder: Path) -> None:
    """Published pages: as many samples as their lines, but for lines that people have shortened with dots."""
    folder = shared_folder / "data/dcgm_exporter"
    assert len(list(folder.iterdir())) >= 9
    for path in folder.iterdir():
        lines = [line for line in path.read_text().splitlines() if line.strip().startswith(("DCGM_", "dcgm_"))]
        shortened = [line for line in lines if "..." in line]
        text = read_text(path.read_bytes())
        assert text.bad == len(shortened), path.name
        assert len(text.samples) + text.blank == len(lines) - len(shortened), path.name
        read = read_page(text.samples, None, "node-1")
        assert not read.unknown, path.name
        assert read.gpus, path.name


@pytest.mark.needs_shared
def test_values_of_real_texts_are_what_they_say(shared_folder: Path) -> None:
    """Looked up by hand."""
    folder = shared_folder / "data/dcgm_exporter"

    def gpus(name: str) -> dict[Any, Any]:
        return read_page(read_text((folder / f"{name}.prom").read_bytes()).samples, None, "here").gpus

    t4 = gpus("cncf_v1.35_ericsson-ccd")["cp-bm14r7", 0, None]
    assert (t4.uuid, t4.pci, t4.driver) == (
        "GPU-6d5c0ac5-74d7-3130-46f1-e93ed57f469a", "00000000:37:00.0", "590.48.01",
    )  # fmt: skip
    assert (t4.values["sm_clock_mhz"], t4.values["temperature_celsius"]) == (660.0, 74.0)
    readme = gpus("nvidia_dcgm-exporter_README")["here", 0, None]
    assert readme.values["sm_clock_mhz"] == 139.0
    assert "memory_temperature_celsius" not in readme.values
    excerpts = gpus("github_issue_excerpts")
    assert excerpts["here", 0, "1"].values == {"graphics_active_ratio": 0.0}
    v100 = excerpts["here", 0, None]
    assert v100.values["energy_joules"] == pytest.approx(4_335_301.032)
    pods = gpus("lke_rtx4000ada_podlabels_excerpt")
    ((holder,),) = [gpu.holders for gpu in pods.values()]
    assert holder == ("cuda-75454ffb9f-8ljq7", "default", "cuda")
