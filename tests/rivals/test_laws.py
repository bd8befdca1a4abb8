"""The laws over arrays are those of the plant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwatt_sim import gpu
from kvwatt_sim.cards import load
from kvwatt_sim.replay import laws

CARDS = (load("l20"), load("a100", 2))


@given(
    card=st.sampled_from(CARDS),
    place=st.floats(0.0, 1.0),
    batch=st.integers(0, 256),
    context=st.integers(1, 4000),
    prefill=st.integers(0, 2048),
    behind=st.integers(0, 4000),
)
def test_time_and_energy_equal_the_plants(
    card: laws.Card, place: float, batch: int, context: int, prefill: int, behind: int
) -> None:
    """One step by arrays takes and draws what it does in the plant."""
    clock = card.supported_mhz[round(place * (len(card.supported_mhz) - 1))]
    kv = batch * context
    pairs = prefill * (behind + prefill / 2)
    args = [np.array([float(value)]) for value in (clock, batch, kv, prefill, pairs)]
    done = laws.work(card, *args)
    at = gpu.step(card, clock, batch, kv, prefill, behind)
    watts = gpu.power_w(card, clock, at.compute, at.memory)
    assert done.time_s[0] == pytest.approx(at.time_s, rel=1e-9)
    assert laws.energy_j(card, args[0], done)[0] == pytest.approx(card.tp * watts * at.time_s, rel=1e-9)
