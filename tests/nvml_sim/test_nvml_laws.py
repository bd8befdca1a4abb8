"""The laws of the simulated GPU: clock, power, energy, temperature. Time is the test's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt_sim import cards
from kvwatt_sim.gpu import power_law_w
from kvwatt_sim.nvml.build import NvmlLibs
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.spec import GpuSpec

IDLE, POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL = 0x1, 0x4, 0x8, 0x20, 0x40


@pytest.fixture
def spec(gpus: SimGpus) -> GpuSpec:
    return gpus.spec(0)


def test_power_is_the_same_in_c_and_in_python(gpus: SimGpus, spec: GpuSpec) -> None:
    """On a grid of clocks and activities both languages state one law."""
    gpus.set_temperature(0, 40.0)
    checked = 0
    for clock_mhz in spec.supported_mhz[::7]:
        gpus.request_lock(0, (clock_mhz, clock_mhz))
        gpus.advance(spec.switch_latency_s)
        for compute in (0.0, 0.3, 0.9):
            for memory in (0.0, 0.1, 1.0):
                gpus.publish(0, compute, memory)
                now = gpus.read(0)
                if not now.reasons & POWER_CAP:
                    assert now.clock_mhz == clock_mhz
                    checked += 1
                expected_w = power_law_w(spec.power_law, now.clock_mhz, compute, memory)
                assert now.power_w == pytest.approx(expected_w, rel=1e-12)
    assert checked > 150


def test_a_lock_takes_effect_after_the_switch_latency(gpus: SimGpus, spec: GpuSpec) -> None:
    """The actual clock changes only when the latency is over, and the same holds for the reset."""
    gpus.publish(0, 0.5, 0.5)
    for lock, before_mhz, after_mhz in (((210, 1200), 2520, 1200), (None, 1200, 2520)):
        gpus.request_lock(0, lock)
        gpus.advance(spec.switch_latency_s * 0.9)
        assert gpus.clock_mhz(0) == before_mhz
        gpus.advance(spec.switch_latency_s * 0.2)
        assert gpus.clock_mhz(0) == after_mhz
        assert gpus.lock_mhz(0) == lock


def test_the_latest_of_quick_requests_wins(gpus: SimGpus, spec: GpuSpec) -> None:
    """More requests than fit within one latency end at the last one."""
    for step in range(40):
        gpus.request_lock(0, (210, spec.supported_mhz[step + 1]))
    gpus.advance(spec.switch_latency_s)
    assert gpus.lock_mhz(0) == (210, spec.supported_mhz[40])


def test_the_idle_clock_is_held_up_by_the_minimum(gpus: SimGpus, spec: GpuSpec) -> None:
    """An idle GPU goes to its idle clock or to the lock's minimum, and work finds the maximum at once."""
    assert (gpus.clock_mhz(0), gpus.read(0).reasons) == (210, IDLE)
    gpus.request_lock(0, (600, 1200))
    gpus.advance(spec.switch_latency_s)
    assert (gpus.clock_mhz(0), gpus.load_clock_mhz(0)) == (600, 1200)
    gpus.publish(0, 0.1, 0.1)
    assert gpus.clock_mhz(0) == 1200


def test_the_load_clock_is_kept_for_a_while(gpus: SimGpus, spec: GpuSpec) -> None:
    """Short gaps between steps do not drop the clock; a long one does."""
    gpus.publish(0, 0.5, 0.5)
    gpus.advance(1.0)
    gpus.publish(0, 0.0, 0.0)
    gpus.advance(spec.idle_after_s * 0.9)
    assert (gpus.clock_mhz(0), gpus.read(0).reasons) == (2520, 0)
    gpus.advance(spec.idle_after_s * 0.2)
    assert (gpus.clock_mhz(0), gpus.read(0).reasons) == (210, IDLE)


def test_a_power_cap_lowers_the_actual_clock(gpus: SimGpus, spec: GpuSpec) -> None:
    """Under a cap the clock is the highest one whose power is within it, and the reason is given."""
    gpus.publish(0, 0.7, 0.3)
    free_w = gpus.power_w(0)
    assert (gpus.clock_mhz(0), gpus.read(0).reasons) == (2520, 0)
    gpus.set_power_cap_w(0, 120.0)
    now = gpus.read(0)
    assert free_w > 120.0 >= now.power_w
    assert now.reasons == POWER_CAP
    above_mhz = spec.supported_mhz[spec.supported_mhz.index(now.clock_mhz) + 1]
    assert power_law_w(spec.power_law, above_mhz, 0.7, 0.3) > 120.0
    gpus.set_power_cap_w(0, 275.0)
    assert gpus.clock_mhz(0) == 2520


def test_heat_lowers_the_clock_step_by_step(gpus: SimGpus, spec: GpuSpec) -> None:
    """Above the slowdown temperature the clock falls, far above it to half, and it recovers when cool."""
    gpus.publish(0, 0.5, 0.5)
    gpus.set_temperature(0, spec.slowdown_c + 1)
    warm = gpus.read(0)
    gpus.set_temperature(0, spec.slowdown_c + 7)
    hot = gpus.read(0)
    gpus.set_temperature(0, spec.slowdown_c - 5)
    cool = gpus.read(0)
    assert (warm.reasons, hot.reasons, cool.reasons) == (SW_THERMAL, SW_THERMAL | HW_THERMAL | HW_SLOWDOWN, 0)
    assert 2520 > warm.clock_mhz > hot.clock_mhz
    assert hot.clock_mhz <= 1260
    assert cool.clock_mhz == 2520


