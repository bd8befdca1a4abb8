"""Regimes: the table is complete, the gravest event wins, FAILSAFE is left slowly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvwattd.config import Mode
from kvwattd.regime import HOLDS_CLOCK, TABLE, Event, Facts, Regime, Standing, advance, classify

facts = st.builds(
    Facts,
    mode=st.sampled_from(Mode),
    pending=st.none() | st.just("a first page"),
    fault=st.none() | st.just("lost"),
    overridden=st.booleans(),
    model_missing=st.none() | st.just("none yet"),
)


def test_every_regime_answers_every_event() -> None:
    """No state and event are left undefined."""
    assert set(TABLE) == set(Regime)
    assert all(set(row) == set(Event) for row in TABLE.values())


@given(st.sampled_from(Regime), facts)
def test_a_fault_never_holds_a_clock(regime: Regime, seen: Facts) -> None:
    """Whatever the state, untrusted or unseen input leads to a regime at driver default."""
    if seen.fault is None and seen.pending is None:
        return
    after = advance(Standing(regime, 0.0, ""), seen, 100.0, 0.0, 1.0)
    assert after.regime not in HOLDS_CLOCK


@given(st.sampled_from(Regime), facts)
def test_only_active_mode_holds_a_clock(regime: Regime, seen: Facts) -> None:
    """Neither shadow mode nor off can reach a regime that writes, unless an override was granted."""
    after = advance(Standing(regime, 0.0, ""), seen, 100.0, 0.0, 1.0)
    if seen.mode is not Mode.ACTIVE:
        assert after.regime is not Regime.ACTIVE


def test_failsafe_is_left_only_after_the_recovery_time() -> None:
    """One good page after an outage is not yet trust."""
    good = Facts(Mode.ACTIVE, pending=None, fault=None, overridden=False, model_missing=None)
    failed = Standing(Regime.FAILSAFE, 0.0, "lost")
    assert advance(failed, good, 10.5, 10.0, 1.0).regime is Regime.FAILSAFE
    assert advance(failed, good, 11.0, 10.0, 1.0).regime is Regime.ACTIVE


@pytest.mark.parametrize(
    ("seen", "event"),
    [
        (Facts(Mode.OFF, None, "lost", True, None), Event.SWITCHED_OFF),
        (Facts(Mode.ACTIVE, None, "lost", True, None), Event.UNTRUSTED),
        (Facts(Mode.ACTIVE, "page", None, True, None), Event.NOT_YET_OBSERVED),
        (Facts(Mode.ACTIVE, None, None, True, "none"), Event.OVERRIDDEN),
        (Facts(Mode.ACTIVE, None, None, False, "none"), Event.NO_MODEL),
        (Facts(Mode.SHADOW, None, None, False, None), Event.SHADOWED),
        (Facts(Mode.ACTIVE, None, None, False, None), Event.CLEAR),
    ],
)
def test_the_gravest_event_wins(seen: Facts, event: Event) -> None:
    """Facts that hold together are told by the one that matters most for safety."""
    assert classify(seen)[0] is event
