"""The compiled plant against the plain one: whole runs are equal, to the last bit where libm is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_plant import PlainPlant

from kvwatt.scheduling.remaining import LearnedLengths
from kvwatt.state import EngineShape
from kvwatt_sim.cards import Card, load
from kvwatt_sim.replay.admission import Reservation
from kvwatt_sim.replay.kernel import METERS
from kvwatt_sim.replay.plant import VirtualPlant
from kvwatt_sim.traces import TraceRequest
from kvwatt_sim.workload import generate

CARDS = (load("l20"), load("a100", 2), replace(load("a100", 1), power_cap_w=180.0), load("h200"))
REL, ABS = 1e-9, 1e-12


@dataclass(frozen=True)
class Run:
    """A plant, what comes to it, and when it is looked at and given another clock (and with what latency)."""

    card: Card
    shape: EngineShape
    requests: tuple[TraceRequest, ...]
    clocks: tuple[tuple[float, int | None, float], ...]
    gates: tuple[Gate, ...] = ()  # after each of `clocks`
    horizon: int | None = 0  # of admission by reservation; 0: vLLM's own


@dataclass(frozen=True)
class Gate:
    """From now on arrivals are held or not, admission is capped, and so many of the queue are released."""

    hold: bool
    cap_blocks: int | None
    release: int


@st.composite
def runs(draw: st.DrawFn) -> Run:
    card = draw(st.sampled_from(CARDS))
    shape = EngineShape(
        block_size=draw(st.sampled_from((1, 4, 16))),
        num_blocks=draw(st.integers(30, 200)),
        max_num_seqs=(seqs := draw(st.integers(1, 8))),
        max_num_batched_tokens=seqs + draw(st.integers(0, 120)),
    )
    gaps = draw(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=25))
    requests = tuple(_request(draw, at, shape.kv_capacity_tokens) for at in np.cumsum(gaps).tolist())
    moments = draw(st.lists(st.floats(0.01, 1.0), max_size=12))
    clock = st.one_of(st.none(), st.sampled_from(card.supported_mhz))
    clocks = tuple((at, draw(clock), draw(st.floats(0.0, 0.3))) for at in np.cumsum(moments).tolist())
    cap = st.one_of(st.none(), st.integers(0, shape.num_blocks))
    gate = st.builds(Gate, st.booleans(), cap, st.integers(0, 3))
    gates = draw(st.one_of(st.just(()), st.tuples(*(gate for _ in clocks))))
    horizon = draw(st.sampled_from((0, 1, 8, None)))
    return Run(card, shape, requests, clocks, gates, horizon)


def _request(draw: st.DrawFn, at: float, room: int) -> TraceRequest:
    total = draw(st.integers(2, room + 1))
    output = draw(st.integers(1, min(total - 1, 150)))
    return TraceRequest(at, total - output, output)


def both(run: Run) -> tuple[VirtualPlant, PlainPlant]:
    """The run on either plant, to its end."""
    fast = VirtualPlant(run.card, run.shape, run.requests)
    plain = PlainPlant(run.card, run.shape, run.requests)
    for plant in (fast, plain):
        if run.horizon != 0:
            plant.seat(Reservation(LearnedLengths(first_tokens=8, fewest=3), run.horizon))
        for (at, clock, latency), gate in zip_longest(run.clocks, run.gates):
            plant.advance(at)
            plant.set_clock(clock, latency)
            if gate is not None:
                pass_through(plant, gate)
        pass_through(plant, Gate(False, None, len(run.requests)))
        while not plant.done:
            plant.advance(plant.now_s + 5.0)
    return fast, plain


def pass_through(plant: VirtualPlant | PlainPlant, gate: Gate) -> None:
    plant.hold_arrivals(gate.hold)
    plant.cap_admission(gate.cap_blocks)
    for place in plant.queue()[: gate.release]:
        plant.release(place)


def compare(fast: VirtualPlant, plain: PlainPlant) -> None:
    assert fast.now_s == pytest.approx(plain.now_s, rel=REL, abs=ABS)
    assert fast.energy_j == pytest.approx(plain.energy_j, rel=REL, abs=ABS)
    assert fast.steps == plain.engine.counters.steps
    ours = sorted(fast.served().records(), key=lambda r: r.request.request_id)
    theirs = sorted(plain.records, key=lambda r: r.request.request_id)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a.output_tokens, a.num_preemptions) == (b.output_tokens, b.num_preemptions)
        for name in ("first_scheduled_s", "first_token_s", "last_token_s", "finished_s"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=REL, abs=ABS)
    page, histograms = fast.snapshot(), plain.histograms()
    for name, at in zip(METERS, (page.ttft_s, page.tbt_s, page.itl_s, page.e2e_s), strict=False):
        assert at.cumulative == histograms[name].cumulative
        assert at.sum == pytest.approx(histograms[name].sum, rel=REL, abs=ABS)
    assert page.iterations == histograms["iterations"]
    assert np.array_equal(fast.outcome(0).gaps.counts, plain.gaps.counts)


@settings(deadline=None, max_examples=150)
@given(runs())
def test_random_runs_are_equal(run: Run) -> None:
    """Under preemption, chunks, power caps and clock changes in mid-step: same records, energy, times."""
    compare(*both(run))


@pytest.mark.parametrize(("card", "rate"), [("l20", 2.5), ("a100", 0.8)])
def test_ten_minutes_at_load_are_equal(card: str, rate: float) -> None:
    """Rounding does not add up over many steps of a real shape; the A100's small cache preempts."""
    hardware = load(card)
    requests = generate(rate, 600.0, seed=3)
    fast, plain = both(
        Run(hardware, hardware.engine_shape(), requests, ((1.0, 1005, 0.0), (200.0, None, 0.2)))
    )
    compare(fast, plain)
    assert fast.steps > 5000


