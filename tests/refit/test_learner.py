"""What becomes an operating point: busy seconds at one clock, as it was read back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvwatt.samples import sample_values
from kvwatt.state import GpuSample
from kvwatt.traffic import Interval
from kvwattd.learning import Learner

BUSY = Interval(
    dt_s=0.5,
    arrivals=1,
    iterations=25,
    prompt_tokens=100,
    generation_tokens=200,
    itl_sum_s=4.0,
    itl_count=200,
    running_mean=8,
    kv_tokens_mean=8000,
    busy=True,
)


def gpu(clock_mhz: int = 1000, power_w: float = 150.0, uuid: str = "GPU-1") -> dict[str, GpuSample]:
    return {uuid: GpuSample(0.0, uuid, clock_mhz, power_w, 0.0, 50.0, 0.9, 0)}


def feed(learner: Learner, count: int, interval: Interval | None = BUSY, clock_mhz: int = 1000) -> None:
    for _ in range(count):
        learner.observe("m", interval, gpu(clock_mhz), 64.0, True)


def test_two_busy_seconds_make_one_sample() -> None:
    """Means over the span: latency by tokens, load and power by time, prompts as chunks per step."""
    learner = Learner()
    feed(learner, 3)
    assert len(learner.ring) == 0
    feed(learner, 1)
    [sample] = learner.ring.samples()
    assert sample_values(sample) == pytest.approx([1, 1000, 8, 8000, 64, 1 / 16, 0.02, 150])


def test_the_slowest_gpu_gives_the_clock_and_all_give_the_power() -> None:
    """A group steps at the pace of its slowest member."""
    learner = Learner()
    both = gpu(1200, 100.0, "GPU-1") | gpu(900, 120.0, "GPU-2")
    for _ in range(4):
        learner.observe("m", BUSY, both, 64.0, True)
    [sample] = learner.ring.samples()
    assert (sample.clock_mhz, sample.power_w) == (900.0, 220.0)


@pytest.mark.parametrize(
    "interval",
    [
        None,
        replace(BUSY, busy=False),
        replace(BUSY, iterations=3),
        replace(BUSY, itl_count=0, itl_sum_s=0),
        replace(BUSY, itl_sum_s=0),
    ],
)
def test_idle_or_short_intervals_teach_nothing_and_end_the_span(interval: Interval | None) -> None:
    """Three busy intervals, a break, three more: no sample, for none of the spans is long enough."""
    learner = Learner()
    feed(learner, 3)
    feed(learner, 1, interval)
    feed(learner, 3)
    assert len(learner.ring) == 0


def test_a_clock_in_motion_teaches_nothing() -> None:
    """Neither while a switch is fresh nor across two clocks."""
    learner = Learner()
    for _ in range(10):
        learner.observe("m", BUSY, gpu(), 64.0, False)
    feed(learner, 3, clock_mhz=1000)
    feed(learner, 3, clock_mhz=1500)
    assert len(learner.ring) == 0
    feed(learner, 1, clock_mhz=1510)
    assert [sample.clock_mhz for sample in learner.ring.samples()] == [1500.0]


def test_another_served_model_starts_anew() -> None:
    """What was seen of one model is not taken for another; numbers go on."""
    learner = Learner()
    feed(learner, 8)
    learner.observe("other", BUSY, gpu(), 64.0, True)
    assert len(learner.ring) == 0 and learner.ring.last == 2


def test_samples_of_an_earlier_run_are_taken_up() -> None:
    """New numbers are above all that any version was fitted to."""
    first = Learner()
    feed(first, 12)
    learner = Learner()
    learner.restore("m", first.ring.samples(), 40)
    feed(learner, 4)
    assert [sample.number for sample in learner.ring.samples()] == [1, 2, 3, 41]
