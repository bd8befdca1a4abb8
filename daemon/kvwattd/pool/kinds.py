"""What the planner is told of each kind of engine: capacity by the model, power and start-up as seen.

A capacity table is made anew by a worker when the model, the promises or the lengths changed; meanwhile the
old one stands. Power at rest and the time of a start are the operator's until they were measured here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from kvwatt.capacity_table import CapacityTable
from kvwatt.compiled import CompiledModel
from kvwatt.pool import ActionKind, EngineKind, Member, MemberStatus
from kvwattd.config_pool import StartConfig
from kvwattd.instance import InstanceRuntime
from kvwattd.pool import capacity
from kvwattd.pool.capacity import CapacityError
from kvwattd.pool.capacity_worker import Job, Table
from kvwattd.pool.counts import ScaleCounts
from kvwattd.pool.minutes import Minutes
from kvwattd.pool.power import RestPower
from kvwattd.pool.seen import pages

log = logging.getLogger(__name__)

REMAKE_S = 300.0  # between two tables of a kind where only lengths changed, and after a failure
# Of the idle power of a ready engine, until it was read: an L20 draws 76 W ready, 61 W asleep at its lowest
# clock and 36 W without a context.
ASLEEP_SHARE, STOPPED_SHARE = 0.8, 0.5


class KindBook:
    """One per pool. `can_sleep`, `can_stop`: what may become of a member that is not needed."""

    def __init__(
        self,
        runs: Mapping[str, InstanceRuntime],
        counts: ScaleCounts,
        expect: StartConfig,
        folder: Path,
        can_sleep: bool,
        can_stop: bool,
    ) -> None:
        self._runs = runs
        self._counts = counts
        self._expect = expect
        self._folder = folder
        self._can_sleep, self._can_stop = can_sleep, can_stop
        self._tables: dict[str, tuple[Table, CapacityTable]] = {}
        self._tried_s: dict[str, float] = {}
        self._digests: dict[str, tuple[CompiledModel, str]] = {}
        self._gpus: dict[str, int] = {}
        self._making: asyncio.Task[None] | None = None
        self.power = RestPower(runs, expect)
        self._minutes = Minutes()

    def refresh(self, members: tuple[Member, ...], now_s: float) -> None:
        """Take up readings, and have a table made where one is missing or outdated; waits for nothing."""
        self.power.observe(members, now_s)
        seen = pages(members, self._runs, now_s)
        self._minutes.observe(now_s, {name: page for name, page in seen.items() if page is not None})
        for member in members:
            self._gpus[member.kind] = len(self._runs[member.name].config.gpus)
        if self._making is not None and not self._making.done():
            return
        for kind in self._gpus:
            found = self._wanted([self._runs[m.name] for m in members if m.kind == kind])
            if found is not None and self._due(kind, *found, now_s):
                self._tried_s[kind] = now_s
                self._making = asyncio.create_task(self._make(kind, *found), name=f"capacity {kind}")
                return

    def _wanted(self, runs: list[InstanceRuntime]) -> tuple[Job, CompiledModel, str] | None:
        """Of the member that has seen most requests end."""
        runs.sort(key=lambda run: -run.observation.estimator.outputs.weight_requests)
        for run in runs:
            job = capacity.job_of(run, self._minutes)
            if job is not None:
                return *job, self._digest(run.name, job[1])
        return None

    def _digest(self, name: str, compiled: CompiledModel) -> str:
        known = self._digests.get(name)
        if known is None or known[0] is not compiled:
            known = self._digests[name] = compiled, capacity.digest_of(compiled)
        return known[1]

    def _due(self, kind: str, job: Job, _: CompiledModel, digest: str, now_s: float) -> bool:
        made, tried_s = self._tables.get(kind), self._tried_s.get(kind)
        if tried_s is not None and now_s - tried_s < REMAKE_S and (made is None or made[0].model == digest):
            return False
        return made is None or capacity.outdated(made[0], job, digest)

    async def _make(self, kind: str, job: Job, compiled: CompiledModel, digest: str) -> None:
        folder = self._folder / kind
        try:
            table = await asyncio.to_thread(capacity.read, folder) if kind not in self._tables else None
            if table is None or capacity.outdated(table, job, digest):
                table = await capacity.made_by_worker(folder, job, compiled, digest)
            self._tables[kind] = table, table.capacity()
            log.info("pool: kind %s: %s", kind, capacity.told(self._tables[kind][1]))
        except (CapacityError, OSError, ValueError) as error:
            log.warning("pool: kind %s: no capacity: %s", kind, error)

    async def close(self) -> None:
        """End the worker."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)

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
