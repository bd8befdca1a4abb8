"""How many pools are held: laws of the choice, and a fleet whose pools come and go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.kv_budget import KvLoad, Reuse
from kvwatt.kv_pools import Holding, pools_wanted, prompts_late
from kvwatt.lattice import Floats
from kvwatt.state import EngineShape
from kvwatt_sim.cards.load import load
from kvwatt_sim.prefix.conversations import Talk, conversations
from kvwatt_sim.prefix.fleet import Fleet, Sleep, Status, fleet_of, serve_fleet

SHAPE = EngineShape(16, 8001, 256, 2048)
REUSE = Reuse(0.7, (0.0, 30.0, 60.0, 120.0, 600.0))
HELD = Holding(75.0, 36.0, 2520.0, 0.03, 1.2e-4, ttft_limit_s=10.0, tbt_limit_s=0.2)


@dataclass(frozen=True)
class _Steps:
    """A step takes 20 ms and 1 ms a request."""

    def step_time_s(self, clock: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        return np.asarray(0.02 + 0.001 * batch + 1e-4 * prefill)

    def power_w(self, clock: Floats, batch: Floats, kv: Floats, prefill: Floats) -> Floats:
        return np.asarray(100.0 + batch)


def _load(rate: float) -> KvLoad:
    return KvLoad(rate, 1.2 * rate, 8000.0, 300.0, 15.0, 8500.0, 16_000.0)


@settings(deadline=None)
@given(rate=st.floats(0.0, 5.0), more=st.floats(1.0, 3.0), most=st.integers(1, 8))
def test_more_load_never_takes_a_pool_that_was_needed(rate: float, more: float, most: int) -> None:
    """The least count that fits grows with the rate, and the choice fits whenever any count does."""

    def fitting(per_s: float) -> list[int]:
        counts = range(1, most + 1)
        part = [replace(_load(per_s / n), largest_tokens=16_000.0) for n in counts]
        return [n for n, p in zip(counts, part, strict=True) if prompts_late(p, 0.0, HELD) <= HELD.misses]

    few, many = fitting(rate), fitting(more * rate)
    assert set(many) <= set(few)
    chosen = pools_wanted(_load(rate), SHAPE, REUSE, _Steps(), HELD, most)
    assert 1 <= chosen.count <= most
    assert chosen.fits or chosen.count == most


def test_idle_pools_are_given_up_for_their_watts_and_kept_for_their_prefixes() -> None:
    """Nothing to do: one pool. Where holding costs nothing more than not holding: all, they find more."""
    assert pools_wanted(_load(0.0), SHAPE, REUSE, _Steps(), HELD, 4).count == 1
    free = replace(HELD, asleep_w=HELD.ready_w)
    assert pools_wanted(_load(0.3), SHAPE, REUSE, _Steps(), free, 4).count == 4
    overloaded = pools_wanted(_load(50.0), SHAPE, REUSE, _Steps(), HELD, 4)
    assert (overloaded.count, overloaded.fits) == (4, False)
    with pytest.raises(ValueError, match="most"):
        pools_wanted(_load(0.1), SHAPE, REUSE, _Steps(), HELD, 0)


def test_prompts_that_would_wait_too_long_keep_a_pool() -> None:
    """With room for everybody in one pool it is TTFT that asks for a second one, and only where promised."""
    large, never = EngineShape(16, 60_001, 256, 2048), Reuse(0.0, (0.0, 1.0))
    asked = pools_wanted(_load(0.6), large, never, _Steps(), HELD, 4)
    assert asked.fits
    assert asked.count > 1
    unpromised = replace(HELD, ttft_limit_s=None)
    assert pools_wanted(_load(0.6), large, never, _Steps(), unpromised, 4).count == 1


def test_a_fleet_gives_pools_up_and_takes_them_back_and_loses_nobody() -> None:
    """Four, then one, then four again: all are answered, a sleeper is sent nothing and draws less."""
    busy: list[bool] = []
    card, talk = load("l20"), Talk(first_tokens=(400.0, 0.5), system_tokens=64)
    asked = conversations(lambda at: 3.0, 120.0, 5, talk)

    def act(fleet: Fleet, now_s: float, arrivals: int) -> None:
        fleet.resize(1 if 20.0 <= now_s < 80.0 else 4, now_s)
        busy.append(any(m.status is Status.LEAVING and m.serving.inside for m in fleet.members))
        asleep = [m for m in fleet.members if m.status is Status.ASLEEP]
        assert all(m.serving.inside == 0 for m in asleep)
        assert fleet.ready

    moving = fleet_of(card, SHAPE, 4, Sleep(3.0, 90.0, 36.0))
    result = serve_fleet(moving, asked, act, 130.0)
    still = serve_fleet(fleet_of(card, SHAPE, 4, Sleep(3.0, 90.0, 36.0)), asked, lambda *_: None, 130.0)
    assert len(result.records) == len(still.records) == len(asked)
    assert any(busy)  # somebody had to finish first
    assert moving.wakes == 3
    assert result.energy_j < still.energy_j
    assert result.asked_tokens == still.asked_tokens
