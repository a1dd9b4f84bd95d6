"""From counters to rates: over wrap-around, reset, pauses, and beside GPM."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bench.fake_driver import library
from collectors.errors import FieldFailure
from collectors.nvml.pcie import BYTES_PER_SECOND_MAX
from collectors.nvml.rates import GAP_SECONDS_MAX, WRAP_FACTOR_MAX, CounterRate
from tests.collectors.nvml_scene import SECOND, Scene, reasons

MAXIMUM = 1e9
RATES = [f"{link}_{way}_bytes_per_second" for link in ("pcie", "nvlink") for way in ("tx", "rx")]


def rates_of(counts: list[int], seconds: float = 1.0, maximum: float = MAXIMUM) -> list[float | None]:
    """What a counter's readings, one every ``seconds``, are as rates."""
    rate = CounterRate(maximum)
    return [rate.observe(count, 100.0 + number * seconds) for number, count in enumerate(counts)]


def test_the_first_reading_has_no_rate_and_the_next_one_has() -> None:
    """A counter's value since the driver was loaded is no rate."""
    assert rates_of([5_000, 5_000, 6_000], seconds=0.5) == [None, 0.0, 2_000.0]


@pytest.mark.parametrize("bits", [32, 64])
def test_a_counter_that_wraps_goes_on(bits: int) -> None:
    """What was counted before and after the end is added up."""
    end = 1 << bits
    assert rates_of([end - 1_100, end - 600, (400) % end, 900]) == [None, 500.0, 1_000.0, 500.0]


def test_a_counter_that_was_set_back_has_no_rate_once() -> None:
    """Never negative, never a spike: 1.3e9 would be what a wrap of 32 bits gives here."""
    before = 3_000_000_000
    assert rates_of([before, before + 100, 0, 50], maximum=4e9) == [None, 100.0, None, 50.0]


def test_a_counter_that_goes_back_before_there_was_a_rate_has_none() -> None:
    """With nothing to compare, a wrap cannot be told from a reset."""
    assert rates_of([4_294_967_000, 100, 200]) == [None, None, 100.0]


def test_what_the_link_cannot_carry_is_no_rate() -> None:
    """A counter that jumps forward was set, and counted nothing."""
    assert rates_of([0, 10, 10 + 2 * int(MAXIMUM), 20 + 2 * int(MAXIMUM)]) == [None, 10.0, None, 10.0]


def test_over_a_long_gap_there_is_no_rate() -> None:
    """The mean of an hour's pause is not what a row at one instant shows."""
    assert rates_of([0, 10], seconds=GAP_SECONDS_MAX + 1) == [None, None]
    assert rates_of([0, 60], seconds=GAP_SECONDS_MAX) == [None, 1.0]


def test_a_clock_that_stands_still_repeats_the_rate() -> None:
    """Nothing is divided by no time."""
    rate = CounterRate(MAXIMUM)
    assert [rate.observe(0, 1.0), rate.observe(9, 2.0), rate.observe(12, 2.0), rate.observe(14, 3.0)] == [
        None,
        9.0,
        9.0,
        5.0,
    ]


@given(
    steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=20),
    bits=st.sampled_from([32, 64]),
    start=st.integers(0, (1 << 64) - 1),
    reset_at=st.integers(0, 20),
    to=st.integers(0, (1 << 32) - 1),
)
def test_no_rate_is_negative_or_beyond_the_link_whatever_the_counter_does(
    steps: list[int], bits: int, start: int, reset_at: int, to: int
) -> None:
    """Wraps and resets in any order; and after going back no rate is more than four times the one before."""
    count, counts = start % (1 << bits), []
    for number, step in enumerate(steps):
        count = to if number == reset_at else (count + step) % (1 << bits)
        counts.append(count)
    rates = rates_of(counts, maximum=2e9)
    for number, rate in enumerate(rates):
        assert rate is None or 0.0 <= rate <= 2e9
        if rate is not None and counts[number] < counts[number - 1]:
            before = rates[number - 1]
            assert before is not None
            assert rate <= WRAP_FACTOR_MAX * before


def without_gpm(scene: Scene) -> None:
    """A card from before Hopper, with NVLink 4 at most."""
    scene.say("gpm", "0")
    for field in (202, 204):
        scene.say(f"field.{field}.4294967295", library.NOT_SUPPORTED)


