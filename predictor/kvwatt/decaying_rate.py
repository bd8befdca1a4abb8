"""A rate of events by exponential forgetting, and what chance does to it. Pure: durations are passed in."""

from __future__ import annotations

import math


class DecayingRate:
    """Events per second with exponential forgetting, its upper bound, and its dispersion."""

    def __init__(self, time_constant_s: float) -> None:
        self._tau_s = time_constant_s
        self._events = 0.0
        self._exposure_s = 0.0
        self._excess = 0.0  # decayed sum of (count - expected)^2 / expected, to learn burstiness
        self._intervals = 0.0

    @property
    def exposure_s(self) -> float:
        return self._exposure_s

    @property
    def per_s(self) -> float:
        return self._events / self._exposure_s if self._exposure_s > 0 else 0.0

    @property
    def dispersion(self) -> float:
        """Index of dispersion, shrunk towards a bursty 1.5 until there is evidence."""
        return (1.5 * 4 + self._excess) / (4 + self._intervals)

    def observe(self, events: float, dt_s: float) -> None:
        """Fold in `events` seen during the last `dt_s` seconds."""
        expected = self.per_s * dt_s
        decay = math.exp(-dt_s / self._tau_s)
        self._events = self._events * decay + events
        self._exposure_s = self._exposure_s * decay + dt_s
        if expected > 0.05:
            self._excess = self._excess * decay + (events - expected) ** 2 / expected
            self._intervals = self._intervals * decay + 1.0

    def above(self, usual: DecayingRate) -> float:
        """Standard deviations by which the events here are more than those of `usual` let expect.

        With exponential weights that sum to n a Poisson count of mean n has the variance n / 2."""
        expected = usual.per_s * self._exposure_s
        variance = max(usual.dispersion, 1.0) * max(expected, 1.0) / 2.0
        return (self._events - expected) / math.sqrt(variance)

    def likely_per_s(self, z: float) -> float:
        """The rate, `z` standard errors above what was seen."""
        error = math.sqrt(max(self._events, 1.0) / 2.0)
        return (self._events + z * error) / self._exposure_s if self._exposure_s > 0 else 0.0

    def upper_per_s(self, z: float) -> float:
        """Rate that is exceeded with the normal tail probability of `z`; the +1 covers zero counts."""
        if self._exposure_s <= 0:
            return math.inf
        spread = z * math.sqrt(max(self.dispersion, 1.0) * max(self._events, 1.0))
        return (self._events + spread + 1.0) / self._exposure_s
