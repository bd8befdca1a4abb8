"""A forecast for traffic whose day is shorter than a day: a replay at many times the speed."""

from __future__ import annotations

from dataclasses import dataclass

from kvwatt.forecast import RateLearner
from kvwatt.pool import RateOutlook

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class PacedOutlook:
    """An outlook in the time of a whole day, read in ours; `pace` of its seconds are one of ours."""

    inner: RateOutlook
    pace: float

    def mean_per_s(self, horizon_s: float) -> float:
        """Expected rate of arrivals per second `horizon_s` from now."""
        return self.inner.mean_per_s(horizon_s * self.pace) * self.pace

    def cautious_per_s(self, level: float, horizon_s: float) -> float:
        """Rate `horizon_s` from now that the traffic stays below with at least the probability `level`."""
        return self.inner.cautious_per_s(level, horizon_s * self.pace) * self.pace


class PacedLearner:
    """What a `RateLearner` would learn of the same arrivals spread over a whole day."""

    def __init__(self, day_s: float) -> None:
        self._inner = RateLearner()
        self._pace = DAY_S / day_s

    def observe(self, start_s: float, dt_s: float, arrivals: float) -> None:
        """`arrivals` came in the `dt_s` seconds from `start_s`."""
        self._inner.observe(start_s * self._pace, dt_s * self._pace, arrivals)

    def forecast(self, now_s: float) -> RateOutlook | None:
        """As learned so far; None before anything was."""
        made = self._inner.forecast(now_s * self._pace)
        if made is None or self._pace == 1.0:
            return made
        return PacedOutlook(made, self._pace)
