"""The queueing model: known special cases, laws, and replay."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from kvwatt.queueing import Demand, InstanceQueue, Latency, MixedQueue, Regime, capacity_table, lengths
from kvwatt.queueing_batch import Prompts, StepQueue
from kvwatt.queueing_batch_size import batch_size, fitting
from kvwatt.state import EngineShape, Slo, SloTarget
from kvwatt_sim.replay import scenario
from kvwatt_sim.replay.controller import FixedClock, replay
from kvwatt_sim.replay.models import compiled_model
from kvwatt_sim.traces import TraceRequest

ONE_BIN = Prompts(np.array([100.0]), np.ones(1))
SLO = Slo(SloTarget(3.0), SloTarget(0.2), SloTarget(60.0))
SEED = 100


def sample(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal prompts and answers of about a conversation's means."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(6.7, 0.8, n), 10.0, 2500.0).round()
    return prompts, np.clip(rng.lognormal(5.0, 0.8, n), 2.0, 1500.0).round()


@cache
def queue(plant: str = "l20") -> InstanceQueue:
    card = scenario.plant(plant)
    shape = scenario.shape_for(card, "paper")
    model = compiled_model(card, scenario.clocks(card), shape)
    return InstanceQueue(model, shape, Demand.of(*sample(4000, SEED)))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.85])
def test_one_prompt_a_step_is_the_slotted_queue(load: float) -> None:
    """Steps of one length that take one prompt each: the mean number waiting is M/D/1's."""
    solved = StepQueue(np.array([0.1, 0.1]), 100.0, ONE_BIN, load / 0.1, 1.0, 256).solve()
    mean = float(solved.waiting @ np.arange(256))
    assert mean == pytest.approx(load + load**2 / (2.0 * (1.0 - load)), rel=1e-6)
    assert solved.mean_step_s == pytest.approx(0.1)


def test_dispersion_lengthens_the_wait() -> None:
    """The same rate in clumps waits longer; an overloaded queue has no stationary state and says so."""
    waits = []
    for dispersion in (1.0, 1.5, 3.0):
        solved = StepQueue(np.array([0.1, 0.1]), 100.0, ONE_BIN, 6.0, dispersion, 256).solve()
        waits.append(Latency.of(*solved.first_token()).quantile(0.99))
    assert waits[0] < waits[1] < waits[2]
    with pytest.raises(ValueError, match="faster"):
        StepQueue(np.array([0.1, 0.1]), 100.0, ONE_BIN, 11.0, 1.0, 256).solve()


def test_constant_steps_give_a_poisson_batch() -> None:
    """Where the step time does not depend on the batch, its size is that of M/G/inf: Poisson."""
    found = batch_size(2.0, 100.0, np.full(201, 0.05), np.eye(201)[200])
    expected = poisson.pmf(np.arange(201), 10.0)
    assert np.allclose(found.decoding, expected, atol=1e-9)
    assert found.mean == pytest.approx(10.0)
    assert float(found.in_line.sum()) < 1e-9


def test_how_many_fit() -> None:
    """Requests of 100 tokens in a cache of 1024: ten. Of 50 and 150 with equal probability: about ten."""
    sure = fitting(1024.0, (np.array([100.0]), np.ones(1)), (np.array([100.0]), np.ones(1)), 64)
    assert np.argmax(sure) == 10 and sure[10] == pytest.approx(1.0)
    pair = (np.array([50.0, 150.0]), np.array([0.5, 0.5]))
    mixed = fitting(1024.0, pair, pair, 64)
    assert 9.0 < float(mixed @ np.arange(len(mixed))) < 10.5
    assert mixed.max() < 0.5


