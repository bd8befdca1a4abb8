"""The 90 % bound of a trained model, on new measurements of the same plant."""

from __future__ import annotations

import numpy as np
import pytest

from kvwatt.profiles import ProfileTable, table_of
from kvwatt.throughput import StepModel
from kvwatt.training import Origin, bound, fit, upper_factor
from kvwatt_sim.cards import load
from kvwatt_sim.virtual_profile import spread, virtual_profile


def fitted(table: ProfileTable) -> StepModel:
    return fit(table, Origin("virtual"))


def covered(table: ProfileTable, seed: int) -> float:
    """Share of the rows that a random half leaves out that lie under the bound from that half."""
    kept = np.zeros(len(table), dtype=bool)
    kept[np.random.default_rng(seed).permutation(len(table))[: len(table) // 2]] = True
    seen, unseen = table.select(kept), table.select(~kept)
    predicted = fitted(seen).step_time_s(unseen.clock_mhz, *unseen.load)
    return float(np.mean(unseen.step_time_s <= bound(seen, fitted) * predicted))


@pytest.mark.parametrize("name", ["l20", "h200"])
def test_nine_tenths_of_rows_left_out_lie_under_the_bound(name: str) -> None:
    """Noisy profiles and halves drawn anew: 87 to 93 % of all rows left out together are covered."""
    card = load(name)
    shares = []
    for seed in range(4):
        rows = virtual_profile(card, 11 + seed, noise=0.02, clocks=spread(card.supported_mhz, 8))
        shares.append(covered(table_of(rows), seed))
    assert 0.87 <= np.mean(shares) <= 0.93
    assert min(shares) > 0.82


@pytest.mark.parametrize("rows", [9, 14, 50, 135, 500])
def test_the_factor_covers_a_new_ratio_as_often_as_it_says(rows: int) -> None:
    """Any continuous law, any number of ratios: over many draws 90 % of the next ones are covered."""
    source = np.random.default_rng(rows)
    hits = []
    for _ in range(4000):
        ratios = np.exp(source.normal(0.05, 0.02, rows + 1))
        hits.append(ratios[-1] <= upper_factor(ratios[:-1]))
    assert np.mean(hits) == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / 4000))


def test_the_bound_never_promises_less_than_the_prediction() -> None:
    """Where predictions are all too long the factor is one."""
    assert upper_factor(np.linspace(0.5, 0.9, 30)) == 1.0
