"""GPM: two samples kept, a pause for people with a profiler, and cards that do not have it."""

import pytest

from collectors.cost_class import CostClass
from collectors.errors import FieldFailure
from collectors.nvml.profiling import SIGNALS
from collectors.nvml.signals import Profiled
from tests.collectors.nvml_scene import EVERYTHING, SECOND, Scene, reasons

PROFILED = [signal.metric for signal in SIGNALS if isinstance(signal, Profiled)]
ONLY_PROFILED = [name for name in PROFILED if name.endswith("_ratio")]


def test_the_first_reading_has_no_profile_and_fails_nothing(nvml_scene: Scene) -> None:
    """A profile is of the time between two samples."""
    first, second = nvml_scene.read(), nvml_scene.read()
    assert first.values.keys().isdisjoint(PROFILED)
    assert first.failures == {}
    assert second.values.keys() >= set(PROFILED)


def test_two_samples_are_kept_and_used_in_turn(nvml_scene: Scene) -> None:
    """A collector that runs for months holds two samples a GPU."""
    for _ in range(20):
        nvml_scene.read(SECOND)
    assert nvml_scene.living_samples == 2
    nvml_scene.reader.close()
    assert nvml_scene.living_samples == 0


def test_a_pause_is_null_without_failure_and_gives_the_samples_back(nvml_scene: Scene) -> None:
    """Who runs Nsight finds the counters free; afterwards it goes on as from the start."""
    nvml_scene.read()
    nvml_scene.read()
    paused = nvml_scene.read(profile=False)
    assert paused.values.keys().isdisjoint(ONLY_PROFILED)
    assert paused.failures == {}
    assert nvml_scene.living_samples == 0
    again = [nvml_scene.read(), nvml_scene.read()]
    assert [made.values.get("sm_active_ratio") for made in again] == [None, 0.025]
    assert [made.failures for made in again] == [{}, {}]


@pytest.mark.parametrize(
    ("key", "said", "reason"),
    [
        ("gpm", "0", FieldFailure.UNSUPPORTED),
        ("gpm", "!13", FieldFailure.UNSUPPORTED),
        ("gpm_sample", "!4", FieldFailure.NOT_PERMITTED),
        ("gpm_sample", "!19", FieldFailure.DRIVER_ERROR),
        ("gpm_metrics", "!999", FieldFailure.DRIVER_ERROR),
        ("gpm_metrics", "!3", FieldFailure.UNSUPPORTED),
    ],
    ids=["no", "old library", "not permitted", "in use", "unknown", "no metrics"],
)
def test_without_gpm_every_metric_of_it_is_null_with_the_reason(
    nvml_scene: Scene, key: str, said: str, reason: FieldFailure
) -> None:
    """And everything else is read."""
    nvml_scene.say(key, said)
    made = [nvml_scene.read() for _ in range(6)][-1]
    assert reasons(made, *ONLY_PROFILED) == {reason}
    assert made.failures.keys() == set(ONLY_PROFILED)
    assert made.values["power_watts"] == 691.5


def test_after_an_error_of_gpm_the_profile_begins_anew(nvml_scene: Scene) -> None:
    """A sample from before the trouble is compared with none after it."""
    nvml_scene.read()
    nvml_scene.read()
    nvml_scene.say("gpm_sample", "!19")
    failed = nvml_scene.read()
    nvml_scene.driver.heal()
    back = [nvml_scene.read(), nvml_scene.read()]
    assert reasons(failed, *ONLY_PROFILED) == {FieldFailure.DRIVER_ERROR}
    assert [made.values.get("sm_active_ratio") for made in back] == [None, 0.025]


def test_ten_readings_a_second_give_ten_profiles_and_more_do_not(nvml_scene: Scene) -> None:
    """Samples closer together than a tenth of a second mean nothing."""
    fast = frozenset({"sm_active_ratio"})
    nvml_scene.read()
    assert nvml_scene.read(frozenset(), after=0.1, fast=fast).values["sm_active_ratio"] == 0.025
    soon = nvml_scene.read(frozenset(), after=0.01, fast=fast)
    assert "sm_active_ratio" not in soon.values
    assert soon.failures == {}


def test_zero_and_nan_of_gpm_stay_what_they_are(nvml_scene: Scene) -> None:
    """An idle pipe is 0, and a NaN that the driver gives is a NaN."""
    nvml_scene.read()
    nvml_scene.say("gpm.13", "0.0")
    nvml_scene.say("gpm.11", "nan")
    values = nvml_scene.read().values
    assert values["fp16_active_ratio"] == 0.0
    assert values["fp64_active_ratio"] != values["fp64_active_ratio"]  # NaN


def test_the_rarer_tensor_pipes_are_read_every_ten_seconds(nvml_scene: Scene) -> None:
    """They are for somebody who looks, not for a detector."""
    nvml_scene.read()
    assert "tensor_hmma_active_ratio" not in nvml_scene.read(SECOND).values
    assert nvml_scene.read(EVERYTHING - {CostClass.RARE}).values["tensor_hmma_active_ratio"] == 0.075
