"""When holding a request pays: overflow in drawn lengths, and what bounds the rule."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kvwatt.scheduling.proj import first_full, first_over
from kvwatt.scheduling.remaining import DRAWS, LearnedLengths, Shares
from kvwatt.scheduling.worth import Seat, holding_pays

rows = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 300)), min_size=1, max_size=12)
seats = st.lists(
    st.builds(Seat, st.integers(1, 900), st.lists(st.integers(1, 300), min_size=4, max_size=4)),
    min_size=1,
    max_size=12,
)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=12), st.integers(0, 2000), st.integers(1, 40))
def test_the_first_full_step_is_that_of_a_walk_step_by_step(tokens: list[int], room: int, size: int) -> None:
    """Blocks counted one by one; nobody leaves."""
    step = 0
    while sum(-(-(n + step) // size) for n in tokens) <= room:
        step += 1
    assert first_full(tokens, size, room) == step


@given(rows, st.integers(1, 900), st.integers(1, 300), st.integers(0, 12_000))
def test_the_first_overflow_is_that_of_a_walk_where_some_leave(
    inside: list[tuple[int, int]], held: int, own: int, room: int
) -> None:
    """In tokens, until the newcomer leaves."""
    total = held + sum(tokens for tokens, _ in inside)
    leaving = sorted((left, tokens) for tokens, left in inside if left < own)
    full = max((room - total) // (len(inside) + 1) + 1, 0)
    found = first_over(leaving, total, len(inside) + 1, room, full)
    needed = (
        held + step + sum(tokens + step for tokens, left in inside if step < left) for step in range(own)
    )
    walked = next((step for step, tokens in enumerate(needed) if tokens > room), None)
    assert walked == (found if found < own else None)


@given(seats, seats, st.integers(1, 700), st.integers(0, 300))
def test_more_memory_never_makes_holding_pay(
    inside: list[Seat], waiting: list[Seat], room: int, more: int
) -> None:
    """Overflows are rarer and later."""
    if holding_pays(inside, waiting[0], room + more, 16):
        assert holding_pays(inside, waiting[0], room, 16)


@given(seats, seats)
def test_nobody_is_held_in_an_empty_engine_nor_where_all_fit(inside: list[Seat], waiting: list[Seat]) -> None:
    """Waiting would never end, or be for nothing."""
    assert not holding_pays([], waiting[0], 0, 16)
    assert not holding_pays(
        inside, waiting[0], sum((s.tokens + 300) // 16 + 1 for s in [*inside, waiting[0]]), 16
    )


def test_a_hold_needs_the_chance_of_a_preemption_against_the_wait() -> None:
    """Seventeen steps to an overflow: held if it is sure, started if rare and the wait long."""
    ten = [Seat(160, [200] * DRAWS) for _ in range(3)]
    new = Seat(160, [100] * DRAWS)
    assert holding_pays(ten, new, 47, 16)
    rare = Seat(160, [9] * (DRAWS - 1) + [100])
    assert not holding_pays(ten, rare, 47, 16)
    assert not holding_pays(ten, new, 47, 16, horizon=8)


@given(st.lists(st.integers(1, 500), min_size=16, max_size=60), st.integers(0, 400), st.integers(0, 300))
def test_drawn_lengths_are_of_those_that_got_as_far(seen: list[int], made: int, number: int) -> None:
    """One in each slice, so that they rise with the share; always the same of one request."""
    lengths, shares = LearnedLengths(), Shares(Random(DRAWS)).of(number)
    for length in seen:
        lengths.finished(length)
    left = lengths.drawn(made, 1 << 20, shares)
    assert sorted(int(share * DRAWS) for share in shares) == list(range(DRAWS))
    assert [n for _, n in sorted(zip(shares, left, strict=True))] == sorted(left)
    if max(seen) > made:
        assert {made + n for n in left} <= set(seen)
