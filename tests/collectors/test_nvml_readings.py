"""What is read from one GPU: every metric in its unit, each failing alone, and how often it is asked for."""

import pytest

from app.bench.fake_driver import library
from collectors.cost_class import CostClass
from collectors.errors import FieldFailure
from collectors.nvml import nvlink
from collectors.nvml.driver import DriverFault
from collectors.nvml.plan import COSTS, NAMES, SIGNALS, link_sources, metrics_of, sources
from collectors.nvml.refusals import ASK_AGAIN_SECONDS, REFUSED_TIMES
from collectors.nvml.sampling import REPEAT_SECONDS_MAX
from collectors.nvml.signals import Field, OverLinks
from telemetry_bus.metric_names import GPU_METRIC_NAMES, GPU_METRICS, LINK_METRICS
from tests.collectors.nvml_scene import SECOND, Scene, reasons

ARROW = {metric.name: metric.arrow for metric in GPU_METRICS}
LASTING = {2, 3, 13, 22, 25, 26}
NOT_PERMITTED = {4}
LOST = {15, 28}
CODES = [*range(1, 31), 999, 31, 77, 12_345, -1]
"""Every code that nvml.h has, and some that it has not."""


RESET_REQUIRED = 16


def reason_of(code: int) -> FieldFailure:
    """What we call a code of NVML."""
    if code in LASTING:
        return FieldFailure.UNSUPPORTED
    if code in LOST:
        return FieldFailure.GPU_LOST
    if code == RESET_REQUIRED:
        return FieldFailure.RESET_REQUIRED
    return FieldFailure.NOT_PERMITTED if code in NOT_PERMITTED else FieldFailure.DRIVER_ERROR


EXPECTED = {
    "gpu_utilization_percent": 97.0,
    "memory_copy_utilization_percent": 42.0,
    "encoder_utilization_percent": 3.0,
    "decoder_utilization_percent": 5.0,
    "memory_used_mib": 70_000.0,
    "memory_total_mib": 81_559.0,
    "memory_free_mib": 10_939.0,
    "memory_reserved_mib": 620.0,
    "temperature_celsius": 61.0,
    "memory_temperature_celsius": 70.0,
    "temperature_margin_celsius": 26.0,
    "temperature_shutdown_celsius": 92.0,
    "temperature_slowdown_celsius": 89.0,
    "memory_temperature_max_celsius": 95.0,
    "temperature_max_celsius": 87.0,
    "temperature_shutdown_margin_celsius": -5.0,
    "temperature_slowdown_margin_celsius": -2.0,
    "memory_temperature_max_margin_celsius": 0.0,
    "temperature_max_margin_celsius": 0.0,
    "power_watts": 691.5,
    "power_instant_watts": 702.25,
    "power_limit_watts": 700.0,
    "energy_joules": 1_234_567_890.123,
    "sm_clock_mhz": 1_755.0,
    "memory_clock_mhz": 2_619.0,
    "performance_state": 0.0,
    "clocks_event_reasons": 4,
    "power_cap_seconds": 74.0,
    "thermal_policy_seconds": 75.0,
    "sync_boost_seconds": 76.0,
    "board_limit_seconds": 77.0,
    "low_utilization_seconds": 78.0,
    "reliability_limit_seconds": 79.0,
    "below_application_clocks_seconds": 80.0,
    "below_base_clocks_seconds": 81.0,
    "software_thermal_slowdown_seconds": 269.0,
    "hardware_thermal_slowdown_seconds": 270.0,
    "power_brake_seconds": 271.0,
    "pcie_link_generation": 5.0,
    "pcie_link_width": 16.0,
    "pcie_link_generation_max": 5.0,
    "pcie_link_width_max": 16.0,
    "pcie_replay_count": 3,
    "ecc_corrected_aggregate_count": 2,
    "fabric_state": 3.0,
    "fabric_status": 0.0,
    "fabric_health": 1.0,
    "fabric_health_mask": 2,
    "row_remap_spares_max_banks": 640.0,
    "nvlink_links": 18.0,
    "nvlink_active_links": 18,
    "c2c_links": 1.0,
    "c2c_active_links": 1,
    "c2c_max_bytes_per_second": 44_712e6,
    "nvlink_effective_bit_error_ratio": 15e-255,
    "nvlink_symbol_bit_error_ratio": 15e-255,
    "graphics_active_ratio": 0.015,
    "sm_active_ratio": 0.025,
    "sm_occupancy_ratio": 0.035,
    "integer_active_ratio": 0.045,
    "tensor_active_ratio": 0.055,
    "tensor_dfma_active_ratio": 0.065,
    "tensor_hmma_active_ratio": 0.075,
    "tensor_dmma_active_ratio": 0.085,
    "tensor_imma_active_ratio": 0.095,
    "dram_active_ratio": 0.105,
    "fp64_active_ratio": 0.115,
    "fp32_active_ratio": 0.125,
    "fp16_active_ratio": 0.135,
    "pcie_tx_bytes_per_second": 100.0 * (1 << 20),
    "pcie_rx_bytes_per_second": 200.0 * (1 << 20),
    "nvlink_rx_bytes_per_second": 3_000.0 * (1 << 20),
    "nvlink_tx_bytes_per_second": 4_000.0 * (1 << 20),
}
"""What the healthy driver of the tests says. Everything else of it is 0."""