@settings(max_examples=8, deadline=None)
@given(st.floats(0.2, 2.5), st.integers(0, 10_000))
def test_more_traffic_or_a_lower_clock_is_never_faster(rate: float, place: int) -> None:
    """Laws over rate and clock: TTFT and batch rise with the rate and fall with the clock; Little holds."""
    engine = queue()
    clock = place % (len(engine.model.clocks_mhz) - 1)
    slow, fast, more = engine.at(rate, clock), engine.at(rate, clock + 1), engine.at(rate * 1.3, clock)
    assert slow.ttft.quantile(0.99) >= fast.ttft.quantile(0.99) * 0.97
    if slow.carries:
        assert slow.batch >= fast.batch * 0.99
        assert slow.batch == pytest.approx(rate * engine.demand.decode_steps * slow.tbt_s, rel=0.1)
    if more.carries:
        assert more.batch > slow.batch and more.ttft.mean > slow.ttft.mean
    for operation in (slow, fast, more):
        assert operation.power_w > 0.0 and np.isclose(operation.ttft.mass.sum(), 1.0)


def test_beyond_capacity_nothing_is_kept() -> None:
    """A rate that no clock carries: latencies are never, and no promise is kept."""
    most = queue().at(50.0, len(queue().model.clocks_mhz) - 1)
    assert not most.carries and not most.keeps(SLO)
    assert most.ttft.quantile(0.5) == float("inf")


def test_capacity_table() -> None:
    """Largest rates rise with the clock, watts with the rate; at its largest rate a clock keeps promises."""
    known = queue().model.clocks_mhz
    table = capacity_table(queue(), SLO, [known[0], known[len(known) // 2]])
    assert np.all(np.diff(table.max_rates_per_s) > 0.0)
    assert np.all(np.diff(table.watts[1:], axis=0) >= -0.5)
    clock = table.clocks_mhz[1]
    kept = queue().at(table.max_rate_at(clock), known.index(clock))
    assert kept.keeps(SLO) and not queue().at(table.max_rate_at(clock) * 1.5, known.index(clock)).keeps(SLO)
    strict = capacity_table(queue(), Slo(SloTarget(1.5), SloTarget(0.1)), [clock])
    assert strict.max_rate_per_s < table.max_rate_at(clock)


def test_regimes_are_mixed_by_what_they_serve() -> None:
    """Two equal regimes are the one; shares that are none are refused."""
    same = MixedQueue([Regime(0.5, 1.0, queue()), Regime(0.5, 1.0, queue())])
    one, two = queue().at(1.0, 5), same.at(1.0, 5)
    assert two.ttft.quantile(0.99) == one.ttft.quantile(0.99)
    assert two.power_w == pytest.approx(one.power_w)
    with pytest.raises(ValueError, match="average 1"):
        MixedQueue([Regime(1.0, 2.0, queue())])


def test_what_never_fits_is_refused() -> None:
    """Prompts larger than the KV cache, and lengths that are none."""
    with pytest.raises(ValueError, match="fits the KV cache"):
        InstanceQueue(queue().model, EngineShape(16, 4), Demand.of([500.0], [100.0]))
    with pytest.raises(ValueError, match="lengths"):
        lengths([])


@pytest.mark.parametrize("plant, load", [("l20", 0.5), ("l20", 0.8), ("a100-tp4", 0.8)])
def test_replay_agrees(plant: str, load: float) -> None:
    """p99 TTFT within 15 %, batch and watts within 8 %, of an engine at its top clock, Poisson arrivals."""
    card, engine = scenario.plant(plant), queue(plant)
    shape, top = scenario.shape_for(card, "paper"), len(engine.model.clocks_mhz) - 1
    rate = load * {"l20": 4.4, "a100-tp4": 8.4}[plant]
    rng = np.random.default_rng(SEED + 1)
    prompts, outputs = sample(9000, SEED + 2)
    times = np.cumsum(rng.exponential(1.0 / rate, len(prompts)))
    requests = [
        TraceRequest(float(t), int(p), int(o)) for t, p, o in zip(times, prompts, outputs, strict=True)
    ]
    done = replay(card, shape, scenario.fitted(card, requests), FixedClock(card.boost_mhz), float(times[-1]))
    got = engine.at(rate, top)
    measured = float(np.quantile(done.served.latencies()["ttft"], 0.99))
    assert got.ttft.quantile(0.99) == pytest.approx(measured, rel=0.15)
    inside = float((done.served.last_s - done.served.first_s).sum()) / done.duration_s
    assert got.batch == pytest.approx(inside, rel=0.08)
    assert got.power_w == pytest.approx(done.energy_j / done.duration_s, rel=0.08)
