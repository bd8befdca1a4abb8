"""Which factors an energy model goes by: permutation importance and partial dependence, as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kvwatt.energy_factors import FACTORS, Windows
from kvwatt.energy_model import accuracy
from kvwatt.lattice import Floats

Predict = Callable[[Windows], Floats]  # mean watts of each window
LEVELS = 25
MOST_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Dependence:
    """Mean watts over all windows with one factor set to each of `values`, in the factor's own unit."""

    factor: str
    values: Floats
    power_w: Floats


def importance(predict: Predict, windows: Windows, energy_j: Floats, seed: int = 0) -> Mapping[str, float]:
    """Accuracy lost when one factor is shuffled among the windows, largest first; 0 for one never known."""
    windows, energy_j = _thinned(windows, energy_j, seed)
    watts = energy_j / windows.duration_s
    whole = accuracy(watts, predict(windows))
    order = np.random.default_rng(seed)
    lost = {}
    for name in FACTORS:
        column = windows.column(name)
        if not np.isfinite(column).any():
            continue
        shuffled = windows.replacing(name, column[order.permutation(len(windows))])
        lost[name] = whole - accuracy(watts, predict(shuffled))
    return dict(sorted(lost.items(), key=lambda item: -item[1]))


def dependence(predict: Predict, windows: Windows, factor: str, levels: int = LEVELS) -> Dependence:
    """Partial dependence between the factor's 1st and 99th percentile (Friedman 2001). Raises `FactorError`
    for no factor, ValueError where no window knows it."""
    column = windows.column(factor)
    known = column[np.isfinite(column)]
    if not len(known):
        raise ValueError(f"factor {factor}: no window knows it")
    windows, _ = _thinned(windows, windows.duration_s, 0, MOST_ROWS // 4)
    low, high = (float(np.quantile(known, level)) for level in (0.01, 0.99))
    values = np.linspace(low, high, levels)
    power = [float(predict(windows.replacing(factor, float(value))).mean()) for value in values]
    return Dependence(factor, values, np.array(power))


def dependences(predict: Predict, windows: Windows, factors: Sequence[str]) -> list[Dependence]:
    """Partial dependence of several factors, those unknown everywhere left out."""
    known = [name for name in factors if np.isfinite(windows.column(name)).any()]
    return [dependence(predict, windows, name) for name in known]


def _thinned(windows: Windows, energy_j: Floats, seed: int, most: int = MOST_ROWS) -> tuple[Windows, Floats]:
    if len(windows) <= most:
        return windows, energy_j
    rows = np.sort(np.random.default_rng(seed).permutation(len(windows))[:most])
    return windows.select(rows), energy_j[rows]