def test_every_metric_of_a_gpu_arrives_in_its_unit(nvml_scene: Scene) -> None:
    """mW become W, mJ J, ns s, bytes MiB, percent a ratio, MiB/s bytes/s, MB/s bytes/s; the rest stays as it is."""
    nvml_scene.read()
    made = nvml_scene.read()
    assert made.failures == {}
    assert made.values == pytest.approx(dict.fromkeys(GPU_METRIC_NAMES, 0) | EXPECTED)


def test_every_metric_of_the_closed_set_has_a_source_and_a_class() -> None:
    """What NVML is not asked for would be null on every node for ever."""
    assert set(NAMES) == set(GPU_METRIC_NAMES)
    assert all(text and "  " not in text for text in sources().values())
    for signal in SIGNALS:
        assert {COSTS[name] for name in metrics_of(signal)} == {signal.cost}


def test_new_columns_stand_in_order_of_how_often_they_are_read() -> None:
    """Columns at the end that are null are not sent: the rarest stand last."""
    order = list(CostClass)
    costs = [order.index(COSTS[name]) for name in GPU_METRIC_NAMES[45:]]
    assert costs == sorted(costs)


def test_only_whole_numbers_go_into_columns_of_whole_numbers() -> None:
    """An Arrow column of int64 takes no fraction: what could be one is refused where it is read."""
    for signal in SIGNALS:
        if isinstance(signal, Field | OverLinks):
            assert signal.whole == (ARROW[signal.metric] == "int64"), signal.metric


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("key", "metrics"),
    [
        pytest.param("temperature_margin", ["temperature_margin_celsius"], id="call"),
        pytest.param(library.MEMORY_TEMPERATURE, ["memory_temperature_celsius"], id="field"),
        pytest.param("gpm.5", ["tensor_active_ratio"], id="gpm metric"),
        pytest.param("field.165.7", ["nvlink_active_links", "up"], id="link"),
    ],
)
def test_every_code_of_nvml_is_null_with_its_reason_and_the_value_comes_back_with_the_driver(
    nvml_scene: Scene, code: int, key: str, metrics: list[str]
) -> None:
    """Never zero, never an exception, and nothing of other fields unless the GPU itself is lost."""
    nvml_scene.read()
    nvml_scene.say(key, f"!{code}")
    refused = [nvml_scene.read() for _ in range(REFUSED_TIMES + 1)]
    nvml_scene.driver.heal()
    back = [nvml_scene.read() for _ in range(2)][-1]
    for made in refused:
        assert made.values.keys().isdisjoint(metrics)
        assert reasons(made, *metrics) == {reason_of(code)}
        assert made.lost == (code in LOST)
        assert code in LOST or made.failures.keys() == set(metrics)
    assert back.failures == {}


@pytest.mark.parametrize("code", CODES)
def test_when_the_batched_call_fails_the_other_calls_still_give_values(nvml_scene: Scene, code: int) -> None:
    """Whatever a driver says to the one call of all fields, power and temperature are read, unless the GPU is lost."""
    nvml_scene.say("fields", f"!{code}")
    made = nvml_scene.read()
    assert reasons(made, "energy_joules", "ecc_uncorrected_volatile_count") == {reason_of(code)}
    assert made.lost == (code in LOST)
    assert made.values.get("power_watts") == (None if code in LOST else 691.5)


