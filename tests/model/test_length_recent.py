"""The newest requests move all classes' curves together, as far as there is evidence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kvwatt.length_classes import ClassLengths, FinishedRequest, Requests
from kvwatt.length_recent import RecentOptions

OFF = RecentOptions(prior_requests=1e9)
KINDS = {100: 400.0, 1900: 60.0}  # mean length by prompt length


def traffic(count: int, stretch: float, seed: int) -> list[FinishedRequest]:
    """Two classes of requests, all lengths stretched alike."""
    rng = np.random.default_rng(seed)
    prompts = rng.choice(list(KINDS), count)
    lengths = np.maximum(stretch * np.array([rng.gamma(4.0, KINDS[p] / 4.0) for p in prompts]), 1.0)
    return [FinishedRequest(int(p), int(n)) for p, n in zip(prompts, lengths, strict=True)]


def learnt(recent: RecentOptions, *parts: list[FinishedRequest]) -> ClassLengths:
    model = ClassLengths(recent=recent)
    for part in parts:
        for start in range(0, len(part), 100):
            model.update(part[start : start + 100])
    return model


def expected(model: ClassLengths) -> np.ndarray:
    """Expected length of a new request of each kind."""
    return model.expected_remaining(Requests.known(list(KINDS), np.zeros(len(KINDS))))


def test_a_drift_common_to_all_classes_is_followed_before_their_memory_turns_over() -> None:
    """Lengths 1.5 times as long for the last 1,500 of 9,500 requests: the error is halved by the newest."""
    parts = traffic(8000, 1.0, 1), traffic(1500, 1.5, 2)
    truth = 1.5 * np.array(list(KINDS.values()))
    slow, quick = (np.abs(expected(learnt(r, *parts)) - truth) for r in (OFF, RecentOptions(500.0)))
    assert (quick < 0.5 * slow).all()


def test_without_drift_it_changes_little() -> None:
    """Steady traffic: expectations stay within 5 % of those without correction."""
    steady = traffic(8000, 1.0, 3)
    plain, moved = (expected(learnt(options, steady)) for options in (OFF, RecentOptions()))
    assert moved == pytest.approx(plain, rel=0.05)


def test_a_few_requests_move_little() -> None:
    """Ten requests that all ended at once do not overturn what thousands said."""
    steady = traffic(4000, 1.0, 4)
    before = learnt(RecentOptions(), steady)
    after = learnt(RecentOptions(), steady, [FinishedRequest(100, 1) for _ in range(32)])
    assert expected(after)[0] == pytest.approx(expected(before)[0], rel=0.1)


def test_the_recent_is_at_most_a_fifth_of_the_memory() -> None:
    """A short memory is not overruled by a correction that remembers longer."""
    assert RecentOptions(2000.0).within(1000.0).memory_requests == 200.0
    assert RecentOptions(100.0).within(1000.0).memory_requests == 100.0


@pytest.mark.parametrize("name", ["memory_requests", "prior_requests"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_options_are_checked(name: str, value: float) -> None:
    """The message names the option and the value."""
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {value}"):
        RecentOptions(**{name: value})