def test_who_is_held_waits_and_so_do_those_behind() -> None:
    """Nobody starts until the first is released, and then in turn; the clock goes on over an idle engine."""
    card = CARDS[0]
    requests = [TraceRequest(0.1 * i, 100, 10) for i in range(4)]
    plant = VirtualPlant(card, card.engine_shape(), requests)
    plant.hold_arrivals()
    plant.advance(3.0)
    assert (plant.running, plant.waiting, plant.queue(), plant.steps) == (0, 4, (0, 1, 2, 3), 0)
    plant.release(1)
    plant.advance(4.0)
    assert plant.running + plant.finished == 0 and plant.held(0) and not plant.held(1)
    plant.release(0)
    plant.advance(6.0)
    assert plant.served().index.tolist() == [0, 1] and plant.served().scheduled_s.min() >= 4.0
    assert plant.queue() == (2, 3)


def test_admission_stays_within_its_cap() -> None:
    """Who joins leaves the batch within the cap, but an empty batch takes whoever is first."""
    shape = EngineShape(block_size=16, num_blocks=101, max_num_seqs=8, max_num_batched_tokens=512)
    requests = [TraceRequest(0.0, 160, 60) for _ in range(6)]
    capped, free = (VirtualPlant(CARDS[0], shape, requests) for _ in range(2))
    capped.cap_admission(25)
    for plant in (capped, free):
        plant.advance(0.5)
    assert capped.running == 2 and free.running > 4
    capped.cap_admission(5)
    capped.advance(60.0)
    assert capped.done


def test_the_run_in_slices_is_the_run() -> None:
    """Looking at the plant changes nothing: ten looks a second or none."""
    card = CARDS[0]
    requests = generate(2.0, 60.0, seed=5)
    whole, sliced = (VirtualPlant(card, card.engine_shape(), requests) for _ in range(2))
    whole.advance(120.0)
    for tick in range(1, 1201):
        sliced.advance(tick * 0.1)
        sliced.state(), sliced.snapshot(), sliced.sample("GPU")
    assert sliced.energy_j == pytest.approx(whole.energy_j, rel=1e-9)
    assert sliced.served().last_s == pytest.approx(whole.served().last_s, rel=1e-9)


def test_states_tell_what_the_engine_holds() -> None:
    """A state's requests are those inside, with progress, and the true lengths are in the same order."""
    card = CARDS[0]
    requests = generate(3.0, 30.0, seed=5)
    plant = VirtualPlant(card, card.engine_shape(), requests)
    plant.advance(20.0)
    state, lengths = plant.state(), plant.true_output_tokens()
    assert len(state.requests) == len(lengths) == state.running + state.waiting > 10
    assert all(
        r.arrival_s <= 20.0 and r.output_tokens < true
        for r, true in zip(state.requests, lengths, strict=True)
    )
    assert any(r.output_tokens for r in state.requests)
    known = {(r.arrival_s, r.prompt_tokens): r.output_tokens for r in requests}
    assert [known[r.arrival_s, r.prompt_tokens] for r in state.requests] == list(lengths)
    done = {r.request.arrival_s for r in plant.served().records()}
    arrived = sum(r.arrival_s <= 20.0 for r in requests)
    assert arrived - 2 <= len(done) + len(lengths) <= arrived  # who comes during a step is taken in after it


def test_nonsense_is_refused() -> None:
    """Requests out of order, or longer than the KV cache, are told with their place."""
    shape = EngineShape(16, 11, 4, 64)
    with pytest.raises(ValueError, match=r"request 1 arrives at 1 s"):
        VirtualPlant(CARDS[0], shape, [TraceRequest(2.0, 5, 5), TraceRequest(1.0, 5, 5)])
    with pytest.raises(ValueError, match=r"request 0 needs 164 tokens of KV cache; the engine has 160"):
        VirtualPlant(CARDS[0], shape, [TraceRequest(0.0, 155, 10)])


def under_pressure() -> VirtualPlant:
    """A cache for a dozen requests, and more load than it takes."""
    shape = replace(CARDS[0].engine_shape(), num_blocks=301)
    return VirtualPlant(CARDS[0], shape, [TraceRequest(0.2 * i, 200, 60 + 90 * (i % 3)) for i in range(300)])


def test_admission_by_reservation_avoids_preemptions() -> None:
    """Under pressure most of them are gone, at no later an end; and what was held is told."""
    plain, seated = under_pressure(), under_pressure()
    seated.seat(rule := Reservation())
    for plant in (plain, seated):
        plant.advance(1000.0)
        assert plant.done
    assert plain.preemptions > 100 > 3 * seated.preemptions
    assert seated.served().last_s.max() <= 1.01 * plain.served().last_s.max()
    assert 0 < rule.held <= rule.asked


def test_an_error_of_the_rule_is_not_swallowed() -> None:
    """It comes out of the `advance` that asked."""

    def broken(plant: VirtualPlant) -> int:
        raise KeyError("lengths")

    plant = under_pressure()
    plant.seat(broken)
    with pytest.raises(KeyError, match="lengths"):
        plant.advance(10.0)
