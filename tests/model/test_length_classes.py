"""Laws of the lengths by class: survival, censoring, classes, calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.length_classes import ClassLengths, FinishedRequest, Requests
from kvwatt.state import RequestState

Finished = st.builds(
    FinishedRequest,
    st.integers(0, 20_000),
    st.integers(1, 5_000),
    st.one_of(st.none(), st.integers(1, 4_000)),
    aborted=st.booleans(),
)


def learnt(finished: list[FinishedRequest], **options: float) -> ClassLengths:
    model = ClassLengths(**options)
    model.update(finished)
    return model


def two_kinds(count: int, seed: int) -> list[FinishedRequest]:
    """Short prompts get long answers, long prompts short ones."""
    rng = np.random.default_rng(seed)
    prompts = rng.choice([100, 300, 1000, 1900], count)
    means = np.where(prompts < 700, 400.0, 40.0)
    lengths = np.maximum(rng.gamma(4.0, means / 4.0), 1.0).astype(int)
    return [FinishedRequest(int(p), int(n)) for p, n in zip(prompts, lengths, strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.lists(Finished, min_size=1, max_size=80), st.integers(0, 6000), st.integers(0, 20_000))
def test_the_chance_to_go_on_is_a_survival_function(
    finished: list[FinishedRequest], produced: int, prompt: int
) -> None:
    """From one it never rises, and is zero from max_tokens on."""
    model = learnt(finished)
    ahead = np.concatenate([[0.0], np.geomspace(1, 50_000, 60)])
    requests = Requests.known([prompt, prompt], [produced, produced], [math.inf, produced + 50.0])
    free, capped = model.alive(requests, np.broadcast_to(ahead, (2, len(ahead))))
    for alive in (free, capped):
        assert alive[0] == pytest.approx(1.0)
        assert (np.diff(alive) <= 1e-9).all()
        assert (alive >= 0.0).all()
    assert (capped[ahead >= 50] == 0.0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(Finished, min_size=1, max_size=80), st.integers(0, 6000), st.floats(0.05, 0.95))
def test_expected_and_quantile_of_the_rest_respect_the_limits(
    finished: list[FinishedRequest], produced: int, q: float
) -> None:
    """A running request produces at least one more token and at most what max_tokens leaves."""
    requests = Requests.known([500.0, 500.0], [produced, produced], [math.inf, produced + 7.0])
    model = learnt(finished)
    for rest in (model.expected_remaining(requests), model.remaining_quantile(requests, q)):
        assert (rest >= 1.0).all() and np.isfinite(rest).all()
        assert rest[1] <= 7.0


def test_one_class_gives_the_plain_conditional_mean() -> None:
    """With nothing to tell requests apart, E[L - g | L > g] is the average over those that got so far."""
    rng = np.random.default_rng(1)
    lengths = rng.geometric(1 / 60, 4000)
    model = learnt([FinishedRequest(100, int(n)) for n in lengths], memory_requests=1e6)
    for produced in (0, 3, 17, 40, 63, 120):
        truth = (lengths[lengths > produced] - produced).mean()
        rest = model.expected_remaining(Requests.known([100.0], [produced]))
        assert rest[0] == pytest.approx(truth, rel=0.02)
    assert model.mean_tokens == pytest.approx(lengths.mean(), rel=0.01)


def test_the_quantile_of_the_rest_is_exceeded_as_often_as_it_says() -> None:
    """The q-quantile of the rest covers a share q of those that got so far."""
    rng = np.random.default_rng(2)
    lengths = rng.geometric(1 / 200, 6000)
    model = learnt([FinishedRequest(100, int(n)) for n in lengths], memory_requests=1e6)
    for produced, q in ((0, 0.5), (50, 0.9), (200, 0.25)):
        rest = model.remaining_quantile(Requests.known([100.0], [produced]), q)[0]
        alive = lengths[lengths > produced] - produced
        assert (alive <= rest).mean() == pytest.approx(q, abs=0.02)


def test_answers_cut_off_bias_nothing() -> None:
    """Half of the requests are cut at 100 tokens; without a limit the mean is still the true one."""
    rng = np.random.default_rng(3)
    lengths = rng.geometric(1 / 200, 8000)
    limits = np.where(rng.random(8000) < 0.5, 100, 4000)
    finished = [
        FinishedRequest(100, int(min(n, cap)), int(cap)) for n, cap in zip(lengths, limits, strict=True)
    ]
    seen = np.minimum(lengths, limits).mean()
    free = Requests.known([100.0], [0.0], [4000.0])
    expected = learnt(finished, memory_requests=1e6).expected_remaining(free)[0]
    assert seen < 150
    assert expected == pytest.approx(200.0, rel=0.05)


def test_classes_are_found_where_lengths_differ() -> None:
    """Prompts that get other answers make a class, also where the dependence falls."""
    model = learnt(two_kinds(3000, seed=4))
    short, long = model.expected_remaining(Requests.known([300.0, 1000.0], [0.0, 0.0]))
    assert short == pytest.approx(400.0, rel=0.08)
    assert long == pytest.approx(40.0, rel=0.08)
    assert model.expected_remaining(Requests.known([1900.0], [300.0]))[0] < 400.0


def test_classes_by_max_tokens_are_found_too() -> None:
    """Callers who ask for little get little, whatever their prompt."""
    rng = np.random.default_rng(5)
    finished = []
    for _ in range(3000):
        limit = int(rng.choice([256, 4096]))
        mean = 30.0 if limit == 256 else 500.0
        finished.append(FinishedRequest(int(rng.integers(10, 2000)), int(rng.geometric(1 / mean)), limit))
    model = learnt(finished)
    little, much = model.expected_remaining(Requests.known([500.0, 500.0], [0.0, 0.0], [256.0, 4096.0]))
    assert little == pytest.approx(30.0, rel=0.1)
    assert much == pytest.approx(500.0, rel=0.1)


def test_no_classes_are_made_of_noise() -> None:
    """Where the prompt says nothing, one class remains (twenty seeds)."""
    classes = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lengths = np.maximum(rng.lognormal(4.0, 1.0, 2000), 1.0)
        finished = [
            FinishedRequest(int(p), int(n)) for p, n in zip(rng.integers(1, 8000, 2000), lengths, strict=True)
        ]
        model = learnt(finished)
        assert model.classes is not None
        classes.append(model.classes.pooled)
    assert max(classes) == 1


def test_a_thin_class_leans_on_the_pooled_curve() -> None:
    """Far out, where a class has seen nobody, it expects what all the others do."""
    rng = np.random.default_rng(6)
    many = [FinishedRequest(1000, int(n)) for n in rng.geometric(1 / 300, 3000)]
    few = [FinishedRequest(10, int(n)) for n in rng.integers(5, 15, 120)]
    model = learnt(many + few)
    near, far = model.expected_remaining(Requests.known([10.0, 10.0], [0.0, 200.0]))
    assert near < 40.0
    assert far == pytest.approx(300.0, rel=0.25)


def test_the_second_half_of_steady_traffic_comes_as_the_first_said() -> None:
    """Observed over expected is one within chance in every decile of all (request, tokens produced) pairs."""
    finished = two_kinds(16_000, seed=7)
    model = learnt(finished[:8000], memory_requests=1e5)
    total = np.array([r.output_tokens for r in finished[8000:]])
    prompt = np.array([r.prompt_tokens for r in finished[8000:]], dtype=float)
    who = np.repeat(np.arange(len(total)), total)
    produced = np.arange(len(who)) - np.repeat(np.cumsum(total) - total, total)
    expected = model.expected_remaining(Requests.known(prompt[who], produced))
    observed = total[who] - produced
    for part in np.array_split(np.argsort(expected, kind="stable"), 10):
        assert observed[part].mean() == pytest.approx(expected[part].mean(), rel=0.07)


def test_recent_requests_outweigh_old_ones_by_class() -> None:
    """After a change of traffic the model follows within its memory."""
    model = ClassLengths(memory_requests=100)
    for length in [800] * 400 + [40] * 400:
        model.update([FinishedRequest(100, length)])
    assert model.mean_tokens == pytest.approx(40.0, rel=0.5)


def test_everything_runs_for_ever_before_the_first_one_has_finished() -> None:
    """Nothing is known from nothing, and empty updates or empty answers say nothing."""
    model = ClassLengths()
    model.update([])
    model.update([FinishedRequest(10, 0, aborted=True)])
    requests = Requests.known([100.0, 100.0], [5.0, 5.0], [math.inf, 25.0])
    assert model.mean_tokens == math.inf
    assert model.expected_remaining(requests).tolist() == [math.inf, 20.0]
    assert model.remaining_quantile(requests, 0.5).tolist() == [math.inf, 20.0]
    assert float(model.equilibrium_survival(100.0)) == 1.0
    assert float(model.survival(1e5)) == 1.0


def test_it_reads_like_the_model_of_aggregates() -> None:
    """Pooled survival and equilibrium agree with the empirical ones."""
    finished = two_kinds(4000, seed=8)
    lengths = np.array([r.output_tokens for r in finished])
    model = learnt(finished, memory_requests=1e6)
    at = np.array([0.0, 10.0, 40.0, 200.0, 500.0])
    assert model.survival(at) == pytest.approx((lengths[:, None] > at).mean(axis=0), abs=0.01)
    truth = np.maximum(lengths[:, None] - at, 0).sum(axis=0) / lengths.sum()
    assert model.equilibrium_survival(at) == pytest.approx(truth, abs=0.01)


def test_states_become_columns() -> None:
    """No limit is infinite, no hint is NaN."""
    columns = Requests.of(
        [RequestState(0.0, 10, 10, 3), RequestState(0.0, 20, 20, 4, max_tokens=9, hint_tokens=6.0)]
    )
    assert columns.limit.tolist() == [math.inf, 9.0]
    assert math.isnan(columns.hint[0]) and columns.hint[1] == 6.0
    assert columns.select(np.array([False, True])).index.tolist() == [1]


@pytest.mark.parametrize("memory", [0.0, math.nan, math.inf])
def test_a_memory_of_nothing_is_refused(memory: float) -> None:
    """The error names the value."""
    with pytest.raises(ValueError, match="memory_requests"):
        ClassLengths(memory_requests=memory)


def test_negative_counts_are_refused() -> None:
    """A finished request has token counts from zero."""
    with pytest.raises(ValueError, match="token counts"):
        FinishedRequest(-1, 5)


@settings(max_examples=60, deadline=None)
@given(st.lists(Finished, min_size=1, max_size=80), st.integers(0, 3000), st.floats(0.0, 1e6))
def test_all_and_some_are_read_as_each_by_itself(
    finished: list[FinishedRequest], produced: int, more: float
) -> None:
    """One read for a decision's two questions gives what two give."""
    model = learnt(finished)
    requests = Requests.known([10, 900, 4000], [produced, 0, 7], [math.inf, produced + 50.0, math.inf])
    ahead = np.outer([1.0, 2.0, 0.0], np.geomspace(1, 50_000, 5))
    who, more_each = np.array([1, 1, 2, 1, 1, 2]), np.array([0.0, more, 1.0, more, math.inf, 1.0 + more])
    every, some = model.alive_and_some(requests, ahead.T, who, more_each)
    assert np.allclose(every.T, model.alive(requests, ahead), atol=1e-12)
    single = model.alive(requests.select(who), more_each[:, None])
    assert np.allclose(some, single[:, 0], atol=1e-12)
