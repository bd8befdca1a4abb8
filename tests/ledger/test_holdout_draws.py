"""Which slots are held at default: by chance, each alike, whatever the load."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.holdout import LEAST_LOADS, STRATA, Draws, HoldoutParams, Strata, drawn

seeds = st.binary(min_size=16, max_size=16)


@given(seeds, st.integers(0, 5), st.integers(0, 10**9), st.integers(1, 10_000))
def test_a_draw_is_a_place_in_its_block_and_always_the_same(
    seed: bytes, s: int, block: int, size: int
) -> None:
    assert 0 <= drawn(seed, s, block, size) < size
    assert drawn(seed, s, block, size) == drawn(seed, s, block, size)


def test_every_place_of_a_block_has_the_same_chance() -> None:
    """Chi-square over 20,000 blocks of 10: the statistic of a fair draw is beyond 27.9 once in a thousand."""
    seen = Counter(drawn(b"fixed", 0, block, 10) for block in range(20_000))
    assert sum((seen[i] - 2000) ** 2 / 2000 for i in range(10)) < 27.9


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([0.5, 0.1, 0.02, 0.008]), st.lists(st.floats(0, 1e6), min_size=1, max_size=400))
def test_of_every_block_of_a_stratum_exactly_one_is_held(
    seed: bytes, share: float, loads: list[float]
) -> None:
    """Whatever the loads: so the share is never more than one slot of each stratum beyond what was asked."""
    params = HoldoutParams(share=share)
    draws = Draws(params, seed)
    slots = [draws.next(120.0 * i, load) for i, load in enumerate(loads)]
    for stratum in range(STRATA):
        own = [slot.held for slot in slots if slot.stratum == stratum]
        for start in range(0, len(own) - params.block + 1, params.block):
            assert sum(own[start : start + params.block]) == 1
    assert sum(slot.held for slot in slots) <= share * len(slots) + STRATA
    assert [slot.number for slot in slots] == list(range(1, len(slots) + 1))


def test_high_and_low_load_get_their_share() -> None:
    """A day that swings: of many, each third of the load is held as often as the others, within chance."""
    held: Counter[int] = Counter()
    for day in range(60):
        draws = Draws(HoldoutParams(share=0.02), day.to_bytes(16, "big"))
        slots = [draws.next(120.0 * i, float(i * 37 % 720)) for i in range(720)]
        held.update(slot.stratum for slot in slots[LEAST_LOADS:] if slot.held)
    assert set(held) == set(range(STRATA))
    assert max(held.values()) < 1.35 * min(held.values())


def test_a_share_of_nothing_holds_nothing() -> None:
    draws = Draws(HoldoutParams(share=0.0), b"")
    assert not any(draws.next(120.0 * i, 1.0).held for i in range(1000))


def test_a_stratum_knows_only_loads_from_before() -> None:
    """The load of a slot places it; it moves the bounds for those to come only."""
    strata = Strata()
    assert [strata.place(float(i)) for i in range(LEAST_LOADS)] == [0] * LEAST_LOADS
    assert strata.place(1e9) == STRATA - 1
    assert strata.place(-1.0) == 0


@pytest.mark.parametrize(
    "bad",
    [{"share": -0.1}, {"share": 0.6}, {"warmup_s": 120.0}, {"window_s": float("inf")}, {"settle_s": -1.0}],
)
def test_nonsense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"share|warmup_s"):
        HoldoutParams(**bad)
