"""The daemon as REST sees it: answers from the runtime state, changes checked before they are taken."""

from __future__ import annotations

import asyncio
import platform
import time

from kvwatt.state import Slo
from kvwattd import views
from kvwattd.api.auth import Access, security_view
from kvwattd.api.ports import Rejected, UnknownInstance
from kvwattd.api.schemas import (
    BuildView,
    ConfigStateView,
    DecisionView,
    HealthView,
    HistoryView,
    InstanceView,
    ManualScaleRequest,
    ManualScaleView,
    ModelVersionsView,
    ModelView,
    ModeSetView,
    ModeView,
    OverrideRequest,
    OverrideView,
    PoolView,
    ReadyView,
    ReloadView,
    RollbackRequest,
    SettingsView,
    SloSetView,
    SloView,
    StatusView,
    TrajectoryView,
)
from kvwattd.api.tokens import TokenFile
from kvwattd.config import ConfigError, Mode
from kvwattd.instance import InstanceRuntime, Override
from kvwattd.instances.http_sd import Listed
from kvwattd.ledger.view import ledger_view
from kvwattd.loop import Daemon
from kvwattd.model_versions import VersionError, VersionStore
from kvwattd.pool.manual import ManualScale
from kvwattd.pool.task import Pool
from kvwattd.pool.views import pool_view
from kvwattd.regime import Regime
from kvwattd.reload import Reloader
from kvwattd.version import kvwatt_version
from kvwattd.views_page import history_view, trajectory_view

HEALTHY_TICK_AGE_S = 2.0
READY_REGIMES = frozenset({Regime.SHADOW, Regime.ACTIVE, Regime.OVERRIDE, Regime.OFF, Regime.PARKED})


