"""What shadow mode would have done, saved and cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kvwatt.state import Metric
from kvwattd.api.schemas.base import View

SHADOW_BASELINE = "driver default clocks, as measured"


class WouldKeepView(View):
    """One promise, had the decided clocks been set: an estimate of the model."""

    met: float
    total: float
    ratio: float | None = Field(description="met / total; null before the first request")


class ShadowView(View):
    """Since the daemon started, over the time in shadow mode. Nothing was set: every figure but the baseline
    is an estimate of the model, and says what control would have done."""

    estimate: Literal[True] = True
    clock_mhz: int | None = Field(description="decided on now, and not set; null is driver default")
    baseline: str = SHADOW_BASELINE
    baseline_j: float = 0.0
    would_j: float = Field(0.0, description="energy at the decided clocks")
    saved_j: float = 0.0
    saved_ratio: float | None = None
    low_ratio: float | None = Field(None, description="of the 95 % interval of saved_ratio")
    high_ratio: float | None = None
    attainment: dict[Metric, WouldKeepView] = Field(default_factory=dict)
