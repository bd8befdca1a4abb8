"""The live loop: four kinds of task around one tick.

    poll (per instance, 2/s) --> Observation        GPU readings (2/s) --> samples, energy
                    \\                                /
                     tick (10/s, absolute deadlines): regime, decision --> wish
                                                      |
                     guard link: applies the latest wish, keeps the lease

The tick never waits: no network, NVML or disk call is made in it, and a late tick is skipped, not
queued. Known weakness: all tasks share one event loop, so a stall stops them together; the lease then
ends and the guard resets the clocks.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from kvwatt.policy import PolicyParams
from kvwatt.state import EngineSnapshot, Slo
from kvwattd.config import Config, InstanceConfig, Mode
from kvwattd.durations import Durations
from kvwattd.energy_learning.learner import EnergyLearner
from kvwattd.energy_learning.refits import EnergyRefits
from kvwattd.gpus import Gpus
from kvwattd.guard_child import GuardChild
from kvwattd.guard_link import GuardLink, Wish
from kvwattd.history import Histories
from kvwattd.instance import InstanceRuntime
from kvwattd.learning import Learner, SampleLog
from kvwattd.ledger.day import Ledger
from kvwattd.model_versions import VersionStore
from kvwattd.models import Models
from kvwattd.observation import Observation
from kvwattd.polling import Polling
from kvwattd.recording.day import Recording
from kvwattd.refits import Refits
from kvwattd.scheduler_link.writer import SchedulerLink
from kvwattd.sdnotify import notify
from kvwattd.settings import SettingsFile
from kvwattd.tap_routing import addressee
from kvwattd.telemetry.tap import TapReceiver
from kvwattd.vllm_plugin.wire import Record, SchedulerRecord

if TYPE_CHECKING:
    from kvwattd.pool.task import Pool

log = logging.getLogger(__name__)

WATCHDOG_PERIOD_S = 1.0
DECISIONS_IN_ALL = 65_536  # kept to be shown, over all instances: about a kilobyte each
TAP_RETRY_S = 10.0


class Daemon:
    """Owns the instances and runs the tasks. Time is monotonic everywhere."""

    def __init__(
        self,
        config: Config,
        now: Callable[[], float] = time.monotonic,
        settings: SettingsFile | None = None,
    ) -> None:
        self.config = config
        self.now = now
        self.settings = settings or SettingsFile(None)
        self.mode = self.settings.current.mode_over(config)
        self.started_s = now()
        self.durations = Durations()
        self.ticks = 0
        self.ticks_skipped = 0
        self._last_tick_s: float | None = None
        self.runs = {c.name: self._runtime(c) for c in config.instances}
        self.stores = {name: self._store(name) for name in self.runs}
        self.models = Models(config.model.path, config.model.reload_s, self.permitted_clocks, self.stores)
        self.learners = {name: Learner() for name in self.runs}
        self.refits = Refits(config.model.refit_s, self.stores, self.learners, self.models.wake)
        self.energy_learners = {name: EnergyLearner() for name in self.runs}
        energy_dir, refit_s = config.daemon.state_dir / "energy", config.model.refit_s
        self.energy_refits = EnergyRefits(refit_s, energy_dir, self.stores, self.energy_learners)
        self.link = GuardLink(config.guard.socket, config.guard.timeout_s, now, self._progressing)
        self.guard_child = GuardChild(config) if config.guard.spawn else None
        self.recording = Recording(config.record.dir, config.record.max_mb * 1_000_000)
        self.ledger = Ledger(config.ledger, config.holdout, config.daemon.state_dir, now, lambda: self.mode)
        self.samples = SampleLog(config.daemon.state_dir / "samples")
        energy = self.energy_learners
        self.polling = Polling(now, self.learners, energy, self.samples, self.recording, self.ledger)
        self.gpus = Gpus(self.runs, self.recording, self.ledger, energy, self.guard_child)
        self.histories = Histories(lambda: self.runs, now)
        self.pool = self._pool() if config.pool.enabled else None
        socket = config.tap.socket
        self.tap = TapReceiver(socket, self._on_record, self._on_scheduler) if socket else None
        self.schedulers = SchedulerLink(config.scheduler, lambda: self.runs.values(), now, lambda: self.mode)

    def _pool(self) -> Pool | None:
        # Imported only here: backends and planner take a fifth of a second of a start without a pool.
        from kvwattd.pool.build import build

        return build(self.config, self.runs, self.now, self._rest_mhz, acting=self.mode is Mode.ACTIVE)

    def _store(self, name: str) -> VersionStore:
        return VersionStore(self.config.daemon.state_dir / "models" / name, self.config.model.path)

    def slo_for(self, c: InstanceConfig) -> Slo:
        """The promises in force: those set over REST stand over the configuration's."""
        kept = self.settings.current.slos.get(c.name)
        return kept.slo.slo() if kept is not None else self.config.slo_of(c)

    def params_for(self, c: InstanceConfig) -> PolicyParams:
        policy = self.config.policy
        # A burst is seen one poll late at worst, decided a tick later, and takes a switch to answer.
        reaction_s = c.poll_s + self.config.daemon.tick_s + policy.switch_latency_s
        return PolicyParams(
            lower_dwell_s=policy.lower_dwell_s,
            min_gain_ratio=policy.min_gain_ratio,
            horizon_s=policy.horizon_s,
            margin=policy.margin,
            reaction_s=reaction_s,
        )

    def _runtime(self, c: InstanceConfig) -> InstanceRuntime:
        observation = Observation(c.poll_s, c.stale_after_s, c.max_num_batched_tokens)
        tapped = self.config.tap.socket is not None
        run = InstanceRuntime(c, self.slo_for(c), self.params_for(c), observation, self.durations, tapped)
        run.promises.over(self.config.policy.attainment_window_s)
        run.remember(DECISIONS_IN_ALL // len(self.config.instances))
        return run

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set; on the way out the guard is told to restore every clock."""
        self.recording.start()
        self.ledger.start()
        jobs: list[Awaitable[None]] = [
            self.gpus.run(),
            self._models(),
            self.refits.run(self.runs),
            self.energy_refits.run(self.runs),
            self.link.run(),
            self.histories.run(),
            self._ticks(),
            self._watchdog(),
        ]
        if self.tap is not None:
            jobs.append(self._tap(self.tap))
        if self.config.scheduler.file is not None:
            jobs.append(self.schedulers.run())
        if self.guard_child is not None:
            jobs.append(self.guard_child.run())
        if self.pool is not None:
            jobs.append(self.pool.run())
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_forever(job)) for job in jobs]
                self.polling.begin(group)
                for run in self.runs.values():
                    self.polling.anew(run)
                await stop.wait()
                self.polling.end()
                for task in tasks:
                    task.cancel()
        finally:
            self.polling.end()
            self.gpus.close()
            self.recording.close()
            self.ledger.close()
            if self.tap is not None:
                self.tap.close()

    async def admit(self, c: InstanceConfig) -> None:
        """Take up an instance while running."""
        self.stores[c.name], self.learners[c.name] = self._store(c.name), Learner()
        self.energy_learners[c.name] = EnergyLearner()
        await self.refits.admit(c.name)
        await self.energy_refits.admit(c.name)
        run = self.runs[c.name] = self._runtime(c)
        self.gpus.regroup()
        self.polling.anew(run)

    async def dismiss(self, name: str) -> None:
        """Give an instance up: first its GPUs are at driver default, then it is forgotten."""
        run = self.runs.pop(name)
        self.polling.stop(name)
        self.gpus.regroup()
        if run.gpus:
            uuids = tuple(info.uuid for info in run.gpus)
            self.link.wish(name, Wish(uuids, self._floor(run), None), run)
            await self.link.released(name, self.config.guard.lease_s)
        self.link.forget(name)
        self.models.forget(name)
        self.energy_refits.forget(name)
        self.ledger.forget(name)

    def set_mode(self, mode: Mode) -> None:
        """Change the mode; leaving `active` drops the guard connection, which restores the clocks.

        Instances stay as they are: a pool goes on looking and begins nothing.
        """
        if mode is not self.mode:
            log.info("mode: %s -> %s", self.mode, mode)
        self.mode = mode
        if self.pool is not None:
            self.pool.scaler.acting = mode is Mode.ACTIVE

    def tick_age_s(self) -> float | None:
        return self.now() - self._last_tick_s if self._last_tick_s is not None else None

    def _progressing(self) -> bool:
        age_s = self.tick_age_s()
        return age_s is not None and age_s < max(self.config.guard.lease_s / 2, 2 * self.config.daemon.tick_s)

    def permitted_clocks(self, run: InstanceRuntime) -> tuple[int, ...]:
        """Clocks all GPUs of the instance support, inside the operator's and the guard's bounds."""
        if not run.gpus:
            return ()
        common = set.intersection(*(set(info.supported_mhz) for info in run.gpus))
        policy, hello = self.config.policy, self.link.hello
        low = max(policy.floor_mhz or 0, hello.min_mhz if hello else 0)
        high = min(policy.ceiling_mhz or 1_000_000, hello.max_mhz if hello else 1_000_000)
        return tuple(sorted(clock for clock in common if low <= clock <= high))

    def _rest_mhz(self, run: InstanceRuntime) -> int | None:
        """The lowest clock that may be asked of a sleeping engine's GPUs."""
        return min(self.permitted_clocks(run), default=None)

    async def _ticks(self) -> None:
        due_s = self.now()
        while True:
            period_s = self.config.daemon.tick_s
            self.tick(self.now())
            due_s += period_s
            late_s = self.now() - due_s
            if late_s > 0:
                missed = math.ceil(late_s / period_s)
                self.ticks_skipped += missed
                due_s += missed * period_s
            await asyncio.sleep(due_s - self.now())

    def tick(self, now_s: float) -> None:
        """Regime, decision and wish of every instance."""
        self.link.need(self.mode is Mode.ACTIVE)
        for run in self.runs.values():
            target = run.tick(now_s, self.mode, self.link.fault, self.link.ready)
            if run.gpus:
                uuids = tuple(info.uuid for info in run.gpus)
                self.link.wish(run.name, Wish(uuids, self._floor(run), target), run)
        self.ticks += 1
        self._last_tick_s = now_s

    def _floor(self, run: InstanceRuntime) -> int:
        """Lower end of the locked range: the lowest clock the guard allows, so that an idle GPU may rest."""
        least = self.link.hello.min_mhz if self.link.hello else 0
        common = set.intersection(*(set(info.supported_mhz) for info in run.gpus))
        return min((clock for clock in common if clock >= least), default=least)

    def on_page(self, run: InstanceRuntime, snapshot: EngineSnapshot, layout: str | None) -> None:
        """Fold in an accepted page."""
        self.polling.on_page(run, snapshot, layout)

    async def _tap(self, receiver: TapReceiver) -> None:
        """Open the tap's socket; where that fails the poll goes on without it, and it is tried again."""
        while (reason := await receiver.try_start()) is not None:
            log.warning("tap: %s; going by polled metrics alone", reason)
            await asyncio.sleep(TAP_RETRY_S)

    def _on_record(self, record: Record) -> None:
        addressee(record, self.runs.values()).observation.tap.on_record(record, self.now())

    def _on_scheduler(self, record: SchedulerRecord) -> None:
        addressee(record, self.runs.values()).observation.tap.on_scheduler(record, self.now())

    async def _models(self) -> None:
        while True:
            for run in list(self.runs.values()):
                await self.models.refresh(run)
            await self.models.pause(self.runs.values())

    async def _watchdog(self) -> None:
        """Tell the service manager that ticks go on; silence makes it restart us."""
        while True:
            if self._progressing():
                regimes = ", ".join(f"{name}: {run.regime}" for name, run in self.runs.items())
                notify(f"WATCHDOG=1\nSTATUS={self.mode}; {regimes}")
            await asyncio.sleep(WATCHDOG_PERIOD_S)


async def _forever(job: Awaitable[None]) -> None:
    await job
