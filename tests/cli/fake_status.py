"""A status with one instance, as a daemon would answer it."""

from __future__ import annotations

from kvwatt.state import Binding, Metric
from kvwattd.api.schemas import (
    AttainmentView,
    BuildView,
    DecisionView,
    GpuView,
    InstanceView,
    ModelView,
    SavingsView,
    SloTargetView,
    SloView,
    StatusView,
    TelemetryView,
)
from kvwattd.config import Mode
from kvwattd.regime import Regime


def one_instance() -> StatusView:
    decision = DecisionView(
        instance="chat",
        decided_unix_s=1.0,
        regime=Regime.SHADOW,
        clock_mhz=900,
        applied=False,
        binding=Binding.TBT,
        reason="600 MHz would break TBT",
    )
    instance = InstanceView(
        name="chat",
        url="http://127.0.0.1:8000",
        regime=Regime.SHADOW,
        mode=Mode.SHADOW,
        clock_target_mhz=900,
        gpus=[GpuView(uuid="GPU-1", clock_actual_mhz=885)],
        running=8,
        slo=SloView(tbt=SloTargetView(limit_s=0.1)),
        attainment={Metric.TBT: AttainmentView(limit_s=0.1, quantile=0.99, met=99, total=100, ratio=0.99)},
        telemetry=TelemetryView(last_error="timeout: no page within 0.4 s"),
        model=ModelView(state="ready"),
        savings=SavingsView(saved_j=765.5, saved_ratio=0.38),
        last_decision=decision,
    )
    build = BuildView(version="0.1.0", python="3.11.9")
    return StatusView(build=build, mode=Mode.SHADOW, uptime_s=62.0, instances=[instance])
