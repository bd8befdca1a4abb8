"""What a decision takes beside engine and traffic: settings, calibration, the clock in force."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvwatt.operating import Factors
from kvwatt.state import Metric


@dataclass(frozen=True, slots=True)
class PolicyParams:
    """Operator's settings. `reaction_s`: longest time from a burst's arrival to the raised clock.

    Shares of the permitted misses that are never planned to be spent: `reserve`, and `burst_reserve` of the
    promises that a burst breaks for everybody at once, at any clock (TTFT and TBT).
    """

    lower_dwell_s: float = 1.0
    min_gain_ratio: float = 0.01
    horizon_s: float = 5.0
    margin: float = 0.05
    reaction_s: float = 1.0
    min_exposure_s: float = 3.0
    min_finished: float = 3.0
    reserve: float = 0.2
    burst_reserve: float = 0.95

    def reserve_of(self, metric: Metric) -> float:
        return self.reserve if metric is Metric.E2E else self.burst_reserve


@dataclass(frozen=True, slots=True)
class Bounds:
    """Calibration of the step-time model, and whether it still holds."""

    factors: Factors = field(default_factory=Factors)
    drifted: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """The clock in force (None: driver default) and since when."""

    clock_mhz: int | None
    since_s: float
