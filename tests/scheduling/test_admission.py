"""Admission over requests as vLLM holds them, and the first rung learned from finished ones."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.scheduling.cap_ladder import Ladder
from kvwattd.vllm_plugin.admission import LearnedCap, admissible


@dataclass(frozen=True)
class Held:
    """What is read of vLLM's requests."""

    num_tokens: int
    num_output_tokens: int
    max_tokens: int


held = st.builds(
    lambda prompt, made, limit: Held(prompt + made, made, max(limit, made)),
    st.integers(1, 500),
    st.integers(0, 500),
    st.integers(1, 1000),
)


@given(st.lists(held, max_size=20), st.lists(held, max_size=20), st.integers(100, 20_000))
def test_more_memory_never_admits_fewer(running: list[Held], waiting: list[Held], capacity: int) -> None:
    """Monotone in the capacity, never more than wait, never none in an empty engine."""
    few = admissible(Ladder(64), running, waiting, capacity, 16)
    many = admissible(Ladder(64), running, waiting, 2 * capacity, 16)
    assert 0 <= few <= many <= len(waiting)
    if not running and waiting:
        assert few >= 1


@given(st.lists(held, min_size=1, max_size=20), st.lists(held, max_size=20))
def test_a_cache_without_pressure_holds_nobody(running: list[Held], waiting: list[Held]) -> None:
    """Where all fit up to their limits the ladder changes nothing."""
    everyone = [*running, *waiting]
    room = sum(r.num_tokens - r.num_output_tokens + r.max_tokens + 1 + 8 for r in everyone)
    assert admissible(Ladder(64), running, waiting, room + sum(r.num_tokens for r in everyone), 16) == len(
        waiting
    )


def test_the_first_rung_follows_what_finishes() -> None:
    """Long answers raise it, short ones lower it again; before any, the default stands."""
    cap = LearnedCap(default_tokens=256, memory=32)
    assert cap.ladder.first_cap_tokens == 256
    for _ in range(32):
        cap.finished(1000)
    assert cap.ladder.first_cap_tokens == 1001
    for _ in range(32):
        cap.finished(20)
    assert cap.ladder.first_cap_tokens == 21


def test_nonsense_settings_are_refused() -> None:
    """The error names the values."""
    with pytest.raises(ValueError, match=r"got 256, 0 and 0\.75"):
        LearnedCap(memory=0)
