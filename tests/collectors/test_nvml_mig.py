"""MIG: instances as samples of their own, which come and go."""

import pytest

from app.bench.fake_driver import library
from collectors.cost_class import CostClass
from collectors.errors import FieldFailure
from collectors.nvml.sampling import Sample
from tests.collectors.nvml_scene import EVERYTHING, SECOND, Scene


def names(samples: list[Sample]) -> list[tuple[str | None, str | None]]:
    """Instance and uuid of each."""
    return [(made.instance, made.uuid) for made in samples]


def test_a_gpu_that_is_not_divided_is_one_sample(nvml_scene: Scene) -> None:
    """And its instance is null, not an empty text."""
    assert names(nvml_scene.read_all()) == [(None, None)]


def test_each_instance_is_a_sample_behind_that_of_its_gpu(nvml_scene: Scene) -> None:
    """Named by GPU instance and compute instance, in NVML's order."""
    nvml_scene.driver.divide(0, 0, 2, 5)
    expected = [(None, None), ("7/0", "MIG-0-0"), ("9/0", "MIG-0-2"), ("12/0", "MIG-0-5")]
    assert names(nvml_scene.read_all()) == expected
    assert names(nvml_scene.read_all(SECOND)) == expected


def test_an_instance_has_its_own_memory_and_profile_and_the_gpu_keeps_the_rest(nvml_scene: Scene) -> None:
    """Power and temperature belong to the board; nothing of it is put to an instance's account."""
    nvml_scene.driver.divide(0, 1)
    nvml_scene.read_all()
    whole, instance = nvml_scene.read_all()
    assert instance.values["memory_used_mib"] == 1_001.0
    assert instance.values["memory_total_mib"] == 9_856.0
    assert instance.values["sm_active_ratio"] == pytest.approx(0.21)
    assert {"power_watts", "temperature_celsius", "energy_joules"}.isdisjoint(instance.values)
    assert whole.values["power_watts"] == 691.5
    assert whole.values["memory_used_mib"] == 70_000.0


def test_what_the_driver_refuses_for_a_divided_gpu_is_null_in_its_row(nvml_scene: Scene) -> None:
    """NVML gives no utilisation of a GPU in MIG mode."""
    nvml_scene.driver.divide(0, 0)
    nvml_scene.say("utilization_gpu", library.NOT_SUPPORTED)
    whole, _ = nvml_scene.read_all()
    assert whole.failures["gpu_utilization_percent"] is FieldFailure.UNSUPPORTED
    assert whole.values["power_watts"] == 691.5


def test_an_instance_that_is_made_appears_and_one_that_is_removed_disappears(nvml_scene: Scene) -> None:
    """They are listed every ten seconds."""
    nvml_scene.driver.divide(0, 0)
    seen = [names(nvml_scene.read_all())]
    nvml_scene.driver.divide(0, 0, 1)
    seen += [names(nvml_scene.read_all(SECOND)), names(nvml_scene.read_all())]
    nvml_scene.driver.heal()
    seen += [names(nvml_scene.read_all())]
    one, two = [(None, None), ("7/0", "MIG-0-0")], [(None, None), ("7/0", "MIG-0-0"), ("8/0", "MIG-0-1")]
    assert seen == [one, one, two, [(None, None)]]


def test_an_instance_that_is_removed_has_no_sample_in_the_very_next_reading(nvml_scene: Scene) -> None:
    """What does not answer is looked for at once: no row of nulls, and no failure, for what is not there any more."""
    nvml_scene.driver.divide(0, 0, 1)
    nvml_scene.read_all()
    nvml_scene.driver.divide(0, 1)
    samples = nvml_scene.read_all(SECOND)
    assert names(samples) == [(None, None), ("8/0", "MIG-0-1")]
    assert [made.failures for made in samples] == [{}, {}]


def test_an_instance_in_trouble_keeps_its_sample_with_its_reasons(nvml_scene: Scene) -> None:
    """It is there, and says nothing: that is a row of nulls, each counted."""
    nvml_scene.driver.divide(0, 0)
    nvml_scene.read_all()
    for key in ("memory_used", "gpm_sample"):
        nvml_scene.say(key, library.UNKNOWN, "0:0")
    whole, instance = nvml_scene.read_all(SECOND)
    assert instance.values == {}
    assert set(instance.failures.values()) == {FieldFailure.DRIVER_ERROR}
    assert whole.failures == {}


