"""A control plane in memory that enforces the daemon's rules and remembers what was done."""

from __future__ import annotations

from fake_pool import pool_view

from kvwatt.state import Binding, Decision, Forecast, Metric, Slo, SloTarget
from kvwattd.api.ports import Rejected, UnknownInstance
from kvwattd.api.schemas import (
    AttainmentView,
    BuildView,
    ClockRangeView,
    ConfigStateView,
    DecisionView,
    DurationView,
    GpuView,
    GuardView,
    HealthView,
    HistoryView,
    InstanceView,
    ManualScaleRequest,
    ManualScaleView,
    ModelVersionsView,
    ModelVersionView,
    ModelView,
    ModeSetView,
    ModeView,
    OverrideRequest,
    OverrideView,
    PoolView,
    ProjectionView,
    ReadyView,
    RefitView,
    ReloadView,
    RollbackRequest,
    SavingsView,
    SettingsView,
    SloSetView,
    SloView,
    StatusView,
    StepView,
    TelemetryView,
    TrajectoryView,
)
from kvwattd.api.schemas.shadow import ShadowView, WouldKeepView
from kvwattd.config import Mode
from kvwattd.instances.http_sd import Listed
from kvwattd.regime import Regime

UUID = "GPU-00000000-0000-0000-0000-000000000001"
TOKEN = "0123456789abcdef-secret"
READ_TOKEN = "fedcba9876543210-secret"
SUPPORTED_MHZ = (600, 900, 1200)
CONFIGURED = SloView.of(Slo(tbt=SloTarget(0.1)))
REFIT = RefitView(enabled=True, samples=321, last="kept", outcomes_total={"kept": 3, "promoted": 2})

TRAJECTORY = TrajectoryView(
    observed_unix_s=1_700_000_000.0,
    level=0.9,
    times_s=[0.0, 1.0, 5.0],
    batch=[8.0, 9.0, 9.5],
    batch_low=[8.0, 7.0, 6.0],
    batch_high=[8.0, 11.0, 13.0],
    kv_usage=[0.25, 0.27, 0.3],
    kv_usage_low=[0.25, 0.24, 0.2],
    kv_usage_high=[0.25, 0.3, 0.4],
)

HISTORY = HistoryView(
    unix_s=[1_700_000_000.0, 1_700_000_001.0],
    clock_target_mhz=[None, 1200.0],
    clock_actual_mhz=[2520.0, 1200.0],
    power_w=[181.0, 121.0],
    predicted_power_w=[None, 120.0],
    running=[7.0, 8.0],
    waiting=[0.0, 0.0],
    kv_usage=[None, 0.25],
    step_s=[0.03, 0.04],
    predicted_step_s=[0.03, 0.04],
    step_bound_s=[0.033, 0.044],
)


