"""Callers' hints: believed as far as they have been true."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from kvwatt.hints import HintTrust
from kvwatt.length_classes import ClassLengths, FinishedRequest, Requests

Hint = Callable[[float, np.random.Generator], float]


def taught(hint: Hint, count: int = 3000) -> tuple[ClassLengths, np.random.Generator]:
    """A model that has seen requests of mean 200 with such hints."""
    rng = np.random.default_rng(9)
    lengths = np.maximum(rng.gamma(1.5, 133.0, count), 1.0).astype(int)
    model = ClassLengths()
    model.update([FinishedRequest(100, int(n), hint_tokens=hint(float(n), rng)) for n in lengths])
    return model, rng


def expected(model: ClassLengths, hint_tokens: float, produced: float = 0.0) -> float:
    requests = Requests.known([100.0], [produced], math.inf, [hint_tokens])
    return float(model.expected_remaining(requests)[0])


def test_true_hints_decide() -> None:
    """Callers who know are believed."""
    model, _ = taught(lambda n, _: n)
    for hint in (50.0, 200.0, 600.0):
        assert expected(model, hint) == pytest.approx(hint, rel=0.1)


def test_hints_that_say_nothing_change_nothing() -> None:
    """Random hints leave the class's own expectation."""
    model, _ = taught(lambda _, rng: float(rng.uniform(10, 1000)))
    for hint in (20.0, 200.0, 900.0):
        assert expected(model, hint) == pytest.approx(expected(model, math.nan), rel=0.1)


def test_biased_hints_are_straightened() -> None:
    """Callers who always say twice as much are understood."""
    model, _ = taught(lambda n, _: 2.0 * n)
    assert expected(model, 400.0) == pytest.approx(200.0, rel=0.1)


def test_noisy_hints_beat_none_and_beat_being_taken_at_their_word() -> None:
    """The posterior mean errs less than the class alone and less than the raw guess."""
    model, rng = taught(lambda n, rng: n * float(rng.lognormal(0.0, 0.7)))
    lengths = np.maximum(rng.gamma(1.5, 133.0, 1500), 1.0)
    hints = lengths * rng.lognormal(0.0, 0.7, 1500)
    told = model.expected_remaining(Requests.known(np.full(1500, 100.0), np.zeros(1500), math.inf, hints))
    blind = expected(model, math.nan)
    errors = [float(np.square(guess - lengths).mean()) for guess in (told, hints, np.full(1500, blind))]
    assert errors[0] < 0.8 * min(errors[1:])


def test_a_request_that_outlives_its_hint_goes_on() -> None:
    """Past the hinted end the rest stays positive and finite."""
    model, _ = taught(lambda n, rng: n * float(rng.lognormal(0.0, 0.2)))
    assert 1.0 <= expected(model, 100.0, produced=400.0) < 1000.0


def test_one_liar_is_not_believed_on_his_word() -> None:
    """After few hints the class still rules."""
    trust = HintTrust()
    trust.update(100.0, 100.0)
    assert trust.seen == 1.0
    assert trust.likelihood(1000.0).min() > 0.9


def test_callers_may_say_anything() -> None:
    """Hints of zero, infinity or NaN count as none, finished or running."""
    model, _ = taught(lambda n, _: n)
    seen = model.hints.seen
    for nonsense in (0.0, -5.0, math.inf, math.nan):
        model.update([FinishedRequest(100, 50, hint_tokens=nonsense)])
        assert expected(model, nonsense) == pytest.approx(expected(model, math.nan))
    assert model.hints.seen == seen
    assert math.isfinite(expected(model, 1e12))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_nonsense_is_refused_by_name(value: float) -> None:
    """A hint is a positive number of tokens."""
    with pytest.raises(ValueError, match="hint_tokens"):
        HintTrust().update(value, 10.0)
    with pytest.raises(ValueError, match="memory_hints"):
        HintTrust(memory_hints=value if value != 1.0 else 0.0)