class Control:
    """Implements api.ports.ControlPlane over a running Daemon."""

    def __init__(
        self, daemon: Daemon, access: Access | None = None, reloader: Reloader | None = None
    ) -> None:
        self._daemon = daemon
        self._access = access or Access(TokenFile(None))
        self._reloader = reloader
        self._unix_offset_s = time.time() - daemon.now()
        self._build = BuildView(version=kvwatt_version(), python=platform.python_version())

    def _unix(self, monotonic_s: float) -> float:
        return monotonic_s + self._unix_offset_s

    def _run(self, name: str) -> InstanceRuntime:
        run = self._daemon.runs.get(name)
        if run is None:
            raise UnknownInstance(name, self._daemon.runs)
        return run

    def status(self) -> StatusView:
        d = self._daemon
        now_s = d.now()
        return StatusView(
            build=self._build,
            mode=d.mode,
            uptime_s=now_s - d.started_s,
            ticks_total=d.ticks,
            ticks_skipped_total=d.ticks_skipped,
            decision_duration=views.duration_view(d.durations),
            tap_refused_total=dict(d.tap.refused) if d.tap else {},
            guard=views.guard_view(d.link, d.mode is Mode.ACTIVE, now_s),
            settings=self.settings(),
            config=self.config_state(),
            security=security_view(self._access),
            pool=self.pool(),
            ledger=ledger_view(self._daemon.ledger, self._daemon.runs.values()),
            instances=self.instances(),
        )

    def instances(self) -> list[InstanceView]:
        d = self._daemon
        now_s = d.now()
        return [
            views.instance_view(run, d.mode, now_s, self._unix, self.model(name), d.permitted_clocks(run))
            for name, run in d.runs.items()
        ]

    def trajectory(self, instance: str) -> TrajectoryView | None:
        return trajectory_view(self._run(instance), self._daemon.now(), self._unix)

    def history(self, instance: str) -> HistoryView:
        return history_view(self._daemon.histories.of(self._run(instance).name), self._unix)

    def decisions(self, instance: str | None, limit: int) -> list[DecisionView]:
        runs = [self._run(instance)] if instance is not None else list(self._daemon.runs.values())
        found = [(r.decision.decided_s, run.name, r) for run in runs for r in run.decisions]
        found.sort(key=lambda row: row[0], reverse=True)
        return [views.decision_view(name, recorded, self._unix) for _, name, recorded in found[:limit]]

    def slos(self) -> dict[str, SloView]:
        return {name: SloView.of(run.slo) for name, run in self._daemon.runs.items()}

    async def set_slo(self, instance: str, slo: SloView, who: str) -> SloView:
        run, wanted = self._run(instance), slo.slo()
        if wanted == Slo():
            raise Rejected(
                "nothing is promised", "at least one of ttft, tbt, e2e", "slo", slo.model_dump_json()
            )
        run.slo = wanted
        kept = SloSetView(by=who, unix_s=time.time(), slo=slo)
        await self._keep_slos({**self._daemon.settings.current.slos, instance: kept})
        return SloView.of(wanted)

    async def clear_slo(self, instance: str) -> SloView:
        run = self._run(instance)
        run.slo = wanted = self._daemon.config.slo_of(run.config)
        slos = self._daemon.settings.current.slos
        if instance in slos:
            await self._keep_slos({name: slo for name, slo in slos.items() if name != instance})
        return SloView.of(wanted)

    async def _keep_slos(self, slos: dict[str, SloSetView]) -> None:
        settings = self._daemon.settings
        await settings.keep(settings.current.model_copy(update={"slos": slos}))

    def mode(self) -> ModeView:
        return ModeView(mode=self._daemon.mode)

    async def set_mode(self, mode: ModeView, who: str) -> ModeView:
        self._daemon.set_mode(mode.mode)
        await self._keep_mode(ModeSetView(by=who, unix_s=time.time(), mode=mode.mode))
        return mode

    async def clear_mode(self) -> ModeView:
        mode = self._daemon.config.daemon.mode
        self._daemon.set_mode(mode)
        await self._keep_mode(None)
        return ModeView(mode=mode)

    async def _keep_mode(self, mode: ModeSetView | None) -> None:
        settings = self._daemon.settings
        await settings.keep(settings.current.model_copy(update={"mode": mode}))

    def settings(self) -> SettingsView:
        return self._daemon.settings.view()

    def config_state(self) -> ConfigStateView:
        if self._reloader is None:
            return ConfigStateView(loaded_unix_s=self._unix(self._daemon.started_s))
        return self._reloader.view()

    async def reload(self) -> ReloadView:
        if self._reloader is None:
            raise Rejected("there is no configuration file", "a daemon started by `kvwatt run`")
        try:
            return await self._reloader.reload()
        except ConfigError as error:
            first = error.problems[0]
            raise Rejected(str(error), first.accepted, first.key, first.shown) from error

    def override(self, instance: str) -> OverrideView | None:
        run = self._run(instance)
        return views.override_view(run, self._daemon.now())

    def set_override(self, instance: str, request: OverrideRequest) -> OverrideView:
        run, clock = self._run(instance), request.clock_mhz
        if self._daemon.mode is not Mode.ACTIVE:
            raise Rejected("an override writes clocks", "mode active", "mode", self._daemon.mode)
        permitted = self._daemon.permitted_clocks(run)
        if clock is not None and clock not in permitted:
            told = (
                f"one of {permitted[0]} to {permitted[-1]} MHz"
                if permitted
                else "no clock: GPUs not read yet"
            )
            nearest = min(permitted, key=lambda c: abs(c - clock), default=None)
            hint = f" (nearest {nearest})" if nearest is not None else ""
            raise Rejected("not a clock these GPUs support within bounds", told + hint, "clock_mhz", clock)
        now_s = self._daemon.now()
        run.override = Override(clock, now_s + request.duration_s)
        return OverrideView(instance=instance, clock_mhz=clock, left_s=request.duration_s)

    def clear_override(self, instance: str) -> None:
        self._run(instance).override = None

    def pool(self) -> PoolView:
        pool, now_s = self._daemon.pool, self._daemon.now()
        return PoolView() if pool is None else pool_view(pool, now_s, self._unix)

    def set_scale(self, request: ManualScaleRequest, who: str) -> ManualScaleView:
        pool, params = self._pool(), self._pool().params
        if self._daemon.mode is not Mode.ACTIVE:
            raise Rejected("it would start and stop instances", "mode active", "mode", self._daemon.mode)
        if not params.minimum <= request.instances <= params.maximum:
            told = f"{params.minimum} (pool.minimum) to {params.maximum} (pool.maximum)"
            raise Rejected("out of the pool's bounds", told, "instances", request.instances)
        now_s = self._daemon.now()
        pool.set_manual(ManualScale(request.instances, now_s + request.duration_s, who))
        return ManualScaleView(instances=request.instances, left_s=request.duration_s, by=who)

    def clear_scale(self) -> None:
        if self._daemon.pool is not None:
            self._daemon.pool.set_manual(None)

    def targets(self) -> tuple[Listed, ...] | None:
        return self._pool().targets()

    def _pool(self) -> Pool:
        pool = self._daemon.pool
        if pool is None:
            raise Rejected("there is no pool", "pool.enabled = true in the configuration")
        return pool

    def model(self, instance: str) -> ModelView:
        view = self._daemon.models.view(self._run(instance))
        told = {
            "refit": self._daemon.refits.view(instance),
            "energy": self._daemon.energy_refits.view(instance),
        }
        return view.model_copy(update=told)

    async def model_versions(self, instance: str) -> ModelVersionsView:
        run = self._run(instance)
        return await self._versions(run, self._daemon.stores[instance])

    async def rollback(self, instance: str, request: RollbackRequest) -> ModelVersionsView:
        run, store = self._run(instance), self._daemon.stores[instance]
        try:
            await asyncio.to_thread(store.roll_back, request.version, request.hold)
        except VersionError as error:
            raise Rejected(str(error), error.accepted, "version", request.version) from error
        except OSError as error:
            raise Rejected(f"cannot be written: {error}", "a writable daemon.state_dir") from error
        await self._daemon.models.refresh(run)
        return await self._versions(run, store)

    async def _versions(self, run: InstanceRuntime, store: VersionStore) -> ModelVersionsView:
        found, pointer = await asyncio.to_thread(lambda: (store.versions(), store.current()))
        serving = self._daemon.models.serving(run)
        refit = self._daemon.refits.view(run.name)
        return views.versions_view(run.name, serving, pointer.held, found, refit)

    def healthy(self) -> HealthView:
        age_s = self._daemon.tick_age_s()
        if age_s is None:
            return HealthView(ok=True, reason="starting")
        ok = age_s <= HEALTHY_TICK_AGE_S
        return HealthView(ok=ok, last_tick_age_s=age_s, reason="" if ok else "the loop does not tick")

    def ready(self) -> ReadyView:
        reasons = [
            f"{name}: {run.regime}: {run.standing.reason}"
            for name, run in self._daemon.runs.items()
            if run.regime not in READY_REGIMES
        ]
        return ReadyView(ready=not reasons, reasons=reasons)
