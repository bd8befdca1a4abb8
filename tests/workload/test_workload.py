from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt_sim import traces, workload

TRACE = (
    Path(__file__).parents[2].parent / "shared" / "data" / "traces" / "AzureLLMInferenceTrace_conv_2023.csv"
)

needs_trace = pytest.mark.skipif(
    not TRACE.is_file(), reason="the Azure 2023 conversation trace is not in ../shared/data/traces"
)


@pytest.fixture(scope="module")
def long_run() -> tuple[traces.TraceRequest, ...]:
    return workload.generate(5.5, 3600.0, seed=3)


@pytest.fixture(scope="module")
def azure() -> tuple[traces.TraceRequest, ...]:
    return traces.load_azure(TRACE)


def test_same_seed_same_requests() -> None:
    """The same seed gives the same requests and another seed gives others."""
    assert workload.generate(2.0, 60.0, seed=1) == workload.generate(2.0, 60.0, seed=1)
    assert workload.generate(2.0, 60.0, seed=1) != workload.generate(2.0, 60.0, seed=2)


@settings(max_examples=30, deadline=None)
@given(
    rate=st.floats(min_value=0.2, max_value=20.0),
    duration=st.floats(min_value=1.0, max_value=200.0),
    seed=st.integers(0, 1000),
)
def test_arrivals_are_ordered_and_inside_the_window(rate: float, duration: float, seed: int) -> None:
    """Arrivals ascend inside [0, duration) and their number stays near rate times duration."""
    arrivals = [request.arrival_s for request in workload.generate(rate, duration, seed)]
    assert arrivals == sorted(arrivals)
    assert all(0.0 <= at < duration for at in arrivals)
    expected = rate * duration
    assert abs(len(arrivals) - expected) <= 6.0 * expected**0.5 + 3.0


def test_medians_are_those_of_the_trace(long_run: tuple[traces.TraceRequest, ...]) -> None:
    """The median conversation reads 1,020 tokens and writes 129."""
    assert np.median([r.prompt_tokens for r in long_run]) == pytest.approx(1020, rel=0.02)
    assert np.median([r.output_tokens for r in long_run]) == pytest.approx(129, rel=0.05)


def test_arrivals_are_burstier_than_poisson(long_run: tuple[traces.TraceRequest, ...]) -> None:
    """Counts in ten-second windows vary more than those of a Poisson process of the same rate."""
    assert 2.0 < _dispersion(long_run, 10.0) < 8.0


@pytest.mark.parametrize(
    ("rate", "duration", "seed", "name"),
    [
        (0.0, 1.0, 0, "rate_per_s"),
        (float("nan"), 1.0, 0, "rate_per_s"),
        (1.0, float("inf"), 0, "duration_s"),
        (1.0, 1.0, -1, "seed"),
    ],
)
def test_nonsense_is_refused_by_name(rate: float, duration: float, seed: int, name: str) -> None:
    """A rate, duration or seed that means nothing is refused, naming it."""
    with pytest.raises(ValueError, match=name):
        workload.generate(rate, duration, seed)


@needs_trace
def test_length_tables_are_the_trace_quantiles(azure: tuple[traces.TraceRequest, ...]) -> None:
    """The embedded quantile tables are those of the published trace, to the rounding."""
    prompts = np.array([r.prompt_tokens for r in azure])
    outputs = np.array([r.output_tokens for r in azure])
    assert np.abs(np.quantile(prompts, workload.PROMPT_LEVELS) - workload.PROMPT_TOKENS).max() <= 0.5
    deciles = np.array_split(np.argsort(prompts, kind="stable"), len(workload.OUTPUT_TOKENS))
    for members, row in zip(deciles, workload.OUTPUT_TOKENS, strict=True):
        assert np.abs(np.quantile(outputs[members], workload.OUTPUT_LEVELS) - row).max() <= 0.5


@needs_trace
def test_lengths_match_the_trace(
    long_run: tuple[traces.TraceRequest, ...], azure: tuple[traces.TraceRequest, ...]
) -> None:
    """Means and quantiles of generated lengths are within a few per cent of the trace's."""
    for pick in (lambda r: r.prompt_tokens, lambda r: r.output_tokens):
        ours = np.array([pick(r) for r in long_run])
        real = np.array([pick(r) for r in azure])
        assert ours.mean() == pytest.approx(real.mean(), rel=0.03)
        for level in (0.1, 0.25, 0.5, 0.75, 0.9):
            assert np.quantile(ours, level) == pytest.approx(np.quantile(real, level), rel=0.08, abs=5)


@needs_trace
@pytest.mark.parametrize("window_s", [1.0, 5.0, 10.0, 60.0])
def test_burstiness_matches_the_trace(azure: tuple[traces.TraceRequest, ...], window_s: float) -> None:
    """The index of dispersion of counts, averaged over seeds, is within 20 % of the trace's."""
    real = _dispersion(azure, window_s)
    rate = traces.mean_rate_per_s(azure)
    ours = np.mean([_dispersion(workload.generate(rate, 3500.0, seed), window_s) for seed in range(12)])
    assert ours == pytest.approx(real, rel=0.2)


def _dispersion(requests: tuple[traces.TraceRequest, ...], window_s: float) -> float:
    arrivals = np.array([request.arrival_s for request in requests])
    counts = np.bincount((arrivals / window_s).astype(int))[:-1]
    return float(counts.var() / counts.mean())
