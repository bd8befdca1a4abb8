"""The savings ledger as it stands: what is kept, what is held at default, what the last week proves."""

from __future__ import annotations

from pydantic import Field

from kvwatt.holdout import Arm
from kvwattd.api.schemas.base import View

MEASURED_BASELINE = "driver default, measured in windows drawn at random"


class HoldoutView(View):
    """One instance's part in the experiment."""

    instance: str
    arm: Arm = Field(description="warmup and default: held at driver default now, to measure")
    windows_total: int = 0


class MeasuredView(View):
    """Saved in the time in control of the last week; the promises kept are beside it in `attainment`."""

    instance: str
    baseline: str = MEASURED_BASELINE
    baseline_j: float
    saved_j: float
    low_j: float
    high_j: float
    level: float = Field(description="of the interval from low_j to high_j")
    windows: int
    model_saved_j: float = Field(description="the energy model's figure for the same time")
    disagrees: bool = Field(description="the model's figure lies outside the interval: an alarm")
    attainment: dict[str, float] = Field(default_factory=dict, description="share of requests, by metric")


class LedgerView(View):
    enabled: bool = False
    fault: str | None = Field(
        None, description="why nothing can be written now; intervals are kept meanwhile"
    )
    faults_total: int = 0
    written_total: int = Field(0, description="intervals on the disk")
    waiting: int = Field(0, description="intervals that are not on the disk yet")
    dropped_total: int = Field(0, description="intervals lost for want of room to wait in")
    damaged_total: int = Field(0, description="files found damaged and set aside")
    bytes: int | None = None
    holdouts: list[HoldoutView] = Field(default_factory=list)
    measured: list[MeasuredView] = Field(default_factory=list)