def count(scene: Scene, pcie: int, nvlink_kib: int) -> None:
    """Let the counters stand at these, and at twice these for what is received."""
    for key, value in ((library.PCIE_TX, pcie), ("field.138.4294967295", nvlink_kib)):
        scene.say(key, str(value))
    for key, value in ((library.PCIE_RX, 2 * pcie), ("field.139.4294967295", 2 * nvlink_kib)):
        scene.say(key, str(value))


def rates_in(scene: Scene, *, after: float = 1.0, profile: bool = True) -> list[float | None]:
    """The four rates of the next reading."""
    values = scene.read(SECOND, after=after, profile=profile).values
    return [values.get(name) for name in RATES]


def test_before_hopper_rates_come_from_counters(nvml_scene: Scene) -> None:
    """PCIe counts bytes, NVLink KiB; until there are two readings the rate is null, which is no failure."""
    without_gpm(nvml_scene)
    count(nvml_scene, 1_000, 1_000)
    # The first reading finds that there is no GPM, the second is the first of the counters.
    assert reasons(nvml_scene.read(SECOND), *RATES) == {FieldFailure.UNSUPPORTED}
    first = nvml_scene.read(SECOND)
    assert reasons(first, *RATES) == {None}
    count(nvml_scene, 3_000, 2_000)
    assert rates_in(nvml_scene, after=2.0) == [1_000.0, 2_000.0, 512_000.0, 1_024_000.0]


def test_nvlink_5_counts_bytes(nvml_scene: Scene) -> None:
    """Where both counters are there, the newer one tells."""
    nvml_scene.say("gpm", "0")
    for _ in range(2):
        nvml_scene.read(SECOND)
    nvml_scene.say("field.202.4294967295", str(1_024_000_000 + 7_000))
    assert rates_in(nvml_scene)[2] == 7_000.0


def test_a_driver_that_resets_all_counters_costs_one_reading_of_the_rates(nvml_scene: Scene) -> None:
    """Null once, without a failure, and then on from there."""
    without_gpm(nvml_scene)
    readings = []
    for total in (10**12, 10**12, 10**12 + 5_000):
        count(nvml_scene, total, total)
        readings.append(rates_in(nvml_scene))
    count(nvml_scene, 10, 10)
    reset = nvml_scene.read(SECOND)
    count(nvml_scene, 20, 20)
    after = rates_in(nvml_scene)
    assert readings[-1] == [5_000.0, 10_000.0, 5_000.0 * 1_024, 10_000.0 * 1_024]
    assert reset.values.keys().isdisjoint(RATES)
    assert reasons(reset, *RATES) == {None}
    assert after == [10.0, 20.0, 10_240.0, 20_480.0]


def test_where_gpm_gives_the_rate_it_wins(nvml_scene: Scene) -> None:
    """Counters move, and nobody asks for them."""
    readings = []
    for total in (0, 10, 20, 30):
        count(nvml_scene, total, total)
        readings.append(nvml_scene.read(SECOND))
    made = readings[-1]
    assert made.values["pcie_tx_bytes_per_second"] == 100.0 * (1 << 20)
    assert made.values["nvlink_tx_bytes_per_second"] == 4_000.0 * (1 << 20)


def test_a_rate_that_gpm_does_not_have_comes_from_its_counter(nvml_scene: Scene) -> None:
    """A card without NVLink 5's counters but with GPM, or the other way round, gives what it has."""
    nvml_scene.say("gpm.61", library.NOT_SUPPORTED)
    nvml_scene.say("field.202.4294967295", "5000")
    for _ in range(3):
        nvml_scene.read(SECOND)
    nvml_scene.say("field.202.4294967295", "6000")
    made = nvml_scene.read(SECOND)
    assert made.values["nvlink_tx_bytes_per_second"] == 1_000.0
    assert made.values["nvlink_rx_bytes_per_second"] == 3_000.0 * (1 << 20)
    assert made.failures == {}


def test_while_profiling_is_paused_rates_come_from_counters(nvml_scene: Scene) -> None:
    """Somebody's Nsight session does not blind the links."""
    for _ in range(2):
        nvml_scene.read(SECOND)
    count(nvml_scene, 100, 100)
    paused = nvml_scene.read(SECOND, profile=False)
    assert paused.values.keys().isdisjoint(RATES)
    assert paused.failures == {}
    count(nvml_scene, 300, 300)
    assert rates_in(nvml_scene, profile=False)[:2] == [200.0, 400.0]


def test_the_bound_of_pcie_is_that_of_its_fastest_generation() -> None:
    """64 GT/s a lane, 16 lanes, 8 bits a byte."""
    assert pytest.approx(64e9 * 16 / 8) == BYTES_PER_SECOND_MAX
