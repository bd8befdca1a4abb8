"""Online check of the step-time model against what the engine does.

Residual r = log(observed / predicted). Two forgetting averages of r: the slow one is the bias to correct
by, the distance of the fast one from it tells a change. The upper factor is a conformal quantile of the
bias-corrected residuals, adapted online (Gibbs and Candes 2021): after a miss the quantile asked for
rises, after a hit it falls, so that coverage holds in the long run even under drift. While the fast
average runs ahead of the slow one the bound widens with it, and beyond the drift limit the model is not
to be relied on at all. Steps with and without prompts err differently: `RegimeCalibration` keeps both.
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
_DEAD_ZONE = 0.25  # of the drift limit: smaller moves of the fast average are scatter


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
        self._hits = 0
        self.scored = 0
        self.samples = 0
        self.rejected = 0

    @property
    def bias(self) -> float:
        """Observed over predicted, typically; within the bias limit either way."""
        return math.exp(min(max(self._slow, -self._bias_limit), self._bias_limit))

    @property
    def upper_factor(self) -> float:
        """Factor on bias x predicted that 90 % of observations stay below; >= 1, wider while drifting."""
        if len(self._window) < _LEAST_SAMPLES:
            return 1.0
        widened = max(self._ahead - _DEAD_ZONE * self._drift, 0.0)
        return math.exp(max(self._quantile, 0.0) + widened)

    @property
    def coverage(self) -> float | None:
        """Share of the samples so far that lay within the bound of their moment, if any."""
        return self._hits / self.scored if self.scored else None

    @property
    def drifted(self) -> bool:
        """The engine is no longer what the model was fitted to: its bounds must not be relied on."""
        if self.samples < _LEAST_SAMPLES:
            return False
        return abs(self._slow) > self._bias_limit or self._ahead > self._drift

    @property
    def _slow(self) -> float:
        return self._slow_sum / self._slow_weight

    @property
    def _ahead(self) -> float:
        return self._fast_sum / self._fast_weight - self._slow

    @property
    def _quantile(self) -> float:
        if self._miss_rate <= 0:
            return max(self._window)
        level = min(1.0 - self._miss_rate, 1.0) * (1 + 1 / len(self._window))
        return float(np.quantile(np.array(self._window), min(level, 1.0)))

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
            self._hits += not missed
            self.scored += 1
            self._miss_rate += _ADAPT_RATE * (1.0 - COVERAGE - missed)
            self._miss_rate = min(max(self._miss_rate, 0.0), 2 * (1.0 - COVERAGE))
        self._window.append(centred)


def _fold(total: float, weight: float, residual: float, age: float) -> tuple[float, float]:
    keep = math.exp(-age)
    return total * keep + residual, weight * keep + 1.0


class RegimeCalibration(OnlineCalibration):
    """All samples together, and each regime for itself; the bound is that of the worst regime."""

    def __init__(self) -> None:
        super().__init__()
        self.regimes: dict[str, OnlineCalibration] = {}

    def update(self, predicted_s: float, observed_s: float, t_s: float, regime: str | None = None) -> bool:
        """As `OnlineCalibration.update`; `regime` names what kind of interval it was."""
        learnt = super().update(predicted_s, observed_s, t_s)
        if learnt and regime is not None:
            self.regimes.setdefault(regime, OnlineCalibration()).update(predicted_s, observed_s, t_s)
        return learnt

    @property
    def upper_factor(self) -> float:
        """Factor on `bias` x predicted that covers 90 % in every regime that has been seen enough."""
        known = (c for c in self.regimes.values() if c.samples >= _LEAST_SAMPLES)
        return max(super().upper_factor, *(c.bias * c.upper_factor / self.bias for c in known), 1.0)

    @property
    def drifted(self) -> bool:
        """True when the whole or one regime has drifted."""
        return super().drifted or any(c.drifted for c in self.regimes.values())


class LatencyCalibration:
    """Factor on a latency bound (TTFT, E2E) that makes it hold for `quantile` of the requests.

    Only counts are known: of `total` requests in an interval `met` lay within factor x bound. The log of
    the factor follows them by quantile tracking (Angelopoulos et al. 2023, conformal PID control): up by
    rate x (share missed - (1 - quantile)), so that misses in the long run are 1 - quantile.
    """

    def __init__(self, quantile: float, rate: float = 0.05, limit: float = 2.0) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie between 0 and 1, got {quantile}")
        if not 0 < rate < 1 or not 1 < limit < math.inf:
            raise ValueError(f"need 0 < rate < 1 and limit > 1, got {rate} and {limit}")
        self._quantile, self._rate, self._limit = quantile, rate, math.log(limit)
        self._log = 0.0
        self.met = 0.0
        self.total = 0.0

    @property
    def factor(self) -> float:
        """At least 1: a bound is only ever widened."""
        return math.exp(self._log)

    @property
    def coverage(self) -> float | None:
        """Share of requests within the widened bound so far."""
        return self.met / self.total if self.total > 0 else None

    @property
    def drifted(self) -> bool:
        """The bound has been widened as far as makes sense and still does not hold."""
        return self._log >= self._limit

    def update(self, met: float, total: float) -> bool:
        """Learn from `total` requests; False when the counts are unusable and were ignored."""
        if not (math.isfinite(met) and math.isfinite(total) and 0 <= met <= total and total > 0):
            return False
        missed = (total - met) - (1.0 - self._quantile) * total
        # Many requests at once are one observation of one moment: they count as ten at most.
        step = self._rate * missed * min(1.0, 10.0 / total)
        self._log = min(max(self._log + step, 0.0), self._limit)
        self.met += met
        self.total += total
        return True
