"""What the daemon makes of the tap: exact lengths and steps, a newer state; the poll wherever in doubt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blank_page import BLANK
from tap_records import MODEL, ended, record

from kvwatt.compiled import CompiledModel
from kvwatt.residual import expected_steps_s
from kvwatt.state import EngineShape, EngineSnapshot, GpuSample, Histogram, Slo, SloTarget
from kvwatt.traffic import kv_capacity_tokens
from kvwatt_sim.engine import Engine, Request
from kvwatt_sim.engine_tap import EngineTap
from kvwattd.observation import Observation

SLO = Slo(tbt=SloTarget(0.1))
STEP_S, DECODES, POLL_STEPS = 0.025, 4, 20
POLL_S = STEP_S * POLL_STEPS
ENDED = (110, 190)
BOUNDS = (100.0, 200.0, float("inf"))


def table_model(scale: float = 1.0) -> CompiledModel:
    """Steps of 10 ms and 1 ms per request, 1 us per 10 KV tokens, 20 us per prompt token; one clock."""
    axes = (np.array([0.0, 1.0, 64.0]), np.array([0.0, 4096.0]), np.array([0.0, 4096.0]))
    batch, context, prefill = np.meshgrid(*axes, indexing="ij")
    step_s = scale * (0.010 + 1e-3 * batch + 1e-7 * batch * context + 2e-5 * prefill)
    table = step_s.reshape(-1, 1).astype(np.float32)
    return CompiledModel((1000,), 1.0, axes, table, np.full_like(table, 100.0), np.array([50.0]))


def lengths(values: list[int]) -> Histogram:
    cumulative = tuple(float(sum(v <= bound for v in values)) for bound in BOUNDS)
    return Histogram(BOUNDS, cumulative, float(sum(values)), float(len(values)))


def page(at_s: float, steps: int, finished: list[int]) -> EngineSnapshot:
    tokens = float(steps * DECODES)
    seconds = Histogram((0.1, float("inf")), (tokens, tokens), tokens * STEP_S, tokens)
    done = float(len(finished))
    return replace(
        BLANK,
        observed_s=at_s,
        model_name=MODEL,
        running=DECODES,
        num_blocks=1001,
        kv_usage=0.2,
        generation_tokens_total=tokens,
        requests_finished_total=done,
        iterations=Histogram((1.0, float("inf")), (0.0, float(steps)), tokens, float(steps)),
        prompt_lengths=lengths(finished),
        generation_lengths=lengths(finished),
        ttft_s=Histogram((1.0, float("inf")), (done, done), done, done),
        tbt_s=seconds,
        itl_s=seconds,
        e2e_s=Histogram((9.0, float("inf")), (done, done), done, done),
    )


def gpu(at_s: float) -> dict[str, GpuSample]:
    return {"GPU-0": GpuSample(at_s, "GPU-0", 1000, 100.0, 100.0 * at_s, 50.0, 1.0, 0)}


class Driven:
    """An engine of four requests that finishes one of 110 and one of 190 tokens per poll."""

    def __init__(self, tapped: bool, told: int = DECODES, model: CompiledModel | None = None) -> None:
        self.observation = Observation(POLL_S, 1.5)
        self.model = model or table_model()
        self.told = told
        self.tapped = tapped
        self.steps = 0
        self.finished: list[int] = []
        self.now_s = 0.0
        self.observation.on_page(page(0.0, 0, []))

    def poll(self, polls: int = 12) -> None:
        for _ in range(polls):
            for last in [False] * (POLL_STEPS - 1) + [True]:
                self.step(last)
            self.finished += ENDED
            self.observation.on_page(page(self.now_s + 0.001, self.steps, self.finished))
            self.observation.calibrate(self.model, gpu(self.now_s), clock_steady=True)

    def step(self, last: bool = False, **changed: object) -> None:
        self.steps += 1
        self.now_s = self.steps * STEP_S
        if not self.tapped:
            return
        known = {
            "sequence": self.steps,
            "sent_s": self.now_s,
            "step_s": STEP_S,
            "decodes": DECODES,
            "generation_tokens": self.told,
            "generation_tokens_total": self.steps * self.told,
            "running": DECODES,
            "finished": [ended(n, n) for n in ENDED] if last else [],
        }
        self.observation.tap.on_record(record(**(known | changed)), self.now_s)


def test_the_source_is_the_tap_where_there_is_one_and_the_poll_otherwise() -> None:
    """And each time it is said which."""
    for tapped, source in ((True, "tap"), (False, "poll")):
        driven = Driven(tapped)
        driven.poll()
        assert driven.observation.source == source


def test_lengths_from_the_tap_are_learned_where_they_lie() -> None:
    """Answers have 110 or 190 tokens: the tap knows, the page's bucket of 100 to 200 does not."""
    error = {}
    for tapped in (True, False):
        driven = Driven(tapped)
        driven.poll(400)
        half = driven.observation.estimator.outputs.survival(np.array([130.0, 165.0]))
        error[tapped] = float(np.abs(half - 0.5).max())
    assert error[True] < 0.05 < 0.1 < error[False]


