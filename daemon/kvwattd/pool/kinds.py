"""What the planner is told of each kind of engine: capacity by the model, power and start-up as seen.

A capacity table is made anew, in a thread, when the model, the promises or the lengths changed. Power at rest
and the time of a start are the operator's until they were measured here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from kvwatt.capacity_table import CapacityTable
from kvwatt.compiled import CompiledModel
from kvwatt.pool import ActionKind, EngineKind, Member, MemberStatus
from kvwatt.queueing import InstanceQueue, capacity_table
from kvwatt.queueing_demand import Demand, lengths
from kvwatt.state import EngineShape, Slo
from kvwattd.config_pool import StartConfig
from kvwattd.instance import InstanceRuntime
from kvwattd.pool.counts import ScaleCounts
from kvwattd.pool.power import RestPower

log = logging.getLogger(__name__)

LEVELS = (np.arange(48) + 0.5) / 48
LEAST_FINISHED = 20.0  # requests whose lengths must be known
REMAKE_S = 60.0
# Of the idle power of a ready engine, until it was read: an L20 draws 76 W ready, 61 W asleep at its lowest
# clock and 36 W without a context.
ASLEEP_SHARE, STOPPED_SHARE = 0.8, 0.5
CHANGED_RATIO = 0.1  # of mean lengths or dispersion, worth another table


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a table was made of."""

    compiled: CompiledModel
    shape: EngineShape
    slo: Slo
    prompt_tokens: float
    output_tokens: float
    dispersion: float
    made_s: float

    def outdated(self, now: _Basis) -> bool:
        """Whether another table would tell something else."""
        if (self.compiled, self.shape, self.slo) != (now.compiled, now.shape, now.slo):
            return True
        pairs = (
            (self.prompt_tokens, now.prompt_tokens),
            (self.output_tokens, now.output_tokens),
            (self.dispersion, now.dispersion),
        )
        changed = any(abs(b / a - 1.0) > CHANGED_RATIO for a, b in pairs)
        return changed and now.made_s - self.made_s >= REMAKE_S


class KindBook:
    """One per pool. `can_sleep`, `can_stop`: what may become of a member that is not needed."""

    def __init__(
        self,
        runs: Mapping[str, InstanceRuntime],
        counts: ScaleCounts,
        expect: StartConfig,
        can_sleep: bool,
        can_stop: bool,
    ) -> None:
        self._runs = runs
        self._counts = counts
        self._expect = expect
        self._can_sleep, self._can_stop = can_sleep, can_stop
        self._tables: dict[str, tuple[_Basis, CapacityTable]] = {}
        self._gpus: dict[str, int] = {}
        self.power = RestPower(runs, expect)

    async def refresh(self, members: tuple[Member, ...], now_s: float) -> None:
        """Take up what is new; a table is made in a thread, one at a time."""
        self.power.observe(members, now_s)
        for kind in dict.fromkeys(member.kind for member in members):
            mine = [self._runs[member.name] for member in members if member.kind == kind]
            self._gpus[kind] = len(mine[0].config.gpus)
            found = _best_known(mine)
            if found is None:
                continue
            basis, demand = _basis(found, now_s)
            before = self._tables.get(kind)
            if before is not None and not before[0].outdated(basis):
                continue
            table = await asyncio.to_thread(_table, basis, demand)
            self._tables[kind] = basis, table
            log.info("pool: kind %s: up to %.2f requests/s within the promises", kind, table.max_rate_per_s)

    def known(self) -> Mapping[str, EngineKind]:
        """Every kind with a table."""
        return {kind: self._kind(kind, table) for kind, (_, table) in self._tables.items()}

    def start_s(self, kind: str) -> float:
        """How long a start takes."""
        return self._counts.expected_s(kind, ActionKind.START) or self._expect.start_s

    def wake_s(self, kind: str) -> float:
        """How long waking takes."""
        return self._counts.expected_s(kind, ActionKind.WAKE) or self._expect.wake_s

    def _kind(self, kind: str, table: CapacityTable) -> EngineKind:
        gpus, power = self._gpus[kind], self.power
        ready_idle_w = _or(power.of(kind, MemberStatus.READY), float(table.watts[0].min()))
        stopped_w = _or(power.of(kind, MemberStatus.STOPPED), STOPPED_SHARE * ready_idle_w)
        asleep_w = _or(power.of(kind, MemberStatus.ASLEEP), ASLEEP_SHARE * ready_idle_w)
        start_w = _or(power.of(kind, MemberStatus.STARTING), gpus * self._expect.start_w)
        start_s, wake_s = self.start_s(kind), self.wake_s(kind)
        return EngineKind(
            name=kind,
            gpus=gpus,
            start_s=start_s,
            start_j=max(start_w - stopped_w, 0.0) * start_s,
            wake_s=wake_s,
            wake_j=max(start_w - asleep_w, 0.0) * wake_s,
            ready_idle_w=ready_idle_w,
            asleep_w=asleep_w,
            stopped_w=stopped_w,
            can_sleep=self._can_sleep,
            can_stop=self._can_stop,
            points=table,
        )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _best_known(runs: Iterable[InstanceRuntime]) -> InstanceRuntime | None:
    """The member of a kind that has a model and has seen most requests end."""
    fit = [
        run
        for run in runs
        if run.model.compiled is not None
        and run.shape() is not None
        and run.observation.traffic(run.slo) is not None
        and run.observation.estimator.outputs.weight_requests >= LEAST_FINISHED
    ]
    return max(fit, key=lambda run: run.observation.estimator.outputs.weight_requests, default=None)


def _basis(run: InstanceRuntime, now_s: float) -> tuple[_Basis, Demand]:
    compiled, shape, traffic = run.model.compiled, run.shape(), run.observation.traffic(run.slo)
    assert compiled is not None and shape is not None and traffic is not None  # noqa: S101 (see _best_known)
    prompts, outputs = run.observation.estimator.prompts, run.observation.estimator.outputs
    computed = traffic.prompt_mean_tokens / max(prompts.mean_tokens, 1.0)  # prefix hits are taken off
    # Of arrivals at one member: a router that spreads evenly makes them no burstier than they come.
    dispersion = max(traffic.dispersion, 1.0)
    demand = Demand(
        lengths([max(computed * prompts.quantile(float(q)), 1.0) for q in LEVELS]),
        lengths([max(outputs.quantile(float(q)), 1.0) for q in LEVELS]),
        dispersion,
    )
    basis = _Basis(compiled, shape, run.slo, demand.prompts.mean, demand.outputs.mean, dispersion, now_s)
    return basis, demand


def _table(basis: _Basis, demand: Demand) -> CapacityTable:
    return capacity_table(InstanceQueue(basis.compiled, basis.shape, demand), basis.slo)
