"""One instance as the daemon knows it: what was observed, what is trusted, what was decided.

No I/O and no clock reads: the tasks of the loop feed it and pass the time in.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvwatt.policy import NO_BUDGET, Applied, Budget, PolicyParams
from kvwatt.state import Binding, Decision, EngineShape, EngineSnapshot, GpuSample, Slo
from kvwattd.config import InstanceConfig, Mode
from kvwattd.deciding import Deciding, Inputs, at_default, never_lower
from kvwattd.durations import Durations
from kvwattd.energy_account import EnergyAccount
from kvwattd.energy_feed import attribute
from kvwattd.holdbacks import HoldBacks
from kvwattd.instance_parts import ModelSlot, Override, Recorded
from kvwattd.latency_monitor import LatencyMonitor
from kvwattd.ledger.holding import HoldoutRun
from kvwattd.observation import Observation
from kvwattd.promises import Promises
from kvwattd.refusals import Refusals
from kvwattd.regime import DECIDES, Facts, Regime, Standing, advance
from kvwattd.savings import Savings
from kvwattd.shadow.account import Shadow
from kvwattd.shadow.following import follow
from kvwattd.telemetry.energy_counter import EnergyReading, new_doubts
from kvwattd.telemetry.gpu import GpuInfo

__all__ = ["GPU_STALE_S", "InstanceRuntime", "ModelSlot", "Override", "Recorded"]

log = logging.getLogger(__name__)

RECOVER_S = 1.0  # how long everything must be trusted before control resumes
GPU_STALE_S = 2.0
DECISIONS_KEPT, LEAST_DECISIONS_KEPT = 512, 32


@dataclass
class InstanceRuntime:
    """State of one instance; methods named on_* take what the tasks observed."""

    config: InstanceConfig
    slo: Slo
    params: PolicyParams
    observation: Observation
    durations: Durations
    tapped: bool = False  # a tap is configured
    model: ModelSlot = field(default_factory=ModelSlot)
    gpus: tuple[GpuInfo, ...] = ()
    samples: dict[str, GpuSample] = field(default_factory=dict)
    energy: dict[str, EnergyReading] = field(default_factory=dict)  # by UUID
    gpu_fault: str | None = None
    override: Override | None = None
    resting: str | None = None  # why it does not serve, where that is intended
    parked_mhz: int | None = None  # held meanwhile
    standing: Standing = field(default_factory=lambda: Standing(Regime.STARTING, 0.0, "starting"))
    applied: Applied = field(default_factory=lambda: Applied(None, 0.0))
    confirmed_mhz: int | None = None
    clock_changes: int = 0
    decisions: deque[Recorded] = field(default_factory=lambda: deque(maxlen=DECISIONS_KEPT))
    bindings: Counter[Binding] = field(default_factory=Counter)
    savings: Savings = field(default_factory=Savings)  # in control
    shadow: Shadow = field(default_factory=Shadow)
    account: EnergyAccount = field(default_factory=EnergyAccount)
    holdout: HoldoutRun = field(default_factory=HoldoutRun)  # holds nothing until a ledger is kept
    latencies: LatencyMonitor = field(default_factory=LatencyMonitor)
    promises: Promises = field(default_factory=Promises)
    _guard_alarm: str | None = None
    holdbacks: HoldBacks = field(default_factory=HoldBacks)
    _refusals: Refusals = field(default_factory=Refusals)
    _trusted_since_s: float = 0.0
    _budget: Budget = NO_BUDGET
    _cautious: Slo | None = None  # limits that forecasts from sums have to keep
    _deciding: Deciding = field(init=False)

    def __post_init__(self) -> None:
        self._deciding = Deciding(self.durations)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def regime(self) -> Regime:
        return self.standing.regime

    @property
    def last(self) -> Decision | None:
        return self.decisions[-1].decision if self.decisions else None

    def remember(self, decisions: int) -> None:
        """Keep so many decisions, within bounds; those before are forgotten."""
        self.decisions = deque(maxlen=max(min(decisions, DECISIONS_KEPT), LEAST_DECISIONS_KEPT))

    def shape(self) -> EngineShape | None:
        """The engine's fixed properties, known once a page was accepted."""
        snapshot = self.observation.snapshot
        if snapshot is None:
            return None
        c = self.config
        return EngineShape(
            snapshot.block_size, snapshot.num_blocks, c.max_num_seqs, c.max_num_batched_tokens, c.tp
        )

    def on_gpu(self, samples: Mapping[str, GpuSample], failures: Mapping[str, str]) -> None:
        """New readings of this instance's GPUs; `failures` says by UUID why one is missing."""
        missing = [info.uuid for info in self.gpus if info.uuid not in samples]
        if missing or not self.gpus:
            told = [failures.get(uuid, f"no reading of {uuid}") for uuid in missing]
            self.gpu_fault = f"GPU: {'; '.join(told) or 'none found yet'}"
            return
        mine = {info.uuid: samples[info.uuid] for info in self.gpus}
        before, self.samples, self.gpu_fault = self.samples, mine, None
        for line in self.holdbacks.begun(mine.values()):
            log.warning("instance %s: %s", self.name, line)
        self.observation.progress.on_gpu(
            min(s.observed_s for s in mine.values()), min(s.utilization for s in mine.values())
        )
        if before and self.regime in DECIDES:
            used_j = sum(mine[u].energy_j - before[u].energy_j for u in mine if u in before)
            decided, active = None if self.holdout.held else self.last, self.regime is Regime.ACTIVE
            (self.savings if active else self.shadow.savings).observe(used_j, decided, active)

    def on_page(self, page: EngineSnapshot, layout: str | None = None) -> None:
        """Fold in an accepted page: what is observed, how promises are kept, whether forecasts held."""
        before = self.observation.snapshot
        self.observation.on_page(page, layout)
        if page.asleep != (before is not None and before.asleep):
            log.info("instance %s: the engine %s", self.name, "sleeps" if page.asleep else "is awake")
        if page is self.observation.first:
            self.latencies.restart()
            self.promises.restart()
            self.shadow.restart()
        forecast = (self.last.chosen or self.last.at_default) if self.last is not None else None
        self.latencies.on_page(page, forecast, self.slo)
        ours = self.last if self.regime is Regime.ACTIVE and not self.holdout.held else None
        stretch = self.promises.at_top.batch.stretch(page, ours, self.model.compiled)
        self.promises.on_page(page, self.slo, self.observation.judged, stretch)
        in_shadow = self.regime is Regime.SHADOW
        budget = follow(self, page) if in_shadow else self.promises.budget(page.observed_s, self.slo)
        self._budget, self._cautious = Budget(budget), self.latencies.cautious(self.slo, budget)
        attribute(self.account, self.observation, self.samples, self.model.compiled)
        if self.savings.due(page.observed_s):
            self._judge_savings(page.observed_s)

    def _judge_savings(self, now_s: float) -> None:
        seen, compiled, reaction_s = self.observation, self.model.compiled, self.params.reaction_s
        traffic = seen.traffic(self.slo)
        self.savings.judge(now_s, compiled, self.shape(), self.slo, traffic, reaction_s, seen.snapshot)
        self.shadow.savings.like(self.savings)

    def on_energy(self, accounts: Mapping[str, EnergyReading]) -> None:
        """What stands behind the energy figures; a doubt about a counter is told when it begins."""
        mine = {info.uuid: accounts[info.uuid] for info in self.gpus if info.uuid in accounts}
        for uuid, account in mine.items():
            for doubt in new_doubts(self.energy.get(uuid), account):
                log.warning("instance %s: GPU %s: energy: %s", self.name, uuid, doubt)
        self.energy = mine

    def on_gpu_error(self, reason: str) -> None:
        self.gpu_fault = reason

    def on_applied(self, clock_mhz: int | None, now_s: float) -> None:
        """The guard confirmed a clock (None: driver default)."""
        if clock_mhz != self.confirmed_mhz:
            self.clock_changes += 1
        self.confirmed_mhz = clock_mhz
        if clock_mhz is not None:
            self._refusals.obeyed()

    def on_actuation_error(self, reason: str, now_s: float) -> None:
        self._refusals.refused(reason, now_s)
        self.confirmed_mhz = None

    def park(self, reason: str, clock_mhz: int | None = None) -> None:
        """It is stopped, asleep or starting as intended: nothing is expected of its page.

        `clock_mhz` is held while kvwatt is in control. None for a stopped engine: an idle GPU without a
        context drops its clock by itself, and a lock would bind whoever uses it next. The lowest one for an
        engine that sleeps: its context keeps the clock up (L20: 76.5 W unlocked, 61.5 W at 210 MHz).
        """
        if self.resting is None:
            self.observation.rest()
        self.resting, self.parked_mhz = reason, clock_mhz

    def unpark(self) -> None:
        """It serves: its page counts again, from the next one on."""
        self.resting = self.parked_mhz = None

    def on_alarm(self, reason: str | None) -> None:
        """What the guard found on these GPUs: another program's clock, or one not obeyed; None is well."""
        self._guard_alarm = reason

    def tick(self, now_s: float, mode: Mode, guard_fault: str | None, guard_ready: bool = True) -> int | None:
        """Advance the regime, decide where it decides, and return the clock to hold (None: default)."""
        self._expire(now_s)
        fault = self._fault(now_s, mode, guard_fault)
        if fault is not None:
            self._trusted_since_s = now_s
        self._advance(now_s, mode, fault, guard_ready)
        held = self.holdout.hold(now_s, self.regime is Regime.ACTIVE, self.observation.snapshot)
        target: int | None = None
        if self.regime is Regime.OVERRIDE and self.override is not None:
            target = self.override.clock_mhz
        elif self.regime in DECIDES:
            decided = self._decide(now_s)
            target = None if held else decided
        elif self.regime is Regime.PARKED and mode is Mode.ACTIVE and self._may_hold():
            target = self.parked_mhz
        if target != self.applied.clock_mhz:
            self.applied = Applied(target, now_s)
        return target if self.regime is not Regime.SHADOW else None

    def _may_hold(self) -> bool:
        return self._guard_alarm is None and self._refusals.fault is None

    def _expire(self, now_s: float) -> None:
        if self.override is not None and now_s >= self.override.until_s:
            log.info("instance %s: override ended", self.name)
            self.override = None
        self._refusals.expire(now_s)

    def _fault(self, now_s: float, mode: Mode, guard_fault: str | None) -> str | None:
        """Why input or actuation cannot be trusted now; None if everything can."""
        telemetry = self.observation.fault(now_s)
        if telemetry is not None:
            return telemetry
        if self.gpu_fault is not None:
            return self.gpu_fault
        ages = [now_s - s.observed_s for s in self.samples.values()]
        if ages and max(ages) > GPU_STALE_S:
            return f"GPU readings are {max(ages):.1f} s old (limit {GPU_STALE_S:g} s)"
        if mode is Mode.ACTIVE and guard_fault is not None:
            return guard_fault
        if mode is Mode.ACTIVE and self._guard_alarm is not None:
            return self._guard_alarm
        return self._refusals.fault

    def _pending(self, mode: Mode, guard_ready: bool) -> str | None:
        """What must be there before anything can be decided and has not come yet."""
        if self.observation.snapshot is None:
            return "a first metrics page"
        if not self.samples:
            return "a first reading of the GPUs"
        return "the guard" if mode is Mode.ACTIVE and not guard_ready else None

    def _advance(self, now_s: float, mode: Mode, fault: str | None, guard_ready: bool) -> None:
        facts = Facts(
            mode=mode,
            pending=self._pending(mode, guard_ready),
            fault=fault,
            overridden=self.override is not None and mode is Mode.ACTIVE,
            model_missing=self.model.missing if self.model.compiled is None else None,
            resting=self.resting,
        )
        new = advance(self.standing, facts, now_s, self._trusted_since_s, RECOVER_S)
        if new.regime is not self.standing.regime:
            level = logging.WARNING if new.regime is Regime.FAILSAFE else logging.INFO
            log.log(level, "instance %s: %s -> %s: %s", self.name, self.regime, new.regime, new.reason)
            self.savings.pause()
            self.shadow.savings.pause()
            self.shadow.restart()
        self.standing = new

    def _decide(self, now_s: float) -> int | None:
        decision = self._decision(now_s)
        self.bindings[decision.binding] += 1
        self._record(decision)
        return decision.clock_mhz

    def _record(self, decision: Decision) -> None:
        """Keep the decision; one that repeats the last one's outcome replaces it."""
        applied = self.regime is Regime.ACTIVE and not self.holdout.held
        recorded = Recorded(decision, self.regime, applied)
        previous = self.decisions[-1] if self.decisions else None
        same = (
            previous is not None
            and previous.regime is self.regime
            and (previous.decision.clock_mhz, previous.decision.binding)
            == (decision.clock_mhz, decision.binding)
        )
        if same:
            self.decisions[-1] = recorded
        else:
            self.decisions.append(recorded)

    def _decision(self, now_s: float) -> Decision:
        snapshot, shape, compiled = self.observation.snapshot, self.shape(), self.model.compiled
        state, seen = self.observation.state(), self.observation.traffic_now(self.slo, now_s)
        if state is None or snapshot is None or shape is None or compiled is None or seen is None:
            return at_default(now_s, "watching traffic: a second page is needed")
        if snapshot.asleep:
            return at_default(now_s, "the engine sleeps")
        if self.regime is Regime.SHADOW:
            state = self.shadow.state(state)
        check = self.observation.check
        compiled, bounds = check.paced(compiled), check.bounds(compiled)
        slo = self.slo if state.requests else self._cautious or self.slo
        params, held = self._params(), self.applied
        inputs = Inputs(snapshot, state, seen, compiled, slo, bounds, params, held, self._budget)
        decision = self._deciding.decision(now_s, inputs, shape)
        doubtful = self.observation.doubtful(now_s)
        return never_lower(decision, held.clock_mhz, now_s) if doubtful else decision

    def _params(self) -> PolicyParams:
        """The settings, with the reaction of what is watched: a tap sees a burst earlier than polls do."""
        return self._deciding.params(self.params, self.observation.delay_s() - self.config.poll_s)
