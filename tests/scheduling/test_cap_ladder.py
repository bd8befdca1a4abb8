"""Admission by reservation: caps, learned lengths, horizon, priorities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.scheduling.cap_ladder import Admission, Ladder
from kvwatt.scheduling.remaining import LearnedLengths, Remaining, conditional_left

requests = st.lists(
    st.tuples(st.integers(1, 2000), st.integers(0, 1500), st.integers(1, 2048)), min_size=1, max_size=30
)


@given(st.integers(0, 5000), st.integers(1, 6000), st.integers(1, 600), st.floats(1.1, 8.0))
def test_a_cap_leaves_room_for_the_next_token_and_never_exceeds_the_limit(
    made: int, limit: int, first: int, growth: float
) -> None:
    """Above what was produced; at most max_tokens unless that is already reached."""
    cap = Ladder(first, growth).cap(made, limit)
    assert cap > made
    assert cap <= max(limit, made + 1)


@given(requests, st.integers(0, 40_000))
def test_what_is_admitted_fits_up_to_its_caps(waiting: list[tuple[int, int, int]], capacity: int) -> None:
    """All admitted together never need more than the capacity; an empty engine takes one regardless."""
    ladder = Ladder(64)
    admission = Admission(ladder, capacity, [], [], [])
    taken = [r for r in waiting if admission.admits(*r)]
    assert taken
    if len(taken) > 1:
        held = [prompt + made for prompt, made, _ in taken]
        assert ladder.reserved(held, [r[1] for r in taken], [r[2] for r in taken]) <= capacity


@given(requests)
def test_a_longer_first_cap_admits_no_more(waiting: list[tuple[int, int, int]]) -> None:
    """Reserving more for each never admits more of them."""
    counts = []
    for first in (32, 64, 128, 256):
        admission = Admission(Ladder(first), 8000, [], [], [])
        count = 0
        for request in waiting:
            if not admission.admits(*request):
                break
            count += 1
        counts.append(count)
    assert counts == sorted(counts, reverse=True)


def test_a_ladder_that_does_not_climb_is_refused() -> None:
    """The error names both values."""
    with pytest.raises(ValueError, match=r"got 256 and 1\.0"):
        Ladder(256, 1.0)


lengths = st.lists(st.integers(1, 2000), min_size=1, max_size=60)


@given(lengths, st.integers(0, 2500), st.floats(0.0, 0.99))
def test_what_is_left_is_a_quantile_of_the_longer_ones(seen: list[int], made: int, quantile: float) -> None:
    """At least the asked share of those who got as far end no later than the expected end."""
    left = conditional_left(sorted(seen), made, quantile)
    longer = [length for length in seen if length > made]
    assert (left is None) == (not longer)
    if left is not None:
        assert made + left in longer
        assert sum(length <= made + left for length in longer) > quantile * len(longer) - 1e-9


@given(st.lists(st.integers(0, 50), max_size=80), st.integers(1, 20), st.integers(0, 60))
def test_only_the_newest_finished_count(finished: list[int], memory: int, made: int) -> None:
    """As a model that was given no others; and of an empty answer nothing is learned."""
    long, short = LearnedLengths(memory=memory, fewest=1), LearnedLengths(memory=memory, fewest=1)
    for length in finished:
        long.finished(length)
    for length in [length for length in finished if length][-memory:]:
        short.finished(length)
    assert long.left(made, 100) == short.left(made, 100)
    assert 1 <= long.left(made, 100) <= max(100 - made, 1)


def test_who_outlives_all_that_were_seen_doubles() -> None:
    """Before anything is known the first cap, beyond the longest as much again, never past the limit."""
    lengths = LearnedLengths(first_tokens=256, fewest=4)
    assert (lengths.left(0, 4096), lengths.left(200, 4096), lengths.left(300, 4096)) == (256, 56, 300)
    for _ in range(4):
        lengths.finished(400)
    assert (lengths.left(100, 4096), lengths.left(500, 4096), lengths.left(500, 600)) == (300, 500, 100)


rules = st.sampled_from([Ladder(64), LearnedLengths()])


@given(requests, requests, rules, st.integers(1, 200), st.integers(0, 40_000))
def test_a_shorter_horizon_holds_nobody_more(
    running: list[tuple[int, int, int]],
    waiting: list[tuple[int, int, int]],
    rule: Remaining,
    steps: int,
    capacity: int,
) -> None:
    """Looking less far ahead never admits fewer; an infinite horizon is none."""
    counts = []
    for horizon in (1, steps, 4096, None):
        admission = of(rule, running, capacity, horizon=horizon)
        counts.append(admitted(admission, waiting))
    assert counts == sorted(counts, reverse=True)
    assert counts[-2] == counts[-1]


def test_one_step_ahead_is_what_vllm_does() -> None:
    """A horizon of one step admits whoever has room for its next token beside everybody's next token."""
    for capacity, fits in ((603, True), (602, False)):
        admission = Admission(Ladder(256), capacity, [100, 200], [10, 20], [512, 512], horizon=1)
        assert admission.admits(300, 0, 512) == fits


@given(requests, st.integers(100, 20_000))
def test_the_urgent_are_not_held_for_the_less_urgent(
    running: list[tuple[int, int, int]], capacity: int
) -> None:
    """Those with a higher number may be preempted for them, so only the others count."""
    some = [r for i, r in enumerate(running) if i % 2]
    mixed = of(Ladder(64), running, capacity, priorities=[i % 2 for i in range(len(running))])
    urgent = of(Ladder(64), [r for i, r in enumerate(running) if not i % 2], capacity)
    everyone = of(Ladder(64), running, capacity)
    asked = (200, 0, 512)
    assert mixed.admits(*asked, priority=0) == urgent.admits(*asked)
    late = of(Ladder(64), running, capacity, priorities=[0] * len(running))
    assert late.admits(*asked, priority=1) == everyone.admits(*asked)
    assert len(some) == len(running) // 2


def of(
    rule: Remaining,
    running: list[tuple[int, int, int]],
    capacity: int,
    priorities: list[int] | None = None,
    horizon: int | None = None,
) -> Admission:
    held = [prompt + made for prompt, made, _ in running]
    made, limits = [r[1] for r in running], [r[2] for r in running]
    return Admission(rule, capacity, held, made, limits, priorities, horizon)


def admitted(admission: Admission, waiting: list[tuple[int, int, int]]) -> int:
    """Length of the prefix that may start."""
    for count, request in enumerate(waiting):
        if not admission.admits(*request):
            return count
    return len(waiting)


def test_nonsense_is_refused() -> None:
    """The errors name the values."""
    with pytest.raises(ValueError, match=r"got 1\.5, 512, 256 and 16"):
        LearnedLengths(quantile=1.5)
    with pytest.raises(ValueError, match="at least 1 step or None, got 0"):
        Admission(Ladder(), 100, [], [], [], horizon=0)
