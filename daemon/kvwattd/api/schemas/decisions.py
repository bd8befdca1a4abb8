"""What was decided and why, what it saved, and what an operator decides instead."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from kvwatt.state import Binding, Decision, Forecast
from kvwattd.api.schemas.base import View, finite
from kvwattd.config import Mode
from kvwattd.config_values import JSON_NUMBER, Megahertz
from kvwattd.regime import Regime

OVERRIDE_MAX_S = 3600.0
ESTIMATE_BASELINE = "driver default clocks, from the energy model"


class SavingsView(View):
    """Energy saved: an estimate, always with its baseline."""

    estimate: Literal[True] = True
    baseline: str = ESTIMATE_BASELINE
    baseline_j: float = 0.0
    actual_j: float = 0.0
    saved_j: float = 0.0
    saved_ratio: float | None = None


class ForecastView(View):
    clock_mhz: int
    tbt_s: float | None
    ttft_s: float | None
    e2e_s: float | None
    power_w: float | None
    feasible: bool

    @classmethod
    def of(cls, forecast: Forecast | None) -> Self | None:
        if forecast is None:
            return None
        return cls(
            clock_mhz=forecast.clock_mhz,
            tbt_s=finite(forecast.tbt_s),
            ttft_s=finite(forecast.ttft_s),
            e2e_s=finite(forecast.e2e_s),
            power_w=finite(forecast.power_w),
            feasible=forecast.feasible,
        )


class DecisionView(View):
    """One decision and why; `clock_mhz` null is driver default."""

    instance: str
    decided_unix_s: float
    regime: Regime
    clock_mhz: int | None
    applied: bool = Field(description="false in shadow mode and when protection had the last word")
    binding: Binding
    reason: str
    chosen: ForecastView | None = None
    next_lower: ForecastView | None = None
    at_default: ForecastView | None = None
    projected_batch: float = 0.0
    projected_kv_tokens: float = 0.0

    @classmethod
    def of(
        cls, instance: str, decision: Decision, *, decided_unix_s: float, regime: Regime, applied: bool
    ) -> Self:
        return cls(
            instance=instance,
            decided_unix_s=decided_unix_s,
            regime=regime,
            clock_mhz=decision.clock_mhz,
            applied=applied,
            binding=decision.binding,
            reason=decision.reason,
            chosen=ForecastView.of(decision.chosen),
            next_lower=ForecastView.of(decision.next_lower),
            at_default=ForecastView.of(decision.at_default),
            projected_batch=decision.projected_batch,
            projected_kv_tokens=decision.projected_kv_tokens,
        )


class OverrideRequest(View):
    """A clock by hand for a limited time; `clock_mhz` null holds driver default."""

    clock_mhz: Annotated[Megahertz, JSON_NUMBER] | None
    duration_s: Annotated[float, Field(gt=0, le=OVERRIDE_MAX_S, allow_inf_nan=False), JSON_NUMBER]


class OverrideView(View):
    instance: str
    clock_mhz: int | None
    left_s: float


class ModeView(View):
    mode: Mode