def test_what_was_never_given_is_asked_for_rarely_and_counted_each_time(nvml_scene: Scene) -> None:
    """A card that does not have thirty of the fields is not asked for them each second."""
    for key in (library.MEMORY_TEMPERATURE, "temperature_margin"):
        nvml_scene.say(key, library.NOT_SUPPORTED)
    metrics = ["memory_temperature_celsius", "temperature_margin_celsius"]
    for _ in range(REFUSED_TIMES):
        assert reasons(nvml_scene.read(), *metrics) == {FieldFailure.UNSUPPORTED}
    nvml_scene.driver.heal()
    assert reasons(nvml_scene.read(), *metrics) == {FieldFailure.UNSUPPORTED}
    later = nvml_scene.read(after=ASK_AGAIN_SECONDS)
    assert later.failures == {}
    assert later.values["memory_temperature_celsius"] == 70.0


def test_an_old_driver_is_asked_by_the_older_names(nvml_scene: Scene) -> None:
    """Where a function has no newer form, the older one tells; where it has a newer struct, the older struct does."""
    old = {"memory_used": str(1 << 30), "memory_total": str(4 << 30), "memory_free": str(3 << 30)}
    old |= {"temperature": "55", "clocks_event_reasons": "8"}
    for key, value in old.items():
        nvml_scene.say(f"{key}_v1", value)
        nvml_scene.say(key, "!13")
    nvml_scene.say("memory_reserved", "!13")
    nvml_scene.say("fabric_version", "2")
    made = nvml_scene.read()
    assert made.values["memory_used_mib"] == 1_024.0
    assert made.values["memory_free_mib"] == 3_072.0
    assert made.values["temperature_celsius"] == 55.0
    assert made.values["clocks_event_reasons"] == 8
    assert made.values["fabric_state"] == 3.0
    assert made.failures == dict.fromkeys(["memory_reserved_mib", "fabric_health"], FieldFailure.UNSUPPORTED)


@pytest.mark.parametrize(
    ("key", "said", "metric", "reason"),
    [
        (library.ECC_CORRECTED, str((1 << 64) - 1), "ecc_corrected_volatile_count", FieldFailure.UNSUPPORTED),
        (library.PCIE_REPLAY, "4294967295u", "pcie_replay_count", FieldFailure.UNSUPPORTED),
        (library.ECC_CORRECTED, str(1 << 63), "ecc_corrected_volatile_count", FieldFailure.DRIVER_ERROR),
        (library.ECC_CORRECTED, "0.5", "ecc_corrected_volatile_count", FieldFailure.DRIVER_ERROR),
        (library.ECC_CORRECTED, "nan", "ecc_corrected_volatile_count", FieldFailure.DRIVER_ERROR),
        ("field.38", str((1 << 63) - 1), "nvlink_crc_error_count", None),
        ("performance_state", "32", "performance_state", FieldFailure.UNSUPPORTED),
        ("memory_used", str((1 << 64) - 1), "memory_used_mib", FieldFailure.UNSUPPORTED),
        ("sram_volatile_parity", str((1 << 64) - 1), "sram_ecc_uncorrected_volatile_count", FieldFailure.UNSUPPORTED),
        ("clocks_event_reasons", str(1 << 63), "clocks_event_reasons", FieldFailure.DRIVER_ERROR),
    ],
)
def test_marks_and_impossible_numbers_are_null(
    nvml_scene: Scene, key: str, said: str, metric: str, reason: FieldFailure | None
) -> None:
    """NVML's -1 is "not available" in whatever type it comes; what fits no column is no value either."""
    nvml_scene.say(key, said)
    made = nvml_scene.read()
    assert reasons(made, metric) == {reason}
    assert (metric in made.values) == (reason is None)


def test_a_sum_that_no_column_takes_is_null(nvml_scene: Scene) -> None:
    """Two counters near their end are more than 64 bits with a sign."""
    for field in ("field.38", "field.45"):
        nvml_scene.say(field, str((1 << 63) - 1))
    nvml_scene.say("field.163.*", str(1 << 62))
    assert reasons(nvml_scene.read(), "nvlink_crc_error_count") == {FieldFailure.DRIVER_ERROR}


@pytest.mark.parametrize("cost", list(CostClass))
def test_only_what_is_due_is_read(nvml_scene: Scene, cost: CostClass) -> None:
    """A slow metric is null in the rows in between, and no failure."""
    nvml_scene.read()
    made = nvml_scene.read(frozenset({cost, CostClass.SECOND}))
    assert made.failures == {}
    assert set(made.values) == {name for name in NAMES if COSTS[name] in {cost, CostClass.SECOND}}