def test_every_finished_request_is_counted_once() -> None:
    """Taking up the tap neither doubles nor loses a request."""
    finished = []
    for tapped in (True, False):
        driven = Driven(tapped)
        driven.poll(40)
        traffic = driven.observation.traffic(SLO)
        assert traffic is not None
        finished.append(traffic.finished)
    assert finished[0] == finished[1] == 80


def test_the_model_is_checked_step_by_step() -> None:
    """Measured is the steps' own time; expected is the model's at each step's own load."""
    kv = 0.25 * kv_capacity_tokens(page(0.0, 0, []))
    right = STEP_S / (0.010 + 1e-3 * DECODES + 1e-7 * kv)
    driven = Driven(tapped=True, model=table_model(right))
    driven.poll()
    observation = driven.observation
    assert observation.check.measured_itl_s == pytest.approx(STEP_S)
    assert observation.check.predicted_itl_s == pytest.approx(STEP_S, rel=1e-3)
    assert observation.check.calibration.samples >= 2


def test_a_model_that_is_wrong_by_a_half_is_put_right_by_the_tap_alone() -> None:
    """Single steps correct the model; what is left is the bias, and both together give the step's time."""
    for scale in (1.7, 1.7 * 2 / 3):
        driven = Driven(tapped=True, model=table_model(scale))
        driven.poll(400)
        seen = driven.observation
        load = (np.array([float(DECODES)]), np.array([0.25 * 16000.0]), np.array([0.0]))
        (told_s,) = seen.check.paced(driven.model).step_time_s(*load)[0]
        assert told_s * seen.check.calibration.bias == pytest.approx(STEP_S, rel=0.02)
        assert seen.check.calibration.bias == pytest.approx(1.0, abs=0.05)


def test_a_handful_of_steps_between_idle_pages_teaches_nothing() -> None:
    """What is learned of the model rests on stretches of work, with the tap as without."""
    driven = Driven(tapped=True)
    driven.poll()
    before = driven.observation.check.calibration.samples
    for _ in range(20):
        for _ in range(3):
            driven.step()
        driven.observation.on_page(page(driven.now_s + 0.001, driven.steps, driven.finished))
        driven.observation.calibrate(driven.model, gpu(driven.now_s), clock_steady=True)
    assert driven.observation.source == "tap"
    assert driven.observation.check.calibration.samples == before


def test_long_prompts_booked_at_their_end_are_charged_as_chunks() -> None:
    """5000 tokens in chunks of 2048 cost two full chunks and a rest, whichever step they are booked with."""
    model = table_model()
    one = np.array([4.0])
    (got,) = expected_steps_s(model, one, 0 * one, np.array([5000.0]), 1000, 2048.0)
    assert got == pytest.approx(0.014 + 2e-5 * 5000, rel=1e-4)


def test_the_decision_s_state_is_that_of_the_newest_step() -> None:
    """Batch, queue and cache come from the tap's last step, whose page is no newer."""
    driven = Driven(tapped=True)
    driven.poll()
    observation = driven.observation
    newest = observation.snapshot
    assert newest is not None
    before = observation.state()
    assert before is not None
    assert before.running == DECODES
    driven.step(running=30, waiting=5, kv_usage=0.9)
    state = observation.state()
    assert state is not None
    assert observation.state() is state
    assert (state.running, state.waiting, state.observed_s) == (30, 5, driven.now_s)
    assert state.kv_used_tokens == pytest.approx(0.9 * kv_capacity_tokens(newest))


def test_who_waits_since_the_page_has_waited_since_the_page() -> None:
    """A burst is known with the step that sees it, and its wait is never taken for shorter than it may be."""
    driven = Driven(tapped=True)
    driven.poll()
    observation = driven.observation
    before = observation.traffic_now(SLO, driven.now_s)
    driven.step(waiting=5)
    seen = observation.traffic_now(SLO, driven.now_s)
    assert before is not None and seen is not None and observation.snapshot is not None
    assert seen.unstarted == 5.0 > before.unstarted
    assert seen.oldest_wait_s >= driven.now_s - observation.snapshot.observed_s


