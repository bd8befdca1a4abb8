"""The estimate of savings that REST shows: the same work at two clocks, in the steady state of each."""

from __future__ import annotations

import pytest
from worlds import SLO, card, model, shape, traffic

from kvwatt.state import Binding, Decision
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.workload import generate
from kvwattd.savings import PERIOD_S, Savings

RATE_PER_S, SECONDS = 1.2, 600.0
CLOCK_MHZ = 1200


def decided(clock_mhz: int | None) -> Decision:
    return Decision(0.0, clock_mhz, Binding.ENERGY, "")


def judged(rate_per_s: float = RATE_PER_S, **told: float) -> Savings:
    savings = Savings()
    savings.judge(0.0, model(), shape(), SLO, traffic(rate_per_s, **told), 0.7)
    savings.observe(1.0, None, True)  # the first reading only begins
    return savings


def test_it_is_what_the_plant_saves() -> None:
    """A fixed clock against the default for the same requests: within three points of the energy used."""
    requests = generate(RATE_PER_S, SECONDS, seed=100)
    used_j = {
        clock: replay(card(), shape(), requests, FixedClock(clock), SECONDS).energy_j
        for clock in (CLOCK_MHZ, None)
    }
    told = {
        "prompt_mean": sum(r.prompt_tokens for r in requests) / len(requests),
        "output_mean": sum(r.output_tokens for r in requests) / len(requests),
    }
    savings = judged(len(requests) / SECONDS, **told)
    savings.observe(used_j[CLOCK_MHZ], decided(CLOCK_MHZ), True)
    assert savings.ratio == pytest.approx(1.0 - used_j[CLOCK_MHZ] / used_j[None], abs=0.03)


def test_shadow_says_what_would_have_been_saved() -> None:
    """The same ratio from the other side: what was used is the baseline then."""
    active, shadow = judged(), judged()
    active.observe(100.0, decided(CLOCK_MHZ), True)
    shadow.observe(100.0, decided(CLOCK_MHZ), False)
    assert shadow.baseline_j == 100.0
    assert shadow.ratio == pytest.approx(active.ratio)


@pytest.mark.parametrize("clock_mhz", [None, CLOCK_MHZ], ids=["driver default", "nothing known"])
def test_nothing_is_saved_at_default_or_without_a_model(clock_mhz: int | None) -> None:
    """No clock was chosen, or nothing is known of other clocks: what was used is the baseline."""
    savings = judged() if clock_mhz is None else Savings(_skip=False)
    savings.observe(100.0, decided(clock_mhz), True)
    assert savings.saved_j == 0.0
    assert savings.baseline_j == 100.0


def test_it_is_judged_anew_every_few_seconds() -> None:
    """Not at every page."""
    savings = Savings()
    assert savings.due(0.0)
    savings.judge(0.0, None, None, SLO, None, 0.7)
    assert not savings.due(PERIOD_S / 2)
    assert savings.due(PERIOD_S)
