"""Keys of [ledger] and [holdout]."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kvwatt.holdout import SETTLE_S, SHARE, WARMUP_S, WINDOW_S, HoldoutParams
from kvwattd.config_values import Count, Seconds, SecondsOrNever

Share = Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)]
Interval = Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)]


class LedgerConfig(BaseModel):
    """The file is `ledger.db` in `daemon.state_dir`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    interval_s: Interval = 60.0
    minutes_days: Count = 14
    hours_days: Count = 180
    days_days: Count = 1825
    max_mb: Count = 512

    @model_validator(mode="after")
    def _longer_when_coarser(self) -> Self:
        if not self.minutes_days <= self.hours_days <= self.days_days:
            raise ValueError("minutes_days <= hours_days <= days_days: what is coarser is kept longer")
        return self


class HoldoutConfig(BaseModel):
    """Windows at driver default, drawn at random, in active mode only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: Share = SHARE
    window_s: Seconds = WINDOW_S
    warmup_s: SecondsOrNever = WARMUP_S
    settle_s: SecondsOrNever = SETTLE_S

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.warmup_s >= self.window_s:
            raise ValueError("warmup_s must be less than window_s: nothing would be left to measure")
        return self

    def params(self) -> HoldoutParams:
        return HoldoutParams(self.share, self.window_s, self.warmup_s, self.settle_s)