def test_a_tap_that_contradicts_the_page_changes_nothing() -> None:
    """Lengths, calibration and state are then exactly those of the poll alone."""
    alone, contradicted = Driven(tapped=False), Driven(tapped=True, told=1)
    for driven in (alone, contradicted):
        driven.poll(30)
        driven.step(running=0, waiting=0, kv_usage=0.0)
    assert contradicted.observation.source == "poll"
    assert contradicted.observation.tap.live() is None
    assert contradicted.observation.check.predicted_itl_s == alone.observation.check.predicted_itl_s
    assert contradicted.observation.check.measured_itl_s == alone.observation.check.measured_itl_s
    levels = np.linspace(0.0, 500.0, 50)
    ours, theirs = (d.observation.estimator.outputs.survival(levels) for d in (contradicted, alone))
    assert np.array_equal(ours, theirs)


def test_a_tap_cannot_hide_a_server_that_is_gone() -> None:
    """Freshness is the page's: records without pages are no trust."""
    driven = Driven(tapped=True)
    driven.poll()
    assert driven.observation.fault(driven.now_s) is None
    for _ in range(100):
        driven.step()
    assert driven.observation.fault(driven.now_s) is not None


def tapped_engine() -> tuple[Observation, Engine, dict[str, Request]]:
    """A simulated engine beside an observation that polls it twice a second and hears its tap."""
    engine = Engine(EngineShape(16, 2001, 64, 2048))
    requests = {f"r{i}": Request(f"r{i}", 0.3 * i, 100 + 37 * i, 60 + 11 * i, 400) for i in range(30)}
    observation = Observation(0.5, 1.5)
    tap = EngineTap(engine, requests.__getitem__, MODEL, every_token=True)
    now_s, polled_s, tokens = 0.0, -1.0, 0
    pending = list(requests.values())
    while pending or engine.running > 8:
        while pending and pending[0].arrival_s <= now_s:
            engine.add(pending.pop(0))
        plan = engine.schedule(now_s)
        if plan is None:
            now_s += 0.01
            continue
        now_s += 0.03
        told = tap.record(plan, engine.complete(plan, now_s), now_s)
        tokens = told.generation_tokens_total
        observation.tap.on_record(told, now_s)
        if now_s - polled_s >= 0.5:
            polled_s = now_s
            newest = replace(page(now_s, 0, []), running=engine.running, waiting=engine.waiting)
            observation.on_page(
                replace(newest, kv_usage=engine.kv_usage, generation_tokens_total=float(tokens))
            )
    return observation, engine, requests


def test_the_decision_sees_every_request_that_the_tap_tells() -> None:
    """Arrivals, tokens and prompts as the engine has them; with distrust of the tap, sums only."""
    observation, engine, _ = tapped_engine()
    state = observation.state()
    assert state is not None
    truth = [s for _, s in engine.requests()]
    assert len(truth) >= 6
    for name in ("output_tokens", "prompt_tokens"):
        ours = sorted(getattr(r, name) for r in state.requests)
        assert ours == sorted(getattr(r, name) for r in truth)
    ours_s = sorted(r.arrival_s for r in state.requests)
    assert ours_s == pytest.approx(sorted(r.arrival_s for r in truth), abs=1e-4)
    newest = observation.snapshot
    assert newest is not None
    for later in range(1, 12):
        more = newest.generation_tokens_total + 1000.0 * later
        observation.on_page(
            replace(newest, observed_s=newest.observed_s + 0.5 * later, generation_tokens_total=more)
        )
    doubted = observation.state()
    assert doubted is not None
    assert observation.source == "poll"
    assert doubted.requests == ()


def test_a_tap_shortens_the_time_until_a_burst_is_seen() -> None:
    """By polls it is a poll, by a tap about a step, and never longer than a poll."""
    observation, _, _ = tapped_engine()
    assert 0.03 <= observation.delay_s() <= 0.1
    alone = Driven(tapped=False)
    alone.poll()
    assert alone.observation.delay_s() == POLL_S


def test_single_finished_requests_teach_lengths_by_class() -> None:
    """What the tap tells of prompts and limits is learned together with the length."""
    observation, _, requests = tapped_engine()
    known = observation.estimator.by_class
    assert 10 <= known.finished < len(requests)
    # Who still runs is cut off where it is: from an empty start, that many of them and not one more.
    cut = ~known._held.sample(1e9).ended
    assert 1 <= cut.sum() <= len(requests) - known.finished
