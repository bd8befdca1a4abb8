"""What is concluded from a clock that was read back: laws over any sequence of readings."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kvwattd.guard.obedience import IDLE, LIMITS, SETTLE_S, STRIKES, ClockWatch, Readback, Verdict

DEFAULT_MHZ = 2520
RANGE_MHZ = (300, 1200)
IN_ORDER = {Verdict.UNKNOWN, Verdict.OBEYED, Verdict.LIMITED}
AT_TARGET = Readback(1200, 1.0, 0, None, DEFAULT_MHZ)
ELSEWHERE = st.one_of(st.integers(1260, 2520), st.integers(300, 1050))

Strategy = st.SearchStrategy[Readback]
limits = st.sampled_from(sorted(LIMITS))


def readings(lowest_mhz: int, busy: tuple[float, float], reasons: st.SearchStrategy[int]) -> Strategy:
    clocks = st.integers(lowest_mhz, 1230)
    return st.builds(Readback, clocks, st.floats(*busy), reasons, st.none(), st.just(DEFAULT_MHZ))


obedient = st.one_of(
    readings(1100, (0, 1), st.just(0)),
    readings(210, (0, 0.49), st.just(0)),
    readings(210, (0, 1), st.just(IDLE)),
    readings(210, (0, 1), limits),
)


def watch_after(*readings: Readback) -> tuple[ClockWatch, float]:
    """A watch over a range set at 0 s that has settled, and the time of the next reading."""
    watch = ClockWatch()
    watch.on_change(RANGE_MHZ, 0.0)
    for i, reading in enumerate(readings):
        watch.observe(reading, SETTLE_S + i)
    return watch, SETTLE_S + len(readings)


@given(st.lists(obedient, min_size=1, max_size=30))
def test_an_obedient_gpu_is_never_accused(sequence: list[Readback]) -> None:
    """At its target, idle, or held back by a reason the driver tells: in order, however long."""
    watch, _ = watch_after()
    assert {watch.observe(reading, SETTLE_S + i) for i, reading in enumerate(sequence)} <= IN_ORDER


@given(ELSEWHERE)
def test_a_clock_that_was_never_obeyed_is_not_obeyed(clock_mhz: int) -> None:
    """Busy at another clock without a reason: told at the third reading, not before."""
    watch, now_s = watch_after()
    found = [watch.observe(replace(AT_TARGET, clock_mhz=clock_mhz), now_s + i) for i in range(STRIKES)]
    assert found == [Verdict.UNKNOWN] * (STRIKES - 1) + [Verdict.DISOBEYED]


@given(ELSEWHERE)
def test_a_clock_that_was_obeyed_and_is_another_now_is_somebody_elses(clock_mhz: int) -> None:
    """The lock was in force and is not any more: another program set one."""
    watch, now_s = watch_after(AT_TARGET)
    found = [watch.observe(replace(AT_TARGET, clock_mhz=clock_mhz), now_s + i) for i in range(STRIKES)]
    assert found[-1] is Verdict.FOREIGN


@given(st.integers(1260, 2520), limits)
def test_no_reason_excuses_a_clock_above_the_lock(clock_mhz: int, reason: int) -> None:
    """Power and heat only ever lower a clock."""
    watch, now_s = watch_after()
    high = replace(AT_TARGET, clock_mhz=clock_mhz, reasons=reason)
    assert [watch.observe(high, now_s + i) for i in range(STRIKES)][-1] is Verdict.DISOBEYED


@given(st.integers(210, 2015))
def test_a_low_default_is_somebody_elses_lock(clock_mhz: int) -> None:
    """A busy GPU that nobody holds back, told nothing by this guard, runs near its highest clock."""
    watch = ClockWatch()
    low = replace(AT_TARGET, clock_mhz=clock_mhz)
    assert [watch.observe(low, SETTLE_S + i) for i in range(STRIKES)][-1] is Verdict.FOREIGN
    watch.on_change(None, 100.0)
    top = replace(AT_TARGET, clock_mhz=DEFAULT_MHZ)
    assert watch.observe(top, 102.0) is Verdict.OBEYED


@given(st.lists(ELSEWHERE, min_size=1, max_size=20))
def test_nothing_is_concluded_while_a_switch_settles(clocks_mhz: list[int]) -> None:
    """Within a second of a change the clock may be anything."""
    watch = ClockWatch()
    watch.on_change(RANGE_MHZ, 10.0)
    for clock_mhz in clocks_mhz:
        reading = replace(AT_TARGET, clock_mhz=clock_mhz)
        assert watch.observe(reading, 10.0 + 0.99 * SETTLE_S) is Verdict.UNKNOWN


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_counter_that_falls_is_a_driver_reload(counter_mj: int, by_mj: int) -> None:
    """Energy never falls while a driver is loaded; a counter that stands still or rises is in order."""
    watch, now_s = watch_after(replace(AT_TARGET, counter_mj=counter_mj + by_mj))
    assert watch.observe(replace(AT_TARGET, counter_mj=counter_mj), now_s) is Verdict.RELOADED
    assert watch.observe(replace(AT_TARGET, counter_mj=counter_mj), now_s + 1) in IN_ORDER
