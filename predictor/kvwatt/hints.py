"""Callers' guesses of their output length, believed as far as they have been true.

Over finished requests log hint is regressed on log length: log hint = a + b log L + noise. Given a new
hint, every length gets its likelihood (Student t, so that one wild guess is not believed), which weighs
the class's own distribution by Bayes' rule. Hints that say nothing have b = 0 and change nothing;
biased ones are straightened; exact ones decide.
"""

from __future__ import annotations

import math

import numpy as np

from kvwatt.length_curves import EDGES, Floats

_FREEDOM = 4.0  # of the Student t
_DOUBT_REQUESTS = 10.0  # hints seen that count as much as the belief that hints say nothing
_LEAST_SD = 0.03  # no hint is believed closer than this (relative)
_LOG_CELL = np.log((EDGES[:-1] + EDGES[1:] + 1.0) / 2)


class HintTrust:
    """Forgets exponentially over `memory_hints` hinted requests."""

    def __init__(self, memory_hints: float = 500.0) -> None:
        if not (math.isfinite(memory_hints) and memory_hints >= 1):
            raise ValueError(f"memory_hints must be finite and >= 1, got {memory_hints}")
        self._keep = math.exp(-1.0 / memory_hints)
        self._sums = np.zeros(6)  # 1, x, y, xx, xy, yy with x = log length, y = log hint

    @property
    def seen(self) -> float:
        """How many recent hints the trust rests on."""
        return float(self._sums[0])

    def update(self, hint_tokens: float, output_tokens: float) -> None:
        """Learn from a request that ended by itself. Raises ValueError on what is not positive and finite."""
        for name, value in (("hint_tokens", hint_tokens), ("output_tokens", output_tokens)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        x, y = math.log(output_tokens), math.log(hint_tokens)
        self._sums = self._sums * self._keep + np.array([1.0, x, y, x * x, x * y, y * y])

    def law(self) -> tuple[float, float, float]:
        """(a, b, standard deviation) of log hint = a + b log L; b = 0 before anything is known."""
        n, x, y, xx, xy, yy = (float(value) for value in self._sums)
        if n < 1.0:
            return 0.0, 0.0, 1.0
        spread, cross, height = xx - x * x / n, xy - x * y / n, yy - y * y / n
        slope = max(cross, 0.0) / (spread + _DOUBT_REQUESTS * max(spread / n, 0.01))
        left = max(height - 2.0 * slope * cross + slope * slope * spread, 0.0)
        sd = math.sqrt((left + _DOUBT_REQUESTS * max(height / n, 0.01)) / (n + _DOUBT_REQUESTS))
        return (y - slope * x) / n, slope, max(sd, _LEAST_SD)

    def likelihood(self, hint_tokens: float) -> Floats:
        """Relative likelihood of this hint per cell of length, 1 at its largest."""
        a, slope, sd = self.law()
        miss = (math.log(max(hint_tokens, 1.0)) - a - slope * _LOG_CELL) / sd
        log_likelihood = -(_FREEDOM + 1.0) / 2 * np.log1p(miss * miss / _FREEDOM)
        return np.asarray(np.exp(log_likelihood - log_likelihood.max()))
