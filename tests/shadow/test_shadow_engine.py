"""What would be inside the engine at the clocks that shadow mode decides on, and what it would have got."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from blank_page import BLANK
from hypothesis import given
from hypothesis import strategies as st

from kvwatt.policy import PolicyParams
from kvwatt.state import EngineSnapshot, EngineState, Histogram, Metric, RequestState, Slo, SloTarget
from kvwatt.traffic import Traffic
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.replay.kvwatt_controller import KvwattController
from kvwatt_sim.replay.models import compiled_model
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.replay.scenario import clocks, plant
from kvwatt_sim.workload import generate
from kvwattd.config import Mode
from kvwattd.promises import Judged
from kvwattd.shadow.account import TRANSFER_RATIO, would_error_ratio
from kvwattd.shadow.engine import ShadowEngine
from kvwattd.shadow.pace import NO_PACE, Pace, Steps, pace_of
from kvwattd.vllm_plugin.wire import Finished

SLO = Slo(SloTarget(1.0), SloTarget(0.1), SloTarget(10.0))
HALF = Pace(default_s=0.02, would_s=0.04, first_ratio=2.0)
PAGE = replace(BLANK, running=1, kv_usage=0.1, num_blocks=1000)


def page(at_s: float, steps: float, running: int = 1, **more: Histogram) -> EngineSnapshot:
    counted = Histogram((inf,), (steps,), 0.0, steps)
    return replace(PAGE, observed_s=at_s, running=running, iterations=counted, **more)


def inside(arrival_s: float, first_s: float, output: int) -> RequestState:
    return RequestState(arrival_s, 100, 100, output, first_token_s=first_s)


def told(at_s: float, *requests: RequestState) -> EngineState:
    return EngineState(at_s, len(requests), 0, sum(100.0 + r.output_tokens for r in requests), requests)


def followed(pace: Pace, seconds: int = 10) -> ShadowEngine:
    """Fifty steps a second were made for so long."""
    engine = ShadowEngine()
    for second in range(seconds + 1):
        engine.on_page(page(float(second), 50.0 * second), pace, SLO, Judged((), ()))
    return engine


def test_at_driver_default_nothing_differs() -> None:
    """The same requests are inside, as far as they are, and those that finish are judged as they were."""
    engine, state = followed(NO_PACE), told(10.0, inside(1.0, 2.0, 401), inside(9.0, 9.5, 26))
    assert engine.state(state).requests == state.requests
    done = Finished(0, 100, 101, e2e_s=4.0, decode_s=2.0)
    engine.on_page(page(11.0, 550.0), NO_PACE, SLO, Judged([0.5], [done]))
    engine.on_page(page(12.0, 600.0), NO_PACE, SLO, Judged((), ()))
    assert engine.state(told(12.0)).running == 0


def test_at_half_the_pace_requests_are_half_as_far_and_stay_twice_as_long() -> None:
    """A first token that took 0.5 s takes 1; from then on every second step would have been made."""
    engine = followed(HALF)
    (slow,) = engine.state(told(10.0, inside(1.5, 2.0, 401))).requests
    assert (slow.first_token_s, slow.output_tokens) == (2.5, 1 + round(7.5 * 25))
    engine.on_page(page(11.0, 550.0), HALF, SLO, Judged((), [Finished(0, 100, 101, e2e_s=2.2, decode_s=2.0)]))
    (lasting,) = engine.state(told(11.0)).requests
    assert lasting.output_tokens < 101
    kept = {}
    for second in range(12, 16):
        engine.on_page(page(float(second), 50.0 * second), HALF, SLO, Judged((), ()))
        kept |= {m: k for m, k in engine.newest.items() if k.total}
    assert engine.state(told(15.0)).running == 0
    assert kept[Metric.E2E].met == 1.0 and kept[Metric.TBT].met == 1.0


def test_who_has_no_first_token_yet_there_waits() -> None:
    engine = followed(HALF)
    (waiting,) = engine.state(told(10.0, inside(9.0, 9.8, 11))).requests
    assert (waiting.output_tokens, waiting.first_token_s, waiting.computed_prompt_tokens) == (0, None, 0)


def test_a_promise_that_would_break_is_counted_as_broken() -> None:
    """A first token after 0.6 s keeps 1 s; at half the pace it comes after 1.2."""
    engine = followed(HALF)
    engine.on_page(page(11.0, 550.0), HALF, SLO, Judged([0.6, 0.4], ()))
    assert (engine.newest[Metric.TTFT].met, engine.newest[Metric.TTFT].total) == (1.0, 2.0)


def test_sums_are_judged_by_limits_that_are_as_much_shorter() -> None:
    """Of the page's histograms alone: a limit of 0.1 s between tokens is one of 0.05 at half the pace."""
    engine = ShadowEngine()
    bounds = (0.05, 0.1, inf)
    for second, counts in ((0, (0.0, 0.0, 0.0)), (1, (6.0, 10.0, 10.0))):
        tbt = Histogram(bounds, counts, 0.0, counts[-1])
        engine.on_page(page(float(second), 50.0 * second, tbt_s=tbt), HALF, SLO, None)
    assert (engine.newest[Metric.TBT].met, engine.newest[Metric.TBT].total) == (6.0, 10.0)