def test_temperature_follows_power(libs: NvmlLibs, tmp_path: Path, spec: GpuSpec) -> None:
    """A badly cooled GPU warms up, throttles by itself and stays near its slowdown temperature."""
    hot = replace(spec, heat_rise_c=140.0, thermal_tau_s=5.0)
    with SimGpus.create(tmp_path / "hot", [hot], manual_time=True, libs=libs) as gpus:
        gpus.publish(0, 0.8, 0.2)
        start_c = gpus.read(0).temperature_c
        gpus.advance(2.0)
        assert start_c < gpus.read(0).temperature_c < hot.slowdown_c
        gpus.advance(300.0)
        now = gpus.read(0)
        assert now.temperature_c == pytest.approx(hot.slowdown_c, abs=6.0)
        assert now.reasons & SW_THERMAL
        assert now.clock_mhz < 2520


def test_energy_is_the_integral_of_power(gpus: SimGpus, spec: GpuSpec) -> None:
    """Over activities, a lock in flight and an idle drop the energy is the sum of power times time."""
    law = spec.power_law
    expected_j = gpus.power_w(0) * 3.0
    gpus.advance(3.0)
    gpus.publish(0, 0.6, 0.2)
    gpus.advance(2.0)
    gpus.request_lock(0, (210, 1200))
    gpus.advance(1.0)
    gpus.publish(0, 0.0, 0.0)
    gpus.advance(10.0)
    expected_j += power_law_w(law, 2520, 0.6, 0.2) * (2.0 + spec.switch_latency_s)
    expected_j += power_law_w(law, 1200, 0.6, 0.2) * (1.0 - spec.switch_latency_s)
    expected_j += power_law_w(law, 1200, 0.0, 0.0) * spec.idle_after_s
    expected_j += power_law_w(law, 210, 0.0, 0.0) * (10.0 - spec.idle_after_s)
    assert gpus.energy_j(0) == pytest.approx(expected_j, rel=1e-9)


def test_the_visible_counter_refreshes_on_its_own_beat(gpus: SimGpus, spec: GpuSpec) -> None:
    """Between refreshes the counter stands; at each it shows the exact energy of that moment."""
    gpus.publish(0, 0.5, 0.5)
    gpus.advance(10 * spec.energy_update_s + 0.01)
    exact_j, first = gpus.energy_j(0), gpus.read(0)
    assert first.visible_j == pytest.approx(exact_j - 0.01 * first.power_w, rel=1e-6)
    gpus.advance(0.03)
    assert gpus.read(0).visible_j == first.visible_j
    gpus.advance(0.03)
    assert gpus.read(0).visible_j == pytest.approx(first.visible_j + first.power_w * spec.energy_update_s)


def test_looking_does_not_change_what_happens(libs: NvmlLibs, tmp_path: Path, spec: GpuSpec) -> None:
    """A GPU watched every 7 ms and one left alone end with the same energy and temperature."""
    with SimGpus.create(
        tmp_path / "two", [spec, replace(spec, uuid="GPU-2")], manual_time=True, libs=libs
    ) as gpus:
        for gpu in (0, 1):
            gpus.publish(gpu, 0.4, 0.4)
            gpus.request_lock(gpu, (210, 1500))
        for _ in range(300):
            gpus.advance(0.007)
            gpus.read(0)
        watched, alone = gpus.read(0), gpus.read(1)
    assert watched.energy_j == pytest.approx(alone.energy_j, rel=1e-9)
    assert watched.visible_j == pytest.approx(alone.visible_j, rel=1e-9)
    assert watched.temperature_c == pytest.approx(alone.temperature_c, rel=1e-9)
    assert watched.average_w == pytest.approx(alone.average_w, rel=1e-9)


ACTIVITY = st.tuples(st.floats(0, 1), st.floats(0, 1)) | st.just((0.0, 0.0))
STEPS = st.lists(
    st.tuples(
        st.floats(0, 5),
        ACTIVITY,
        st.none() | st.tuples(st.integers(0, 154), st.integers(0, 154)),
        st.floats(100, 275),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_laws_hold_on_any_history(stage: SimGpus, steps: list[tuple[Any, ...]]) -> None:
    """Energy never falls, the counter never leads it, the clock is supported and power keeps the cap."""
    spec = stage.spec(0)
    clocks = spec.supported_mhz
    for seconds, (compute, memory), lock, cap_w in steps:
        before = stage.read(0)
        stage.publish(0, compute, memory)
        stage.request_lock(0, lock and (clocks[min(lock)], clocks[max(lock)]))
        stage.set_power_cap_w(0, cap_w)
        stage.advance(seconds)
        now = stage.read(0)
        assert now.energy_j >= before.energy_j + seconds * spec.power_law.idle_w * 0.999
        assert before.visible_j <= now.visible_j <= now.energy_j
        assert now.clock_mhz in clocks
        assert now.lock_mhz is None or now.clock_mhz <= now.lock_mhz[1] or now.clock_mhz == clocks[0]
        assert now.power_w <= cap_w or now.clock_mhz == clocks[0]
        assert 0 <= now.busy <= 1
        assert now.temperature_c >= spec.ambient_c


@pytest.mark.parametrize("name", ["l20", "a100", "h200"])
def test_cards_run_cool_at_full_load(name: str, libs: NvmlLibs, tmp_path: Path) -> None:
    """A shipped card under full load for ten minutes does not throttle for heat and keeps its cap."""
    spec = cards.load(name).gpu_spec("GPU-card")
    with SimGpus.create(tmp_path / "card", [spec], manual_time=True, libs=libs) as gpus:
        gpus.publish(0, 1.0, 1.0)
        gpus.advance(600.0)
        now = gpus.read(0)
    assert now.reasons in (0, POWER_CAP)
    assert 0.3 * spec.cap_w < now.power_w <= spec.cap_w
