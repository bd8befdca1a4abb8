"""Energy as a sum of counter deltas: what is counted, what is estimated, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwattd.telemetry.energy_counter import EnergyCounter, new_doubts

steps = st.lists(st.tuples(st.floats(0.01, 100.0), st.integers(0, 10**12), st.floats(0.0, 300.0)), min_size=2)


@settings(max_examples=200, deadline=None)
@given(steps)
def test_sum_laws(readings: list[tuple[float, int, float]]) -> None:
    """Whatever the counter does, the sum never falls nor exceeds what the GPU could have drawn."""
    counter, t_s, total_j = EnergyCounter(300.0), 0.0, 0.0
    for wait_s, value_mj, power_w in readings:
        t_s += wait_s
        reading = counter.update(t_s, value_mj, power_w)
        assert reading.total_j >= total_j
        assert reading.total_j - total_j <= 1.5 * 300.0 * (wait_s + 0.1) + 1e-6
        assert 0.0 <= reading.estimated_j <= reading.total_j + 1e-9
        total_j = reading.total_j


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.05, 20.0), st.floats(0.0, 300.0)), min_size=1))
def test_true_counter_is_taken_as_it_is(readings: list[tuple[float, float]]) -> None:
    """A counter that tells the truth is summed exactly; nothing is estimated, reset or refused."""
    counter, t_s, true_mj = EnergyCounter(300.0), 0.0, 5_000
    counter.update(0.0, true_mj, 100.0)
    for wait_s, power_w in readings:
        t_s, true_mj = t_s + wait_s, true_mj + int(power_w * wait_s * 1e3)
        reading = counter.update(t_s, true_mj, power_w)
    assert reading.total_j == pytest.approx((true_mj - 5_000) / 1e3)
    assert (reading.estimated_j, reading.resets, reading.refused) == (0.0, 0, 0)


def test_counter_begins_anew() -> None:
    """A falling counter is a reset: mean power bridges the gap, labelled; the value is the new base."""
    counter = EnergyCounter(300.0)
    counter.update(0.0, 1_000_000, 100.0)
    reading = counter.update(10.0, 50, 200.0)
    assert (reading.total_j, reading.estimated_j, reading.resets) == (1500.0, 1500.0, 1)
    reading = counter.update(20.0, 1_000_050, 100.0)
    assert (reading.total_j, reading.estimated_j, reading.resets) == (2500.0, 1500.0, 1)


def test_implausible_delta() -> None:
    """A delta above 1.5 x limit x time is refused and bridged; the next one counts again."""
    counter = EnergyCounter(300.0)
    counter.update(0.0, 0, 100.0)
    reading = counter.update(10.0, 10_000_000, 100.0)
    assert (reading.total_j, reading.refused, reading.estimated_j) == (1000.0, 1, 1000.0)
    assert counter.update(20.0, 11_000_000, 100.0).total_j == 2000.0


def test_no_power_from_short_windows() -> None:
    """Power is derived from the counter only over a second or more: its steps would look like spikes."""
    counter = EnergyCounter(300.0)
    for step in range(10):
        reading = counter.update(step * 0.1, (step // 2) * 20_000, 100.0)
        assert reading.counter_power_w is None
    reading = counter.update(1.0, 100_000, 100.0)
    assert reading.counter_power_w == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("reported_w", "disagrees"), [(100.0, False), (108.0, False), (115.0, True), (85.0, True)]
)
def test_counter_against_power(reported_w: float, disagrees: bool) -> None:
    """Counter and reported power that differ by more than a tenth are flagged."""
    counter = EnergyCounter(300.0)
    counter.update(0.0, 0, reported_w)
    assert counter.update(2.0, 200_000, reported_w).disagrees is disagrees


def test_a_frozen_counter_is_bridged() -> None:
    """A counter that stands still while power is drawn must not read as energy saved; at rest it may."""
    counter = EnergyCounter(300.0)
    counter.update(0.0, 7, 100.0)
    reading = counter.update(10.0, 7, 100.0)
    assert (reading.total_j, reading.estimated_j, reading.frozen) == (1000.0, 1000.0, 1)
    assert counter.update(10.1, 7, 100.0).total_j == 1000.0  # within a refresh that is how it looks
    resting = EnergyCounter(300.0)
    resting.update(0.0, 7, 1.0)
    assert resting.update(10.0, 7, 1.0).frozen == 0


def test_a_gap_is_counted_and_not_compared() -> None:
    """Over a stretch without readings the counter is believed; the power between is unknown."""
    counter = EnergyCounter(300.0)
    counter.update(0.0, 0, 300.0)
    reading = counter.update(60.0, 3_000_000, 300.0)
    assert (reading.total_j, reading.estimated_j, reading.gaps) == (3000.0, 0.0, 1)
    assert not reading.disagrees
    reading = counter.update(62.0, 3_200_000, 300.0)
    assert reading.disagrees
    assert reading.disagreements == 1


def test_doubts_are_told_when_they_begin() -> None:
    """A reset, a jump, a frozen counter and a disagreement each give one line, once."""
    counter = EnergyCounter(300.0)
    readings = [counter.update(0.0, 0, 100.0)]
    said = []
    for t_s, value_mj, power_w in (
        (2.0, 200_000, 100.0),  # as it should be
        (4.0, 400_000, 150.0),  # 100 W by the counter
        (6.0, 600_000, 150.0),
        (8.0, 90_000_000, 150.0),
        (10.0, 5, 150.0),
        (12.0, 5, 150.0),
        (14.0, 5, 150.0),
    ):
        readings.append(counter.update(t_s, value_mj, power_w))
        said.append([doubt.split(";")[0] for doubt in new_doubts(readings[-2], readings[-1])])
    assert [len(told) for told in said] == [0, 1, 0, 1, 1, 1, 0]
    assert "differ by more than a tenth: 100 W by the counter" in said[1][0]
    assert "grew by more than the GPU can draw" in said[3][0]
    assert "began anew" in said[4][0]
    assert "stands still" in said[5][0]


def test_same_time_twice() -> None:
    """A reading of the same or an earlier moment adds nothing."""
    counter = EnergyCounter(300.0)
    counter.update(5.0, 0, 100.0)
    assert counter.update(5.0, 10_000, 100.0).total_j == 0.0
    assert counter.update(4.0, 20_000, 100.0).total_j == 0.0
    assert counter.update(6.0, 30_000, 100.0).total_j == 30.0


@pytest.mark.parametrize("limit_w", [0.0, -1.0, float("nan"), float("inf")])
def test_limit_must_make_sense(limit_w: float) -> None:
    """A power limit that is no positive number is refused by value."""
    with pytest.raises(ValueError, match="power_limit_w = "):
        EnergyCounter(limit_w)