def test_between_two_seconds_the_chosen_few_are_read_anew_and_the_rest_repeats(nvml_scene: Scene) -> None:
    """Ten rows a second cost ten readings of what somebody chose, and one of everything else."""
    nvml_scene.read()
    nvml_scene.read(SECOND)
    nvml_scene.say("power_usage", "500000")
    nvml_scene.say("temperature", "99")
    made = nvml_scene.read(frozenset(), after=0.1, fast=frozenset({"power_watts"}))
    assert made.values["power_watts"] == 500.0
    assert made.values["temperature_celsius"] == 61.0
    assert set(made.values) == {name for name in NAMES if COSTS[name] is CostClass.SECOND}
    assert nvml_scene.read(SECOND, after=0.9).values["temperature_celsius"] == 99.0


def test_a_value_is_not_repeated_once_it_is_old(nvml_scene: Scene) -> None:
    """A row shows nothing that is older than the second it belongs to."""
    nvml_scene.read()
    made = nvml_scene.read(frozenset(), after=REPEAT_SECONDS_MAX + 0.1, fast=frozenset({"power_watts"}))
    assert set(made.values) == {"power_watts"}


def test_a_slow_metric_can_be_among_the_chosen_few(nvml_scene: Scene) -> None:
    """Who wants a clock at ten a second gets it."""
    nvml_scene.read()
    made = nvml_scene.read(frozenset(), after=0.1, fast=frozenset({"memory_clock_mhz"}))
    assert made.values["memory_clock_mhz"] == 2_619.0


def test_a_gpu_that_is_lost_says_so_of_every_metric_that_was_due(nvml_scene: Scene) -> None:
    """Its reading has no value that was made up, and one reason a metric."""
    nvml_scene.read()
    nvml_scene.driver.lose(0)
    made = nvml_scene.read()
    assert made.lost
    assert made.values == {}
    assert {made.failures[name] for name in NAMES} == {FieldFailure.GPU_LOST}


def test_a_handle_from_before_a_reset_is_that_of_a_lost_gpu(nvml_scene: Scene) -> None:
    """The child asks for a new one."""
    nvml_scene.read()
    nvml_scene.say("generation", "1")
    assert nvml_scene.read().lost


def test_links_of_hopper_are_added_up(nvml_scene: Scene) -> None:
    """Where a card counts errors link by link, the GPU's row has their sum, and how many links are up."""
    for field in (38, 45, 52, 59, 215):
        nvml_scene.say(f"field.{field}", library.NOT_SUPPORTED)
        nvml_scene.say(f"field.{field}.4294967295", library.NOT_SUPPORTED)
    for link, errors in ((0, 5), (17, 7)):
        nvml_scene.say(f"field.163.{link}", str(errors))
        nvml_scene.say(f"field.161.{link}", str(2 * errors))
        nvml_scene.say(f"field.162.{link}", str(3 * errors))
    nvml_scene.say("field.165.4", "0u")
    made = nvml_scene.read()
    assert made.failures == {}
    counts = {"nvlink_crc_error_count": 12, "nvlink_replay_count": 24, "nvlink_recovery_count": 36}
    assert made.values.items() >= (counts | {"nvlink_links": 18, "nvlink_active_links": 17}).items()


def test_each_nvlink_has_a_row_of_its_own(nvml_scene: Scene) -> None:
    """What one link of eighteen does is not lost in the sum. KiB become bytes, MB/s Gbit/s."""
    for field in (202, 204, 208, 211, 212, 215, 221):
        nvml_scene.say(f"field.{field}.*", library.NOT_SUPPORTED)
    nvml_scene.say("field.163.4", "11")
    nvml_scene.say("field.165.4", "0u")
    made = nvml_scene.read()
    assert [link.port for link in made.links] == list(range(18))
    assert made.links[4].values == pytest.approx(
        {
            "up": 0.0,
            "rate_gigabits_per_second": 212.496,
            "tx_bytes": 138_000 * 1_024,
            "rx_bytes": 139_000 * 1_024,
            "crc_error_count": 11,
            "replay_count": 0,
            "recovery_count": 0,
        }
    )
    assert made.links[5].values["up"] == 1.0
    newer = ["symbol_error_count", "receive_error_count", "link_integrity_error_count", "transmit_discard_count"]
    assert made.failures == dict.fromkeys(newer, FieldFailure.UNSUPPORTED)
    assert nvml_scene.read(SECOND).links == []


def test_the_newer_counters_of_a_link_are_bytes(nvml_scene: Scene) -> None:
    """Where a link has both, NVLink 5's tell; where it has one kind of recoveries, those do."""
    nvml_scene.say("field.162.*", library.NOT_SUPPORTED)
    nvml_scene.say("field.215.0", "6")
    made = nvml_scene.read()
    assert made.failures == {}
    assert made.links[0].values.items() >= {"tx_bytes": 202_000, "rx_bytes": 204_000, "recovery_count": 6}.items()


