"""What a decision takes beside engine and traffic: settings, calibration, the clock in force."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvwatt.operating import Factors


@dataclass(frozen=True, slots=True)
class PolicyParams:
    """Operator's settings. `reaction_s`: longest time from a burst's arrival to the raised clock.

    `reserve`: share of the permitted misses that is never planned to be spent.
    """

    lower_dwell_s: float = 1.0
    min_gain_ratio: float = 0.01
    horizon_s: float = 5.0
    margin: float = 0.05
    reaction_s: float = 1.0
    min_exposure_s: float = 3.0
    min_finished: float = 3.0
    reserve: float = 0.25


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
