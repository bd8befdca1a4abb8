"""Several memories of lengths: the one that foresees is believed, and who still runs counts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from kvwatt.length_classes import ClassLengths, FinishedRequest, Requests
from kvwatt.length_experts import MEMORIES, Experts
from kvwatt.length_memory import Memory
from kvwatt.lengths import LengthModel
from kvwatt.state import Histogram

NEW = Requests.known([100.0], [0.0])
SPREAD = 0.3  # of a length around its mean


def told(model: ClassLengths, lengths: Iterable[int]) -> None:
    """One by one in groups, as a daemon tells them."""
    group = [FinishedRequest(100, length) for length in lengths]
    for first in range(0, len(group), 20):
        model.update(group[first : first + 20])


def drawn(mean: float, count: int, seed: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).lognormal(np.log(mean), SPREAD, count) + 1.0]


def mean(model: ClassLengths) -> float:
    return float(model.expected_remaining(NEW)[0])


def weights(model: ClassLengths) -> np.ndarray:
    return model._experts.weights


def test_a_long_memory_is_believed_while_lengths_stand_still() -> None:
    """The shortest memory has the most noise and foresees least."""
    model = ClassLengths()
    told(model, drawn(200.0, 3000, 1))
    assert weights(model).sum() == pytest.approx(1.0)
    assert weights(model)[0] < 0.02
    assert weights(model)[2:].sum() > 0.9


def test_a_short_memory_takes_over_when_lengths_move() -> None:
    """After many requests of one mean, a few hundred of another: the average follows, and sooner than a long
    memory alone."""
    model, slow = ClassLengths(), ClassLengths(recent=MEMORIES[-2])
    before, after = drawn(200.0, 3000, 2), drawn(320.0, 300, 3)
    for each in (model, slow):
        told(each, before)
        told(each, after)
    truth = float(np.mean(after))
    assert weights(model)[0] > 0.5
    assert abs(mean(model) - truth) < 0.5 * abs(mean(slow) - truth)


def test_the_average_foresees_nearly_as_well_as_the_best_memory() -> None:
    """Of a drifting stream, in log loss: no worse than the best fixed memory but for a few nats a change."""
    parts = [drawn(m, 250, i) for i, m in enumerate((100.0, 240.0, 160.0))]
    models = [ClassLengths(), *(ClassLengths(recent=one) for one in MEMORIES if one)]
    losses = np.zeros(len(models))
    for length in (n for part in parts for n in part):
        at = np.array([[length - 1.0, float(length)]])
        for i, model in enumerate(models):
            if model.known:
                alive = model.alive(NEW, at)[0]
                losses[i] -= np.log(max(float(alive[0] - alive[1]), 1e-9))
            model.update([FinishedRequest(100, length)])
    assert losses[0] <= losses[1:].min() + 12.0


def test_no_memory_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="one memory or more"):
        Experts([])


def in_flight(at_tick: int, lengths: list[int], every: int) -> tuple[list[FinishedRequest], Requests]:
    """Requests that began one every so many ticks, a token a tick each: who ended and who runs."""
    ages = [at_tick - every * i for i in range(len(lengths)) if every * i <= at_tick]
    ended = sorted((every * i + n, n) for i, n in enumerate(lengths) if every * i + n <= at_tick)
    live = [age for age, n in zip(ages, lengths, strict=False) if age < n]
    return [FinishedRequest(100, n) for _, n in ended], Requests.known([100.0] * len(live), live)


@pytest.mark.parametrize("seed", range(3))
def test_who_still_runs_counts_from_an_empty_start(seed: int) -> None:
    """The first to finish are the short ones: alone they tell too short lengths."""
    lengths = [int(n) + 1 for n in np.random.default_rng(seed).exponential(400.0, 200)]
    finished, running = in_flight(400, lengths, every=2)
    alone, both = ClassLengths(), ClassLengths()
    both._held.run(Requests.known([], []))  # nobody ran at first
    alone.update(finished)
    both.update(finished, running)
    assert mean(alone) < 0.6 * 400.0
    assert mean(both) == pytest.approx(400.0, rel=0.3)


def test_who_ran_at_first_stands_for_who_runs_now() -> None:
    """Beside a server that was busy all along the finished ones are no biased sample: nothing is added."""
    memory, running = Memory(100), Requests.known([100.0] * 8, [50.0] * 8)
    memory.run(running)
    memory.extend([FinishedRequest(100, 20)] * 5)
    assert len(memory.sample(1000.0).tokens) == 5
    memory.run(Requests.known([100.0] * 16, [50.0] * 16))
    more = memory.sample(1000.0)
    assert more.weight[~more.ended].sum() == pytest.approx(8.0 * np.exp(-5 / 1000.0))


def test_who_runs_counts_less_the_longer_the_past_is() -> None:
    """After several memories of finished requests it adds nothing."""
    memory = Memory(2000)
    memory.run(Requests.known([], []))
    memory.extend([FinishedRequest(100, 20)] * 1000)
    memory.run(Requests.known([100.0] * 8, [50.0] * 8))
    assert memory.sample(100.0).ended.all()
    assert not memory.sample(1000.0).ended.all()


def test_single_requests_lean_on_the_histogram_at_first() -> None:
    """What a page told of the past stands until single requests outweigh it."""
    pooled = LengthModel()
    pooled.update(Histogram((299.0, 300.0, np.inf), (0.0, 50.0, 50.0), 15_000.0, 50.0))
    model = ClassLengths(pooled=pooled)
    assert not model.known
    model.update([])
    assert model.known and mean(model) == pytest.approx(300.0, rel=0.05)
    told(model, drawn(100.0, 10, 4))
    assert 150.0 < mean(model) < 250.0
    told(model, drawn(100.0, 500, 5))
    assert mean(model) == pytest.approx(105.0, rel=0.1)


def test_longer_than_all_that_was_ever_seen() -> None:
    """Neither the histogram nor single requests know: it goes on at the rate at which requests end."""
    pooled = LengthModel()
    pooled.update(Histogram((299.0, 300.0, np.inf), (0.0, 50.0, 50.0), 15_000.0, 50.0))
    model = ClassLengths(pooled=pooled)
    model.update([FinishedRequest(100, 300)] * 3)
    rest = model.expected_remaining(Requests.known([100.0, 100.0], [299.0, 1000.0]))
    assert rest[0] < 30.0
    assert rest[1] == pytest.approx(300.0, rel=0.1)