def test_rows_of_links_have_only_columns_of_links_and_whole_numbers_where_they_belong(nvml_scene: Scene) -> None:
    """A fraction or a number beyond 64 bits in a link's counter is null and counted."""
    kinds = {metric.name: metric.arrow for metric in LINK_METRICS}
    assert {name for name in link_sources() if kinds[name] == "int64"} == nvlink.LINK_WHOLE
    nvml_scene.say("field.163.0", "0.5")
    nvml_scene.say("field.202.0", library.NOT_SUPPORTED)
    nvml_scene.say("field.138.0", str(1 << 62))
    made = nvml_scene.read()
    assert made.links[0].values.keys().isdisjoint({"crc_error_count", "tx_bytes"})
    assert reasons(made, "tx_bytes") == {FieldFailure.DRIVER_ERROR}


def test_blackwell_counts_over_all_links(nvml_scene: Scene) -> None:
    """NVLink 5 has counters of its own; blocks that error correction mended are told by how much there was to mend."""
    for field, value in {**{field: field for field in range(235, 251)}, 215: 4, 221: 9}.items():
        nvml_scene.say(f"field.{field}.4294967295", str(value))
    for field in (38, 45, 52, 59):
        nvml_scene.say(f"field.{field}", library.NOT_SUPPORTED)
    nvml_scene.say("field.220.4294967295", str(3 << 8 | 12))
    values = nvml_scene.read().values
    assert values["nvlink_recovery_count"] == 4
    assert values["nvlink_symbol_error_count"] == 9
    assert values["nvlink_fec_few_count"] == sum(range(236, 239))
    assert values["nvlink_fec_some_count"] == sum(range(239, 243))
    assert values["nvlink_fec_many_count"] == sum(range(243, 251))
    assert values["nvlink_effective_bit_error_ratio"] == pytest.approx(3e-12)


@pytest.mark.parametrize(("word", "ratio"), [(0, 0.0), (1 << 8, 1.0), (0xF0C, 15e-12), (0x1FF, 1e-255)])
def test_a_bit_error_ratio_is_mantissa_and_exponent(word: int, ratio: float) -> None:
    """Four bits of mantissa and eight of a negative exponent of ten."""
    assert nvlink.bit_error_ratio(word) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("said", "active"),
    [("0u", None), ("4294967294u", 72), (library.NOT_SUPPORTED, None), ("-4s", None)],
    ids=["none", "absurd", "unsupported", "negative"],
)
def test_the_number_of_links_is_believed_up_to_a_bound(nvml_scene: Scene, said: str, active: int | None) -> None:
    """A driver that claims four billion links is asked for 72."""
    nvml_scene.say(library.NVLINKS, said)
    made = nvml_scene.read()
    assert made.values.get("nvlink_active_links") == active
    assert made.values["power_watts"] == 691.5


def test_processes_are_those_that_compute_share_or_draw(nvml_scene: Scene) -> None:
    """Each once, whichever way it uses the GPU; a list that is refused leaves the others."""
    assert nvml_scene.device.process_ids() == []
    nvml_scene.say("compute_processes", "4242 17")
    nvml_scene.say("mps_processes", "4243")
    nvml_scene.say("graphics_processes", "17 99")
    assert nvml_scene.device.process_ids() == [17, 99, 4242, 4243]
    nvml_scene.say("graphics_processes", library.NO_PERMISSION)
    assert nvml_scene.device.process_ids() == [17, 4242, 4243]
    nvml_scene.say("compute_processes", "!13")
    nvml_scene.say("compute_processes_v2", "18")
    assert nvml_scene.device.process_ids() == [18, 4243]


def test_processes_that_nobody_may_see_are_a_fault(nvml_scene: Scene) -> None:
    """An empty list would say that the GPU is idle."""
    for kind in ("compute", "mps", "graphics"):
        nvml_scene.say(f"{kind}_processes", library.NO_PERMISSION)
    with pytest.raises(DriverFault) as refused:
        nvml_scene.device.process_ids()
    assert refused.value.reason is FieldFailure.NOT_PERMITTED


def test_a_gpu_says_where_it_is(nvml_scene: Scene) -> None:
    """The kernel log names a GPU by its place on the bus."""
    assert nvml_scene.device.pci() == "00000000:1B:00.0"