class FakePlane:
    def __init__(self) -> None:
        self.slo_views = {"chat": CONFIGURED}
        self.settings_view = SettingsView()
        self.config_valid, self.reloads = True, 0
        self.mode_view = ModeView(mode=Mode.SHADOW)
        self.by_hand: OverrideView | None = None
        self.reasons: list[str] = []
        self.alive = True
        self.statuses = 0
        self.serving, self.held = 2, False
        self.pooled = True
        self.scale_by_hand: ManualScaleView | None = None
        self.listed: tuple[Listed, ...] | None = (Listed("chat", "tp1", "http://127.0.0.1:8000"),)

    def _known(self, instance: str) -> None:
        if instance not in self.slo_views:
            raise UnknownInstance(instance, self.slo_views)

    def status(self) -> StatusView:
        self.statuses += 1
        return StatusView(
            build=BuildView(version="0.1.0", python="3.11.9"),
            mode=self.mode_view.mode,
            uptime_s=12.5,
            ticks_total=125,
            ticks_skipped_total=1,
            decision_duration=DurationView(bounds_s=(0.001, 0.01), cumulative=(3, 4), sum_s=0.02, count=5),
            guard=GuardView(state="connected", version="1", lease_s=2.0, lease_left_s=1.5),
            pool=self.pool(),
            instances=self.instances(),
        )

    def instances(self) -> list[InstanceView]:
        return [instance_view(self.mode_view.mode, self.slo_views["chat"], self.by_hand), blind_instance()]

    def trajectory(self, instance: str) -> TrajectoryView | None:
        names = [view.name for view in self.instances()]
        if instance not in names:
            raise UnknownInstance(instance, names)
        return TRAJECTORY if instance == "chat" else None

    def history(self, instance: str) -> HistoryView:
        self._known(instance)
        return HISTORY

    def decisions(self, instance: str | None, limit: int) -> list[DecisionView]:
        if instance is not None:
            self._known(instance)
        return [decision_view()][:limit]

    def slos(self) -> dict[str, SloView]:
        return dict(self.slo_views)

    async def set_slo(self, instance: str, slo: SloView, who: str) -> SloView:
        self._known(instance)
        if slo.slo() == Slo():
            raise Rejected("nothing is promised", "at least one of ttft, tbt, e2e")
        self.slo_views[instance] = slo
        slos = {**self.settings_view.slos, instance: SloSetView(by=who, unix_s=1.0, slo=slo)}
        self.settings_view = self.settings_view.model_copy(update={"slos": slos})
        return slo

    async def clear_slo(self, instance: str) -> SloView:
        self._known(instance)
        self.slo_views[instance] = CONFIGURED
        slos = {name: view for name, view in self.settings_view.slos.items() if name != instance}
        self.settings_view = self.settings_view.model_copy(update={"slos": slos})
        return CONFIGURED

    def mode(self) -> ModeView:
        return self.mode_view

    async def set_mode(self, mode: ModeView, who: str) -> ModeView:
        self.mode_view = mode
        made = ModeSetView(by=who, unix_s=1.0, mode=mode.mode)
        self.settings_view = self.settings_view.model_copy(update={"mode": made})
        return mode

    async def clear_mode(self) -> ModeView:
        self.mode_view = ModeView(mode=Mode.SHADOW)
        self.settings_view = self.settings_view.model_copy(update={"mode": None})
        return self.mode_view

    def settings(self) -> SettingsView:
        return self.settings_view

    def config_state(self) -> ConfigStateView:
        return ConfigStateView(loaded_unix_s=1.0, reloads_total=self.reloads)

    async def reload(self) -> ReloadView:
        if not self.config_valid:
            raise Rejected("daemon.tick_s: got 0, accepted: greater than 0", "greater than 0", "tick_s", "0")
        self.reloads += 1
        return ReloadView(ok=True, unix_s=2.0, applied=["policy.margin"])

    def override(self, instance: str) -> OverrideView | None:
        self._known(instance)
        return self.by_hand

    def set_override(self, instance: str, request: OverrideRequest) -> OverrideView:
        self._known(instance)
        if request.clock_mhz is not None and request.clock_mhz not in SUPPORTED_MHZ:
            accepted = f"one of {', '.join(map(str, SUPPORTED_MHZ))} MHz"
            raise Rejected("not a supported clock", accepted, "clock_mhz", request.clock_mhz)
        self.by_hand = OverrideView(instance=instance, clock_mhz=request.clock_mhz, left_s=request.duration_s)
        return self.by_hand

    def clear_override(self, instance: str) -> None:
        self._known(instance)
        self.by_hand = None

    def pool(self) -> PoolView:
        return pool_view(self.scale_by_hand) if self.pooled else PoolView()

    def set_scale(self, request: ManualScaleRequest, who: str) -> ManualScaleView:
        if not 1 <= request.instances <= 4:
            raise Rejected("out of the pool's bounds", "1 to 4", "instances", request.instances)
        self.scale_by_hand = ManualScaleView(instances=request.instances, left_s=request.duration_s, by=who)
        return self.scale_by_hand

    def clear_scale(self) -> None:
        self.scale_by_hand = None

    def targets(self) -> tuple[Listed, ...] | None:
        if not self.pooled:
            raise Rejected("there is no pool", "pool.enabled = true in the configuration")
        return self.listed

    def model(self, instance: str) -> ModelView:
        self._known(instance)
        return ModelView(state="ready", hardware="Simulated L20", samples=420)

    async def model_versions(self, instance: str) -> ModelVersionsView:
        self._known(instance)
        versions = [
            ModelVersionView(version=n, serving=n == self.serving, state="sound", champion_error_ratio=0.08)
            for n in range(3)
        ]
        return ModelVersionsView(
            instance=instance, serving=self.serving, held=self.held, versions=versions, refit=REFIT
        )

    async def rollback(self, instance: str, request: RollbackRequest) -> ModelVersionsView:
        self._known(instance)
        wanted = self.serving - 1 if request.version is None else request.version
        if wanted not in range(3):
            raise Rejected("not a sound version of this model", "one of 0, 1, 2", "version", wanted)
        self.serving, self.held = wanted, request.hold
        return await self.model_versions(instance)

    def healthy(self) -> HealthView:
        return HealthView(ok=self.alive, last_tick_age_s=0.05)

    def ready(self) -> ReadyView:
        return ReadyView(ready=not self.reasons, reasons=self.reasons)


