"""What the daemon shows over REST and /metrics. Units are in the names; times are seconds.

Views are built only when somebody asks. None means unknown or not applicable, never zero.
"""

from __future__ import annotations

from kvwattd.api.schemas.base import View
from kvwattd.api.schemas.changes import (
    AuditView,
    ConfigStateView,
    ModeSetView,
    ReloadView,
    SecurityView,
    SettingsView,
    SetView,
    SloSetView,
)
from kvwattd.api.schemas.decisions import (
    ESTIMATE_BASELINE,
    OVERRIDE_MAX_S,
    DecisionView,
    ForecastView,
    ModeView,
    OverrideRequest,
    OverrideView,
    SavingsView,
)
from kvwattd.api.schemas.models import (
    ModelState,
    ModelVersionsView,
    ModelVersionView,
    ModelView,
    RefitOutcome,
    RefitView,
    RollbackRequest,
)
from kvwattd.api.schemas.observed import (
    EnergyAccountView,
    GpuView,
    ProgressView,
    ProjectionView,
    RegimeView,
    StepView,
    TapView,
    TelemetryView,
)
from kvwattd.api.schemas.promises import AttainmentView, LatencyBoundView, SloTargetView, SloView
from kvwattd.api.schemas.service import (
    BuildView,
    DurationView,
    GuardState,
    GuardView,
    HealthView,
    InstanceView,
    ProblemView,
    ReadyView,
    StatusView,
)

__all__ = [
    "ESTIMATE_BASELINE",
    "OVERRIDE_MAX_S",
    "AttainmentView",
    "AuditView",
    "BuildView",
    "ConfigStateView",
    "DecisionView",
    "DurationView",
    "EnergyAccountView",
    "ForecastView",
    "GpuView",
    "GuardState",
    "GuardView",
    "HealthView",
    "InstanceView",
    "LatencyBoundView",
    "ModeSetView",
    "ModeView",
    "ModelState",
    "ModelVersionView",
    "ModelVersionsView",
    "ModelView",
    "OverrideRequest",
    "OverrideView",
    "ProblemView",
    "ProgressView",
    "ProjectionView",
    "ReadyView",
    "RefitOutcome",
    "RefitView",
    "RegimeView",
    "ReloadView",
    "RollbackRequest",
    "SavingsView",
    "SecurityView",
    "SetView",
    "SettingsView",
    "SloSetView",
    "SloTargetView",
    "SloView",
    "StatusView",
    "StepView",
    "TapView",
    "TelemetryView",
    "View",
]
