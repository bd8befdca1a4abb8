"""Promises, and how they are kept."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from kvwatt.state import Slo, SloTarget
from kvwattd.api.schemas.base import View
from kvwattd.config_values import JSON_NUMBER, Quantile, Seconds


class SloTargetView(View):
    """At least `quantile` of requests stay within `limit_s`."""

    limit_s: Annotated[Seconds, JSON_NUMBER]
    quantile: Annotated[Quantile, JSON_NUMBER] = 0.99


class SloView(View):
    """The promises of one instance; null is not promised."""

    ttft: SloTargetView | None = None
    tbt: SloTargetView | None = None
    e2e: SloTargetView | None = None

    @classmethod
    def of(cls, slo: Slo) -> Self:
        return cls(ttft=_target_view(slo.ttft), tbt=_target_view(slo.tbt), e2e=_target_view(slo.e2e))

    def slo(self) -> Slo:
        return Slo(ttft=_target(self.ttft), tbt=_target(self.tbt), e2e=_target(self.e2e))


def _target_view(target: SloTarget | None) -> SloTargetView | None:
    return SloTargetView(limit_s=target.limit_s, quantile=target.quantile) if target else None


def _target(view: SloTargetView | None) -> SloTarget | None:
    return SloTarget(limit_s=view.limit_s, quantile=view.quantile) if view else None


class AttainmentView(View):
    """How a promise was kept since the daemon started, from the server's own histograms."""

    limit_s: float
    quantile: float
    met: float = Field(description="requests within the limit")
    total: float = Field(description="requests observed")
    ratio: float | None = Field(description="met / total; null before the first request")
    observed_s: float | None = Field(
        None,
        description="what `quantile` of these requests stayed within, as finely as its buckets tell; "
        "null before the first request and beyond the last bucket",
    )
    window_s: float = Field(0.0, description="the window of the three below, which decisions go by")
    window_total: float = Field(0.0, description="requests judged within the window")
    window_missed: float = Field(0.0, description="of these, requests beyond the limit")
    window_permitted: float = Field(0.0, description="misses that the quantile permits of as many")


class LatencyBoundView(View):
    """How the forecast of one latency holds."""

    factor: float = Field(1.0, description="what the forecast would have to be widened by to hold")
    coverage: float | None = Field(None, description="share of requests within the widened forecast so far")