@pytest.mark.parametrize(("key", "code"), [("mig_mode", "!999"), ("mig_count_max", "!999"), ("mig_mode", "!4")])
def test_instances_that_cannot_be_listed_are_one_failure_and_the_gpu_is_read(
    nvml_scene: Scene, key: str, code: str
) -> None:
    """The failure is one of the whole reading, for nobody knows how many rows it cost."""
    nvml_scene.driver.divide(0, 0)
    nvml_scene.say(key, code)
    whole = nvml_scene.read_all()[0]
    assert whole.failures["*"] in {FieldFailure.DRIVER_ERROR, FieldFailure.NOT_PERMITTED}
    assert whole.values["power_watts"] == 691.5


def test_instances_that_were_known_go_on_while_they_cannot_be_listed(nvml_scene: Scene) -> None:
    """A driver in trouble with its list still answers for what is on it."""
    nvml_scene.driver.divide(0, 0)
    nvml_scene.read_all()
    nvml_scene.say("mig_mode", "!999")
    samples = nvml_scene.read_all()
    assert names(samples) == [(None, None), ("7/0", "MIG-0-0")]
    assert samples[0].failures == {"*": FieldFailure.DRIVER_ERROR}


def test_a_driver_that_claims_a_billion_instances_is_asked_for_a_few(nvml_scene: Scene) -> None:
    """What comes from outside has a bound."""
    nvml_scene.driver.divide(0, 0)
    nvml_scene.say("mig_count_max", "1000000000")
    assert len(nvml_scene.read_all()) == 2


def test_what_a_gpu_refused_before_it_was_divided_is_asked_for_again(nvml_scene: Scene) -> None:
    """And the other way round: the two modes refuse different things."""
    nvml_scene.say("temperature_margin", library.NOT_SUPPORTED)
    for _ in range(4):
        nvml_scene.read()
    nvml_scene.driver.heal()
    nvml_scene.driver.divide(0, 0)
    assert nvml_scene.read().values["temperature_margin_celsius"] == 26.0


def test_every_instance_has_samples_of_its_own_and_gives_them_back(nvml_scene: Scene) -> None:
    """Two for the GPU and two for each instance, none after a pause, none of an instance that is gone."""
    nvml_scene.driver.divide(0, 0, 1)
    for _ in range(3):
        nvml_scene.read_all()
    assert nvml_scene.living_samples == 6
    nvml_scene.driver.divide(0, 1)
    nvml_scene.read_all()
    assert nvml_scene.living_samples == 4
    nvml_scene.read_all(profile=False)
    assert nvml_scene.living_samples == 0


def test_an_instance_knows_its_processes(nvml_scene: Scene) -> None:
    """Who uses which part of a divided GPU."""
    nvml_scene.driver.divide(0, 0, 3)
    found = [(one.text, one.name, one.device.process_ids()) for one in nvml_scene.device.instances()]
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert found == [("7/0", name, [4_000]), ("10/0", name, [4_003])]


def test_between_two_seconds_an_instance_repeats_nothing_and_fails_nothing(nvml_scene: Scene) -> None:
    """Ten readings a second are of chosen metrics; an instance has those of them that it has."""
    nvml_scene.driver.divide(0, 0)
    nvml_scene.read_all()
    _, instance = nvml_scene.read_all(frozenset(), after=0.1, fast=frozenset({"power_watts", "memory_used_mib"}))
    assert instance.values.keys() == {"memory_used_mib", "memory_total_mib", "memory_free_mib"}
    assert instance.failures == {}


def test_a_lost_gpu_has_no_instances(nvml_scene: Scene) -> None:
    """They went with it."""
    nvml_scene.driver.divide(0, 0)
    nvml_scene.read_all()
    nvml_scene.driver.lose(0)
    (made,) = nvml_scene.read_all(EVERYTHING - {CostClass.RARE})
    assert made.lost
