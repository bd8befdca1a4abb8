"""Short-term arrival rate with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateForecast:
    """Predictive distribution of the arrival rate, as learned until `made_s`.

    A learner (`RateLearner`: `observe(start_s, dt_s, arrivals)`, `forecast(now_s)`) makes it; a time
    without an observation is a gap, never a zero.
    """

    made_s: float
    level_per_s: float

    def mean_per_s(self, horizon_s: float) -> float:
        """Expected rate of arrivals per second `horizon_s` from now."""
        raise NotImplementedError

    def quantile_per_s(self, level: float, horizon_s: float) -> float:
        """Rate that the traffic stays below until `horizon_s` from now with probability `level`."""
        raise NotImplementedError
