"""Traffic learned from metrics pages, compared with what the simulated engine really served."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from blank_page import BLANK
from hypothesis import given
from hypothesis import strategies as st
from worlds import card, shape

from kvwatt.decaying_rate import DecayingRate
from kvwatt.lengths import LengthModel
from kvwatt.state import EngineShape, EngineSnapshot, Histogram
from kvwatt.traffic import PROMPTS_S, Interval, TrafficEstimator, aged, interval
from kvwatt_sim.engine import Engine, EventKind, Request, TokenEvent
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.workload import generate

POLL_S = 0.5


def estimator() -> TrafficEstimator:
    return TrafficEstimator(LengthModel(), LengthModel())


def watch(
    rate_per_s: float, duration_s: float, seed: int = 4
) -> tuple[TrafficEstimator, list[Interval], VirtualPlant, list[EngineSnapshot]]:
    """Poll a virtual plant twice a second and fold every page in."""
    plant = VirtualPlant(card(), shape(), generate(rate_per_s, duration_s, seed))
    learned, steps, pages = estimator(), [], []
    for tick in range(int(duration_s / POLL_S)):
        plant.advance(tick * POLL_S)
        pages.append(plant.snapshot())
        step = learned.update(pages[-1])
        if step is not None:
            steps.append(step)
    return learned, steps, plant, pages


def test_arrivals_and_tokens_are_conserved() -> None:
    """What the intervals add up to is what the engine counted."""
    _, steps, plant, pages = watch(1.5, 60.0)
    last = pages[-1]
    assert sum(s.arrivals for s in steps) == last.requests_finished_total + last.running + last.waiting
    inside = plant.request_states()
    generated = plant.served().output_tokens.sum() + sum(r.output_tokens for r in inside)
    assert sum(s.generation_tokens for s in steps) == generated
    prompts = plant.served().prompt_tokens.sum() + sum(r.prompt_tokens for r in inside if r.output_tokens)
    assert sum(s.prompt_tokens for s in steps) == prompts


def test_rate_and_lengths_approach_the_truth() -> None:
    """After minutes of traffic rate and mean lengths are within a fifth of what was served."""
    learned, _, plant, _ = watch(1.5, 240.0)
    seen = learned.traffic()
    assert seen is not None
    served = plant.served()
    assert len(served) > 200
    assert seen.arrival_per_s == pytest.approx(1.5, rel=0.35)
    assert seen.output_mean_tokens == pytest.approx(np.mean(served.output_tokens), rel=0.1)
    assert seen.prompt_mean_tokens == pytest.approx(np.mean(served.prompt_tokens), rel=0.1)


def test_prompts_to_come_are_those_of_the_last_half_minute() -> None:
    """What was computed, whatever the mean of all lengths says; while traffic rises the arrivals, if more."""
    learned, steps, _, _ = watch(1.5, 240.0)
    seen = learned.traffic()
    assert seen is not None
    ages = np.arange(len(steps))[::-1] * POLL_S
    mean = np.average([s.prompt_tokens / s.dt_s for s in steps], weights=np.exp(-ages / PROMPTS_S))
    quiet, rising = replace(seen, surge=0.0), replace(seen, surge=1.0, recent_per_s=10.0)
    assert quiet.prompts_per_s == pytest.approx(mean, rel=0.01)
    assert rising.prompts_per_s == pytest.approx(10.0 * seen.prompt_mean_tokens)
    assert replace(rising, recent_per_s=0.0).prompts_per_s == quiet.prompts_per_s
    unknown = replace(rising, prompt_tokens_per_s=None)
    assert unknown.prompts_per_s == pytest.approx(rising.prompts_per_s)


def test_requests_without_a_first_token_are_counted_exactly() -> None:
    """TTFT and E2E counts of a page tell how many inside still wait for their first token."""
    learned, _, plant, pages = watch(2.5, 60.0)
    seen = learned.traffic()
    assert seen is not None
    plant.advance(pages[-1].observed_s)
    assert seen.unstarted == sum(1 for r in plant.request_states() if r.output_tokens == 0)


def test_a_server_that_ran_before_brings_its_lengths_with_the_first_page() -> None:
    """A restarted daemon does not start to learn lengths from nothing."""
    _, _, _, pages = watch(1.5, 120.0)
    fresh = estimator()
    assert fresh.update(pages[-2]) is None
    fresh.update(pages[-1])
    seen = fresh.traffic()
    assert seen is not None and seen.finished >= pages[-2].requests_finished_total > 50


def test_waiting_requests_age_between_pages() -> None:
    """Whoever waited at the last page has waited longer now; nobody else ages."""
    learned, _, _, _ = watch(1.5, 30.0)
    seen = learned.traffic()
    assert seen is not None
    waiting = replace(seen, unstarted=2.0, oldest_wait_s=0.4)
    assert aged(waiting, 0.3).oldest_wait_s == pytest.approx(0.7)
    idle = replace(seen, unstarted=0.0)
    assert aged(idle, 0.3) is idle


def test_a_restart_forgets_the_page_and_keeps_what_was_learned() -> None:
    """After a counter reset no interval is formed across it."""
    learned, _, _, pages = watch(1.5, 60.0)
    mean = learned.outputs.mean_tokens
    learned.restart()
    assert learned.traffic() is None
    reset = replace(pages[0], observed_s=pages[-1].observed_s + POLL_S)
    assert learned.update(reset) is None
    assert learned.outputs.mean_tokens == pytest.approx(mean)


def test_an_interval_never_has_negative_arrivals() -> None:
    """Aborted requests that no counter shows do not turn into negative traffic."""
    _, _, _, pages = watch(1.5, 30.0)
    vanished = replace(pages[-1], running=0, waiting=0, observed_s=pages[-1].observed_s + POLL_S)
    assert interval(pages[-1], vanished).arrivals == 0.0


def never_empty(abort_share: float, seed: int) -> tuple[list[EngineSnapshot], list[int]]:
    """Pages of an engine that is never empty and whose clients give up, and who truly waited each time."""
    rng = np.random.default_rng(seed)
    engine = Engine(EngineShape(16, 40_001, 64, 2048))
    page = Counts()
    requests: dict[str, Request] = {}
    now_s, pages, truth = 0.0, [], []
    for step in range(2500):
        for _ in range(rng.poisson(0.3) + (engine.running + engine.waiting == 0)):
            name = f"r{len(requests)}"
            requests[name] = Request(name, now_s, int(rng.integers(200, 8000)), int(rng.integers(20, 200)))
            engine.add(requests[name])
        plan = engine.schedule(now_s)
        assert plan is not None
        inside = engine.requests()
        if rng.random() < abort_share and len(inside) > 2:
            engine.abort(inside[int(rng.integers(len(inside)))][0].request_id, now_s)
        now_s += 0.02 + 3e-5 * plan.prefill_tokens
        page.take(engine.complete(plan, now_s))
        if step % 15 == 0 and engine.running + engine.waiting:
            pages.append(page.snapshot(now_s, engine))
            truth.append(sum(state.output_tokens == 0 for _, state in engine.requests()))
    return pages, truth


class Counts:
    """What a metrics page counts of an engine, as far as traffic is read from it."""

    def __init__(self) -> None:
        self.first = self.ended = 0

    def take(self, events: tuple[TokenEvent, ...]) -> None:
        self.first += sum(event.kind is EventKind.FIRST for event in events)
        self.ended += sum(event.kind is EventKind.FINISHED for event in events)

    def snapshot(self, now_s: float, engine: Engine) -> EngineSnapshot:
        (blank,) = watch(1.0, POLL_S)[3]
        first, ended = float(self.first), float(self.ended)
        return replace(
            blank,
            observed_s=now_s,
            running=engine.running,
            waiting=engine.waiting,
            requests_finished_total=ended,
            ttft_s=Histogram((inf,), (first,), first, first),
            e2e_s=Histogram((inf,), (ended,), ended, ended),
        )


@pytest.mark.parametrize("seed", range(3))
def test_given_up_requests_on_a_server_that_is_never_empty_hide_nobody(seed: int) -> None:
    """By pages alone: who waits is neither forgotten nor invented for long, and arrivals are counted."""
    pages, truth = never_empty(0.02, seed)
    learned = estimator()
    errors, arrived = [], 0.0
    for page, waiting in zip(pages, truth, strict=True):
        step = learned.update(page)
        seen = learned.traffic()
        if seen is not None and step is not None:
            errors.append(seen.unstarted - waiting)
            arrived += step.arrivals
    given_up = pages[-1].ttft_s.count - pages[-1].e2e_s.count - pages[-1].running - pages[-1].waiting
    assert given_up > 10
    assert np.mean(truth) > 1.0
    assert np.mean(np.abs(errors)) < 0.5 * np.mean(truth)
    assert max(errors) <= 1.0
    assert min(errors) >= -1.0  # whoever's prompt is being computed right now
    ended = pages[-1].requests_finished_total - pages[0].requests_finished_total
    assert arrived >= ended + given_up - 3


def test_without_given_up_requests_nobody_is_taken_for_one() -> None:
    """Counts stay exact where nothing vanishes."""
    pages, truth = never_empty(0.0, 7)
    learned = estimator()
    for page, waiting in zip(pages, truth, strict=True):
        learned.update(page)
        seen = learned.traffic()
        assert seen is None or seen.unstarted == waiting


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0.1, 2.0)), min_size=1, max_size=80))
def test_the_upper_rate_lies_above_the_rate(events: list[tuple[int, float]]) -> None:
    """The bound is a bound from the first interval on, also when nothing has come yet."""
    rate = DecayingRate(15.0)
    for count, dt_s in events:
        rate.observe(count, dt_s)
    assert rate.upper_per_s(1.28) > rate.per_s >= 0.0


def test_before_anything_was_seen_the_rate_is_unbounded() -> None:
    """No exposure, no bound."""
    assert DecayingRate(15.0).upper_per_s(1.0) == float("inf")


def surges(rates_per_s: list[float], seed: int, last: int) -> np.ndarray:
    """Poisson arrivals, a rate for each half second: surge and recent rate after the `last` of them."""
    rng = np.random.default_rng(seed)
    learned, page, found = estimator(), BLANK, []
    for i, rate in enumerate(rates_per_s):
        page = replace(page, observed_s=0.5 * i, waiting=page.waiting + int(rng.poisson(rate * 0.5)))
        learned.update(page)
        if i >= len(rates_per_s) - last:
            seen = learned.traffic()
            assert seen is not None
            found.append((seen.surge, seen.recent_per_s))
    return np.array(found)


def test_steady_traffic_hardly_ever_looks_like_a_surge() -> None:
    """Chance alone is taken for a surge a few percent of the time, and seldom for a certain one."""
    found = np.concatenate([surges([1.0] * 800, seed, 500) for seed in range(2)])
    assert found[:, 0].mean() < 0.04 and (found[:, 0] == 1.0).mean() < 0.02
    assert found[:, 1].mean() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_three_times_the_traffic_is_a_surge_soon_and_not_for_ever(seed: int) -> None:
    """It is sure within twenty seconds, with about the new rate; once that is the usual one it is none."""
    soon = surges([0.7] * 300 + [2.1] * 40, seed, 20)
    assert soon[:, 0].max() == 1.0 and soon[:, 1].max() > 1.6
    assert surges([0.7] * 300 + [2.1] * 1200, seed, 200)[:, 0].mean() < 0.1
