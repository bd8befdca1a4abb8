"""Laws of the length model, and what it learns from real traces' histograms."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.lengths import LengthModel
from kvwatt.state import Histogram

BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, math.inf)
TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "traces"
Lengths = st.lists(st.integers(1, 50_000), min_size=1, max_size=60)


def histogram(lengths: list[int] | np.ndarray) -> Histogram:
    array = np.asarray(lengths, dtype=float)
    counts = tuple(float((array <= bound).sum()) for bound in BOUNDS)
    return Histogram(BOUNDS, counts, float(array.sum()), float(len(array)))


def learnt(*batches: list[int]) -> LengthModel:
    model = LengthModel()
    for batch in batches:
        model.update(histogram(batch))
    return model


@settings(max_examples=80, deadline=None)
@given(Lengths, Lengths)
def test_survival_is_a_survival_function(first: list[int], second: list[int]) -> None:
    """It starts at one, never rises, ends at zero, and so does the equilibrium one."""
    model = learnt(first, second)
    at = np.concatenate([[0.0], np.geomspace(0.1, 2**20, 400)])
    for survival in (model.survival(at), model.equilibrium_survival(at)):
        assert survival[0] == pytest.approx(1.0)
        assert np.all(np.diff(survival) <= 1e-12)
        assert survival[-1] == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(Lengths)
def test_the_mean_is_the_observed_one(lengths: list[int]) -> None:
    """Coarse buckets do not blur the mean: the histogram's sum is exact."""
    assert learnt(lengths).mean_tokens == pytest.approx(float(np.mean(lengths)), rel=0.06, abs=1.0)


@settings(max_examples=60, deadline=None)
@given(Lengths, st.floats(0.0, 1.0))
def test_quantiles_invert_survival(lengths: list[int], q: float) -> None:
    """At the q-quantile a share 1 - q survives, up to the width of a cell."""
    model = learnt(lengths)
    at = model.quantile(q)
    assert float(model.survival(at)) <= 1 - q + 1e-6
    assert float(model.survival(max(at * 0.9 - 1.5, 0.0))) >= 1 - q - 1e-6


@settings(max_examples=60, deadline=None)
@given(Lengths)
def test_the_expected_total_grows_with_what_was_produced(lengths: list[int]) -> None:
    """g + E[L - g | L > g] never falls: a request that has run longer ends later."""
    model = learnt(lengths)
    produced = np.arange(0.0, min(max(lengths), 3000), 7.0)
    alive = model.survival(produced) > 1e-6
    total = (produced + model.residual_mean(produced))[alive]
    assert np.all(np.diff(total) >= -1e-6 * total[:-1])


def test_recent_requests_outweigh_old_ones() -> None:
    """After a change of traffic the model follows within its memory."""
    model = LengthModel(memory_requests=50)
    for _ in range(40):
        model.update(histogram([800] * 10))
    for _ in range(20):
        model.update(histogram([40] * 10))
    assert model.mean_tokens == pytest.approx(40, rel=0.4)
    assert model.weight_requests < 60


def test_nothing_is_learnt_from_nothing() -> None:
    """An empty update changes nothing; before the first request nobody is known to finish."""
    model = LengthModel()
    model.update(Histogram(BOUNDS, (0.0,) * len(BOUNDS), 0.0, 0.0))
    assert float(model.survival(1e6)) == 1.0
    assert float(model.equilibrium_survival(100.0)) == 1.0
    assert math.isinf(model.mean_tokens) and math.isinf(model.quantile(0.5))
    model.update(histogram([100]))
    before = model.survival(np.arange(200.0))
    model.update(Histogram(BOUNDS, (0.0,) * len(BOUNDS), 0.0, 0.0))
    assert np.array_equal(before, model.survival(np.arange(200.0)))


@pytest.mark.parametrize(
    "delta",
    [
        Histogram((1.0, math.inf), (1.0, math.nan), 3.0, 2.0),
        Histogram((1.0, math.inf), (2.0, 1.0), 3.0, 2.0),
        Histogram((1.0, math.inf), (0.0, 1.0), math.nan, 1.0),
        Histogram((1.0, math.inf), (0.0, 1.0), -5.0, 1.0),
        Histogram((2.0, 1.0), (0.0, 1.0), 5.0, 1.0),
        Histogram((1.0, math.nan), (0.0, 1.0), 5.0, 1.0),
        Histogram((1.0,), (0.0, 1.0), 5.0, 1.0),
        Histogram((), (), 0.0, 0.0),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(delta: Histogram) -> None:
    """NaN, negative, falling or ragged histograms raise and leave the model as it was."""
    model = learnt([10, 20, 30])
    before = model.mean_tokens
    with pytest.raises(ValueError, match="histogram"):
        model.update(delta)
    assert model.mean_tokens == before


@pytest.mark.parametrize("kind", ["conv", "code"])
def test_real_lengths_are_recovered_from_their_buckets(kind: str) -> None:
    """From coarse buckets, two requests at a time, a real trace's quantiles come out right."""
    path = TRACES / f"AzureLLMInferenceTrace_{kind}_2023.csv"
    if not path.is_file():
        pytest.skip(f"trace not found at {path}")
    with path.open() as file:
        lengths = np.array([int(row["GeneratedTokens"]) for row in csv.DictReader(file)], dtype=float)
    lengths = lengths[lengths > 0][:4000]
    model = LengthModel(memory_requests=1e6)
    for batch in np.array_split(lengths, 2000):
        model.update(histogram(batch))
    for q in (0.25, 0.5, 0.75, 0.95):
        assert model.quantile(q) == pytest.approx(np.quantile(lengths, q), rel=0.15, abs=2)
    for produced in (10.0, 50.0, 150.0):
        truth = (lengths[lengths > produced] - produced).mean()
        assert float(model.residual_mean(produced)) == pytest.approx(truth, rel=0.1)
    ahead = np.array([5.0, 20.0, 100.0, 300.0])
    truth = np.maximum(lengths[:, None] - ahead, 0).sum(axis=0) / lengths.sum()
    assert np.allclose(model.equilibrium_survival(ahead), truth, atol=0.03)
