"""A plant fitted to an engine's own steps, what clients see of it, and the comparison with another run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.state import EngineShape
from kvwatt_sim import gpu
from kvwatt_sim.fit.compare import compare, ks_distance, sides
from kvwatt_sim.fit.laws import Laws
from kvwatt_sim.fit.measured import CLOCK_MHZ, MeasuredStep, fit_measured
from kvwatt_sim.fit.served import Delays, simulate
from kvwatt_sim.gpu import StepLaw
from kvwatt_sim.nvml.spec import PowerLaw
from kvwatt_sim.traces import TraceRequest

LAW = StepLaw(CLOCK_MHZ, 4e-3, 6e-3, 0.0, 2e-3, 10.0, 1.5e-4, 1.0, 2e-7, 0.0, 1e-8)
PLANT = Laws(LAW, PowerLaw(CLOCK_MHZ, 1.0), (CLOCK_MHZ,), 1e9)
SHAPE = EngineShape(block_size=16, num_blocks=2000, max_num_seqs=32, max_num_batched_tokens=512)


def steps(count: int, noise: float, seed: int = 1) -> list[MeasuredStep]:
    """Mixed steps of the law, with relative noise."""
    source, found = np.random.default_rng(seed), []
    for _ in range(count):
        batch, prefill = int(source.integers(0, 20)), int(source.choice([0, 0, 60, 300, 500]))
        if batch + prefill == 0:
            continue
        work = (batch, batch * int(source.integers(50, 500)), prefill, 0.0)
        took_s = gpu.step_time_s(PLANT, CLOCK_MHZ, *work) * (1 + noise * source.standard_normal())
        found.append(MeasuredStep(*work, took_s))
    return found


def some_load(count: int, seed: int = 2) -> list[TraceRequest]:
    source = np.random.default_rng(seed)
    arrivals = np.cumsum(source.exponential(0.3, count))
    lengths = source.integers(2, 60, count)
    return [
        TraceRequest(float(a), int(source.integers(10, 700)), int(n))
        for a, n in zip(arrivals, lengths, strict=True)
    ]


def test_the_law_of_measured_steps_is_found() -> None:
    """Noise of 3 % leaves errors of that size, on steps of another draw too; the total time is exact."""
    seen = steps(600, 0.03)
    law = fit_measured(seen)
    assert sum(law.time_s(step) for step in seen) == pytest.approx(sum(step.time_s for step in seen))
    assert law.mape < 0.03
    exact = steps(200, 0.0, seed=9)
    assert np.mean([abs(law.time_s(step) / step.time_s - 1) for step in exact]) < 0.02


def test_too_few_steps_are_refused() -> None:
    """A law of ten numbers is not fitted to a handful of steps."""
    with pytest.raises(ValueError, match="49 measured steps: at least 50"):
        fit_measured([MeasuredStep(1, 100, 0, 0.0, 0.01)] * 49)


def test_a_request_alone_takes_its_steps_and_the_delays() -> None:
    """TTFT is both delays and the prompt's step; each further token is one more step."""
    delays = Delays(0.002, 0.003)
    run = simulate(PLANT, SHAPE, [TraceRequest(1.0, 100, 4)], delays)
    prompt_s = gpu.step_time_s(PLANT, CLOCK_MHZ, 0, 0, 100)
    assert run.ttft_s[0] == pytest.approx(0.005 + prompt_s)
    assert run.e2e_s[0] == pytest.approx(run.ttft_s[0] + run.gaps_s.sum())
    assert run.tbt_s[0] == pytest.approx(run.gaps_s.mean())
    batch, blocks = run.at(np.array([0.5, 1.003, 60.0]))
    assert batch.tolist() == [0.0, 1.0, 0.0]
    assert blocks.tolist() == [0.0, 7.0, 0.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_every_token_is_delivered_once_and_after_its_arrival(count: int, seed: int) -> None:
    """All requests end, gaps are as many as tokens after the first, and the run is repeatable."""
    load_ = some_load(count, seed)
    run = simulate(PLANT, SHAPE, load_, Delays())
    assert len(run.gaps_s) == sum(r.output_tokens - 1 for r in load_)
    assert (run.ttft_s > 0).all()
    assert (run.e2e_s >= run.ttft_s).all()
    assert (np.diff(run.steps[:, 0]) > 0).all()
    assert np.array_equal(run.e2e_s, simulate(PLANT, SHAPE, load_, Delays()).e2e_s)


def test_delays_shift_latencies_and_leave_the_engine_as_it_is() -> None:
    """A later delivery adds to TTFT and E2E, not to the time between tokens."""
    load_ = some_load(40)
    near, far = (simulate(PLANT, SHAPE, load_, Delays(0.0, to_client)) for to_client in (0.0, 0.5))
    assert far.ttft_s == pytest.approx(near.ttft_s + 0.5)
    assert far.e2e_s == pytest.approx(near.e2e_s + 0.5)
    assert far.gaps_s == pytest.approx(near.gaps_s)


def test_a_run_is_like_itself_and_a_slower_engine_is_seen() -> None:
    """No error against itself; twice the step time shows in every latency."""
    load_ = some_load(60)
    slow_law = StepLaw(CLOCK_MHZ, 8e-3, 12e-3, 0.0, 4e-3, 10.0, 3e-4, 1.0, 4e-7, 0.0, 2e-8)
    slow = Laws(slow_law, PLANT.power, PLANT.supported_mhz, PLANT.power_cap_w)
    run, slower = (simulate(plant, SHAPE, load_, Delays()) for plant in (PLANT, slow))
    until_s = load_[-1].arrival_s
    assert all(row.ks == 0 and row.mean_error == 0 for row in compare(run, run, until_s))
    latencies = {row.name: row for row in compare(run, slower, until_s) if row.name.endswith(", s")}
    assert len(latencies) == 4
    assert all(row.mean_error > 0.9 and row.ks > 0.3 for row in latencies.values())


def test_the_distance_is_that_of_the_distribution_functions() -> None:
    """Zero for equal samples, one for disjoint ones, a half when half of one lies beyond the other."""
    a = np.arange(10.0)
    assert ks_distance(a, a[::-1]) == 0.0
    assert ks_distance(a, a + 100.0) == 1.0
    assert ks_distance(a, np.where(a < 5, a, a + 100.0)) == pytest.approx(0.5)


def test_empty_samples_are_refused() -> None:
    """The message names what is empty."""
    with pytest.raises(ValueError, match=r"TTFT: 0 real and 2 simulated"):
        sides("TTFT", np.array([np.nan]), np.ones(2))