def decision_view() -> DecisionView:
    unbounded = Forecast(600, float("inf"), 0.5, 3.0, 120.0, feasible=False)
    chosen = Forecast(900, 0.05, 0.4, 2.5, 150.0, feasible=True)
    decision = Decision(5.0, 900, Binding.TBT, "600 MHz would break TBT", chosen, unbounded, None, 8.0, 900.0)
    return DecisionView.of(
        "chat", decision, decided_unix_s=1_700_000_000.0, regime=Regime.SHADOW, applied=False
    )


def instance_view(mode: Mode, slo: SloView, override: OverrideView | None) -> InstanceView:
    gpu = GpuView(
        uuid=UUID,
        name="Simulated L20",
        clock_target_mhz=900,
        clock_actual_mhz=885,
        power_w=151.5,
        energy_j=1234.5,
        temperature_c=55.0,
        utilization=0.8,
        event_reasons=0x4,
        age_s=0.1,
    )
    return InstanceView(
        name="chat",
        url="http://127.0.0.1:8000",
        model_name="m",
        regime=Regime.SHADOW,
        mode=mode,
        clock_target_mhz=900,
        clocks=ClockRangeView(
            supported_min_mhz=210, supported_max_mhz=2520, permitted_min_mhz=600, permitted_max_mhz=1200
        ),
        clock_changes_total=7,
        gpus=[gpu],
        power_w=151.5,
        energy_j=1234.5,
        running=8,
        waiting=0,
        kv_usage=0.25,
        projection=ProjectionView(horizon_s=5.0, batch=9.5, kv_tokens=9000, kv_usage=0.3),
        step=StepView(
            predicted_s=0.05, measured_s=0.04, error_ratio=0.25, bias=1.02, upper_factor=1.1, drifted=False
        ),
        slo=slo,
        attainment={Metric.TBT: AttainmentView(limit_s=0.1, quantile=0.99, met=99, total=100, ratio=0.99)},
        telemetry=TelemetryView(age_s=0.2, fresh=True, polls_total=24, errors_total={"timeout": 2}),
        model=ModelView(state="ready", version=2, refit=REFIT),
        savings=SavingsView(baseline_j=2000, actual_j=1234.5, saved_j=765.5, saved_ratio=0.38),
        override=override,
        shadow=ShadowView(
            clock_mhz=900,
            baseline_j=2000.0,
            would_j=1240.0,
            saved_j=760.0,
            saved_ratio=0.38,
            low_ratio=0.35,
            high_ratio=0.41,
            attainment={Metric.TBT: WouldKeepView(met=98, total=100, ratio=0.98)},
        )
        if mode is Mode.SHADOW
        else None,
        decisions_total={Binding.TBT: 20, Binding.ENERGY: 100},
        last_decision=decision_view(),
    )


def blind_instance() -> InstanceView:
    """An instance of which nothing was ever seen."""
    return InstanceView(
        name='b"\\\nlind',
        url="http://127.0.0.1:8001",
        regime=Regime.FAILSAFE,
        mode=Mode.SHADOW,
        gpus=[GpuView(uuid="GPU-2")],
        model=ModelView(state="missing"),
    )