def test_an_engine_that_rests_makes_no_steps_and_those_who_would_stay_go_on() -> None:
    engine = followed(HALF)
    engine.on_page(page(11.0, 550.0), HALF, SLO, Judged((), [Finished(0, 100, 101, e2e_s=2.2, decode_s=2.0)]))
    for second in range(12, 16):
        engine.on_page(page(float(second), 550.0, running=0), HALF, SLO, Judged((), ()))
    assert engine.state(told(15.0)).running == 0


def test_the_pace_is_the_model_s_at_both_clocks_and_batches() -> None:
    """Driver default is the top clock; a larger batch is slower there, too; a prompt's step takes longer."""
    card = plant("l20")
    shape = card.engine_shape()
    model = compiled_model(card, clocks(card), shape)
    small, large = (8.0, 10_000.0), (16.0, 20_000.0)
    same = pace_of(model, shape, seen(), None, small, small)
    assert same.ratio == 1.0 and same.first_ratio == 1.0 and 0.01 < same.would_s < 0.1
    assert pace_of(model, shape, seen(), None, small, large).ratio < 1.0
    slow = pace_of(model, shape, seen(), 900, small, large)
    assert slow.ratio < pace_of(model, shape, seen(), 1500, small, large).ratio < 1.0
    assert slow.first_ratio > 1.5


def seen() -> Traffic:
    """A request a second of 1,000 tokens, 200 out."""
    none = np.zeros(0)
    return Traffic(1.0, 1.2, 1.0, 1.0, 1000.0, 500.0, none, 200.0, none, 600.0, 0.0, 0.0, 0.0, 60.0, 100.0)


@given(st.lists(st.tuples(st.floats(0.01, 10.0), st.floats(0.1, 500.0)), min_size=1, max_size=30))
def test_steps_and_moments_are_each_other_s_reverse(stretches: list[tuple[float, float]]) -> None:
    """At any moment, those between the points too; and they never go back."""
    steps, at_s = Steps(0.0, 50.0, 1.0), 0.0
    moments = []
    for dt_s, more in stretches:
        at_s += dt_s
        steps.add(at_s, more, 1.0)
        moments += [at_s - dt_s / 2, at_s]
    counted = [steps.at(moment) for moment in moments]
    assert counted == sorted(counted)
    for moment, count in zip(moments, counted, strict=True):
        assert steps.when(count) == pytest.approx(moment, abs=1e-6)


@given(st.floats(0.0, 0.2), st.floats(0.0, 1.0))
def test_the_interval_is_never_narrower_than_shadow_mode_itself_is_off(error: float, would: float) -> None:
    assert would_error_ratio(error, would) >= TRANSFER_RATIO
    assert would_error_ratio(error + 0.01, would) >= would_error_ratio(error, would)


class Asked(KvwattController):
    """Remembers which clocks were asked for."""

    def target(self, now_s: float, plant: VirtualPlant) -> int | None:
        clock = super().target(now_s, plant)
        self.asked = getattr(self, "asked", set()) | {clock}
        return clock


def test_it_claims_what_control_then_saves_and_asks_for_nothing() -> None:
    """On the simulated plant, the same requests in both modes; bench/shadow.py measures it over seeds."""
    card, limits, seconds = plant("l20"), Slo(SloTarget(3.0), SloTarget(0.2), SloTarget(60.0)), 80.0
    requests = generate(1.5, seconds, 103)
    model = compiled_model(card, clocks(card), card.engine_shape())

    def lived(mode: Mode) -> tuple[Asked, float]:
        made = Asked(card, card.engine_shape(), model, limits, PolicyParams(reaction_s=0.8), mode=mode)
        return made, replay(card, card.engine_shape(), requests, made, seconds).energy_j

    default_j = replay(card, card.engine_shape(), requests, FixedClock(None), seconds).energy_j
    (shadow, shadow_j), (active, active_j) = lived(Mode.SHADOW), lived(Mode.ACTIVE)
    assert shadow.asked == {None} and len(active.asked) > 3
    assert shadow_j == pytest.approx(default_j)
    claimed, saved = shadow.run.shadow.savings.ratio, 1.0 - active_j / default_j
    assert claimed == pytest.approx(saved, abs=0.06) and saved > 0.25
    assert min(kept.ratio or 0.0 for kept in shadow.run.shadow.kept.values()) >= 0.98
    assert shadow.run.savings.baseline_j == 0.0
