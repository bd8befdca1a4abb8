"""Which operating points are kept: the newest, and of older ones some of every kind."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refit_world import served

from kvwatt.samples import PER_STRATUM, RECENT, STRATA, Sample, SampleRing, sample_from, sample_values

POINT = Sample(1, 1000, 8, 8000, 256, 0.01, 0.02, 150.0)


@given(
    st.lists(st.tuples(st.sampled_from([600, 900, 1500, 2000]), st.floats(1, 256)), max_size=300),
    st.integers(1, 50),
    st.integers(1, 6),
    st.integers(1, 5),
)
def test_memory_is_bounded_and_in_order(
    points: list[tuple[int, float]], recent: int, strata: int, per_stratum: int
) -> None:
    """Never more than asked for, oldest first, and always the newest ones."""
    ring = SampleRing(recent, strata, per_stratum)
    for number, (clock, batch) in enumerate(points, 1):
        ring.add(replace(POINT, number=number, clock_mhz=clock, decode_batch=batch))
    kept = [sample.number for sample in ring.samples()]
    assert len(kept) == len(ring) <= recent + strata * per_stratum
    assert kept == sorted(set(kept))
    newest = min(recent, len(points))
    assert kept[len(kept) - newest :] == list(range(len(points) - newest + 1, len(points) + 1))


def test_a_rare_clock_is_not_pushed_out_by_a_common_one() -> None:
    """A few seconds at another clock are remembered through hours of the usual one."""
    ring = SampleRing()
    rare = [replace(POINT, number=n, clock_mhz=600) for n in range(1, 6)]
    for sample in rare:
        ring.add(sample)
    for number in range(6, 20 * RECENT):
        ring.add(replace(POINT, number=number))
    assert [sample for sample in ring.samples() if sample.clock_mhz == 600] == rare
    assert len(ring) == RECENT + PER_STRATUM + len(rare)
    assert len(ring) < RECENT + STRATA * PER_STRATUM


def test_numbers_only_go_up() -> None:
    """A sample that is not newer than the last one is a mistake of the caller."""
    ring = SampleRing(first=7)
    with pytest.raises(ValueError, match="not newer than 7"):
        ring.add(replace(POINT, number=7))


def test_a_sample_survives_being_written_down() -> None:
    """Numbers out, numbers in; unknown power is null, as JSON has no NaN."""
    for sample in (*served(1, 5), replace(POINT, power_w=math.nan)):
        again = sample_from(sample_values(sample))
        assert sample_values(again) == sample_values(sample)
    assert sample_values(replace(POINT, power_w=math.nan))[-1] is None


@pytest.mark.parametrize(
    "change",
    [
        {"clock_mhz": 0.0},
        {"itl_s": math.nan},
        {"itl_s": -0.1},
        {"kv_tokens": math.inf},
        {"chunks_per_step": -1.0},
        {"power_w": 0.0},
        {"power_w": math.inf},
    ],
)
def test_nonsense_is_no_sample(change: dict[str, float]) -> None:
    """Every number is checked before it can be learned."""
    with pytest.raises(ValueError):
        replace(POINT, **change)


def test_too_few_numbers_are_no_sample() -> None:
    """A file of another layout is refused."""
    with pytest.raises(ValueError, match="a sample has the numbers number, clock_mhz"):
        sample_from([1, 2, 3])
