"""The cap ladder: reservations, admission."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.scheduling.cap_ladder import Admission, Ladder

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
