"""Measured energy divided among requests: exact, in proportion, nothing lost over any hour."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvwatt.attribution import MICRO, EnergyBook, Microjoules, Part, Prices, Work, apportion, prices_of
from kvwatt.lattice import Floats

PRICES = Prices(2.0, 0.01, 0.02, 1e-5, 80.0)
amounts = st.floats(0.0, 1e6, allow_nan=False)
works = st.builds(Work, st.one_of(st.none(), st.integers(0, 20)), amounts, amounts, amounts, amounts)


@given(st.integers(0, 10**15), st.lists(amounts, min_size=1, max_size=40).filter(any))
def test_shares_add_up_to_the_total_and_follow_the_weights(total: int, weights: list[float]) -> None:
    """No microjoule is lost or made, and none is further than one from its exact share."""
    shares = apportion(total, weights)
    assert sum(shares) == total
    assert all(share >= 0 for share in shares)
    whole = sum(weights)
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * (weight / whole)) <= 1.0 + 1e-9 * total


@pytest.mark.parametrize(
    ("total", "weights"), [(-1, [1.0]), (1, []), (1, [0.0]), (1, [float("nan")]), (1, [-1.0])]
)
def test_what_cannot_be_divided_is_refused(total: int, weights: list[float]) -> None:
    """Nothing to divide by is an error of the caller, told as such."""
    with pytest.raises(ValueError, match="weights"):
        apportion(total, weights)


events = st.lists(
    st.tuples(
        st.sampled_from(["charge", "finish", "abandon"]), st.integers(0, 10**9), st.lists(works, max_size=6)
    ),
    max_size=30,
)


@given(events)
def test_every_sum_is_the_counter(steps: list[tuple[str, int, list[Work]]]) -> None:
    """By part and by owner: both sums are what was charged, at every moment."""
    book, charged = EnergyBook(), 0
    for kind, amount, done in steps:
        if kind == "charge":
            book.charge(amount, done, sum(work.steps for work in done), amount % 7, PRICES)
            charged += amount
        elif kind == "finish":
            book.finish(amount % 20, 1, 1)
        else:
            book.abandon(amount % 20)
        owners = book.untold + book.open + book.finished + book.abandoned
        assert book.total == charged
        assert book.total == owners + book.parts[Part.IDLE] + book.parts[Part.UNKNOWN]


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_an_hour_of_a_counter_is_attributed_to_the_microjoule(seed: int) -> None:
    """Readings of a real counter, floats of millijoules: over the hour the parts differ from it by less than
    0.1 %, in fact by less than a microjoule."""
    draw, book, micro, total_j = (
        random.Random(seed),
        EnergyBook(),
        Microjoules(),
        1e6 * random.Random(seed).random(),
    )
    first_j = total_j
    micro.since_last(total_j)
    for _ in range(1200):
        total_j += draw.expovariate(1 / 600.0)
        done = [
            Work(key, draw.random() * 30, 0.0, draw.random() * 30, draw.random() * 1e5) for key in range(5)
        ]
        book.charge(micro.since_last(total_j), done, 40.0, draw.choice((0.0, 1.5)), PRICES)
    assert abs(book.total / MICRO - (total_j - first_j)) <= 1.1e-6
    assert book.total > 0


def test_idle_energy_belongs_to_nobody() -> None:
    """An interval without work is idle energy whole; without work and without idling it is unknown."""
    book = EnergyBook()
    book.charge(1000, [], 0.0, 3.0, PRICES)
    book.unknown(10)
    assert (book.parts[Part.IDLE], book.parts[Part.UNKNOWN], book.total) == (1000, 10, 1010)


def test_a_step_is_shared_by_who_took_part_in_it() -> None:
    """Two requests in every step pay half of its weights each; who was there for half of the steps, less."""
    book, price = EnergyBook(), Prices(1.0, 0.0, 0.0, 0.0, 0.0)
    book.charge(900, [Work("whole", 10, 0, 10, 0), Work("half", 5, 0, 5, 0)], 10.0, 0.0, price)
    whole, half = (book.finish(key, 1, 10) for key in ("whole", "half"))
    assert (whole.joules, half.joules) == pytest.approx((600e-6, 300e-6))
    assert whole.parts_j[Part.WEIGHTS] == whole.joules
    assert whole.output_token_j == pytest.approx(60e-6)


class Linear:
    """A step of 10 ms plus 1 ms per decode, 1 us per KV token and 0.1 ms per prompt token, at 200 W."""

    def step_time_s(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats:
        return np.asarray(0.01 + 0.001 * batch + 1e-6 * kv + 1e-4 * prefill)

    def power_w(self, clock_mhz: Floats, batch: Floats, kv: Floats, prefill: Floats, /) -> Floats:
        return np.full(len(batch), 200.0)

    def idle_power_w(self, clock_mhz: Floats, /) -> Floats:
        return np.full(len(clock_mhz), 60.0)


def test_prices_are_the_terms_of_the_step_model() -> None:
    """A law that is a sum has prices that are its summands, whatever the operating point."""
    for batch, kv, chunk in ((1.0, 100.0, 16.0), (32.0, 30_000.0, 512.0)):
        price = prices_of(Linear(), 1200.0, batch, kv, chunk)
        assert price.kv_token_j == pytest.approx(200e-6)
        assert price.prefill_token_j == pytest.approx(0.02)
        assert price.idle_w == 60.0
        if batch > 1:
            assert price.decode_token_j == pytest.approx(0.2)
            assert price.step_j == pytest.approx(2.0)


def test_energy_that_is_negative_is_refused() -> None:
    """A counter that went back is somebody else's to bridge."""
    with pytest.raises(ValueError, match="energy_uj"):
        EnergyBook().charge(-1, [], 0.0, 0.0, PRICES)


def test_a_total_that_goes_back_starts_anew() -> None:
    """Nothing negative comes out, and what follows is counted from there."""
    micro = Microjoules()
    assert [micro.since_last(value) for value in (5.0, 6.0, 2.0, 2.5, float("nan"), 3.0)] == [
        0, 1_000_000, 0, 500_000, 0, 500_000,
    ]  # fmt: skip
