"""Online check of the step-time model against what the engine does.

Residual r = log(observed / predicted). Two forgetting averages of r: the slow one is the bias to correct
by, the distance of the fast one from it tells a change. The upper factor is a conformal quantile of the
bias-corrected residuals, adapted online (Gibbs and Candes 2021): after a miss the quantile asked for
rises, after a hit it falls, so that coverage holds in the long run even under drift.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

COVERAGE = 0.9
_WINDOW = 200
_ADAPT_RATE = 0.02
_PRIOR_SAMPLES = 4.0  # pseudo-observations "the model is right", so that one sample decides nothing
_LEAST_SAMPLES = 8  # before these, only the model's own bound is known
_LONGEST_GAP_S = 5.0  # a pause teaches nothing and must not empty the memory
_LIMIT = math.log(10.0)


class OnlineCalibration:
    """Feed `update`; read `bias`, `upper_factor` and `drifted`. Time is that of the samples."""

    def __init__(
        self,
        slow_s: float = 60.0,
        fast_s: float = 5.0,
        drift_ratio: float = 1.25,
        bias_limit: float = 1.6,
    ) -> None:
        if not 0 < fast_s < slow_s < math.inf:
            raise ValueError(f"need 0 < fast_s < slow_s, got {fast_s} and {slow_s}")
        if not 1 < drift_ratio < math.inf or not 1 < bias_limit < math.inf:
            raise ValueError(f"drift_ratio and bias_limit must exceed 1, got {drift_ratio} and {bias_limit}")
        self._slow_s, self._fast_s = slow_s, fast_s
        self._drift, self._bias_limit = math.log(drift_ratio), math.log(bias_limit)
        self._slow_sum, self._slow_weight = 0.0, _PRIOR_SAMPLES
        self._fast_sum, self._fast_weight = 0.0, _PRIOR_SAMPLES
        self._window: deque[float] = deque(maxlen=_WINDOW)
        self._miss_rate = 1.0 - COVERAGE
        self._last_s: float | None = None
        self.samples = 0
        self.rejected = 0

    @property
    def bias(self) -> float:
        """Observed over predicted, typically; within the bias limit either way."""
        return math.exp(min(max(self._slow, -self._bias_limit), self._bias_limit))

    @property
    def upper_factor(self) -> float:
        """Factor on bias x predicted that 90 % of observations stay below; >= 1."""
        if len(self._window) < _LEAST_SAMPLES:
            return 1.0
        if self._miss_rate <= 0:
            return math.exp(max(max(self._window), 0.0))
        level = min(1.0 - self._miss_rate, 1.0) * (1 + 1 / len(self._window))
        return math.exp(max(float(np.quantile(np.array(self._window), min(level, 1.0))), 0.0))

    @property
    def drifted(self) -> bool:
        """The engine is no longer what the model was fitted to: its bounds must not be relied on."""
        if self.samples < _LEAST_SAMPLES:
            return False
        fast = self._fast_sum / self._fast_weight
        return abs(self._slow) > self._bias_limit or fast - self._slow > self._drift

    @property
    def _slow(self) -> float:
        return self._slow_sum / self._slow_weight

    def update(self, predicted_s: float, observed_s: float, t_s: float) -> bool:
        """Learn from one busy interval; False when the numbers are unusable and were ignored."""
        usable = all(math.isfinite(x) for x in (predicted_s, observed_s, t_s))
        if (
            not usable
            or predicted_s <= 0
            or observed_s <= 0
            or (self._last_s is not None and t_s < self._last_s)
        ):
            self.rejected += 1
            return False
        residual = min(max(math.log(observed_s / predicted_s), -_LIMIT), _LIMIT)
        self._adapt(residual - self._slow)
        gap_s = 0.0 if self._last_s is None else min(t_s - self._last_s, _LONGEST_GAP_S)
        self._slow_sum, self._slow_weight = _fold(
            self._slow_sum, self._slow_weight, residual, gap_s / self._slow_s
        )
        self._fast_sum, self._fast_weight = _fold(
            self._fast_sum, self._fast_weight, residual, gap_s / self._fast_s
        )
        self._last_s = t_s
        self.samples += 1
        return True

    def _adapt(self, centred: float) -> None:
        """Score the bound before the sample is added to what the bound rests on."""
        if len(self._window) >= _LEAST_SAMPLES:
            missed = math.exp(centred) > self.upper_factor
            self._miss_rate += _ADAPT_RATE * (1.0 - COVERAGE - missed)
            self._miss_rate = min(max(self._miss_rate, 0.0), 2 * (1.0 - COVERAGE))
        self._window.append(centred)


def _fold(total: float, weight: float, residual: float, age: float) -> tuple[float, float]:
    keep = math.exp(-age)
    return total * keep + residual, weight * keep + 1.0
