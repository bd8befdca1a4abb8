"""The sweep: the most informative load next, measured from the highest clock down, until enough is known.

For every load the clock only goes down while the promise would hold even if the latency grew in inverse
proportion to the clock; the first latency over its limit gives the clocks back at once.
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from kvwatt.profiles import ProfileRow
from kvwattd.guard.protocol import Code, GuardError
from kvwattd.profiler.campaign import Campaign, Task
from kvwattd.profiler.lease import ClockLease
from kvwattd.profiler.plan import DecodeLoad, Limits, MixedLoad, PrefillLoad, worst_next_s
from kvwattd.profiler.points import Point, PointMeter
from kvwattd.profiler.rows import ForeignTrafficError
from kvwattd.profiler.streams import Batch, Target
from kvwattd.profiler.windows import Meter

_DRAIN_TIMEOUT_S = 10.0
_SETUP_SHARE = 0.2  # of the budget: a load that takes longer to set up is not worth it
_LEAST_SETUP_S = 10.0
_QUIET_S = 0.5
_READING_S = 0.3  # what a window costs beside its own length: edges of the energy counter, two pages


class SloExceeded(Exception):  # noqa: N818 - an outcome, not a mistake
    """A latency is over its limit, or would be at the next clock; the message says which."""


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Times in seconds. `target_error`: mean relative error on unseen loads at which to stop."""

    budget_s: float = 600.0
    slo_tbt_s: float = 0.2
    slo_ttft_s: float = math.inf
    window_s: float = 1.2
    settle_s: float = 0.3
    target_error: float = 0.03
    tp: int = 1
    seed: int = 0


@dataclass(slots=True)
class SweepReport:
    """What was measured and what was left out, with reasons; errors on loads left out of training."""

    rows: int = 0
    loads: int = 0
    planned_loads: int = 0
    error: float | None = None
    bound: float | None = None
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)


class Sweep:
    """One sweep of one engine. `write` gets every row as it is measured, `progress` what is being done."""

    def __init__(
        self,
        meter: Meter,
        lease: ClockLease,
        target: Target,
        limits: Limits,
        clocks_mhz: tuple[int, ...],
        options: SweepOptions,
        write: Callable[[ProfileRow], None],
        progress: Callable[[str, float], None],
    ) -> None:
        self._meter = meter
        self._lease = lease
        self._target = target
        self._limits = limits
        self._options = options
        self._write = write
        self._progress = progress
        self._random = random.Random(options.seed)  # noqa: S311 - load, not secrets
        self._points = PointMeter(meter, lease, target, options.window_s, options.tp, self._random)
        self._campaign = Campaign(
            limits,
            clocks_mhz,
            options.target_error,
            options.window_s + options.settle_s + _READING_S,
            options.budget_s,
        )
        self._begin_s = 0.0
        self._rows: list[ProfileRow] = []
        self._setup_s: float | None = None
        self.report = SweepReport(planned_loads=self._campaign.planned_loads)

    async def run(self) -> SweepReport:
        """Raises ForeignTrafficError, LoadError, GuardError, TelemetryError, GpuUnavailable.

        Rows written before an exception remain.
        """
        self._begin_s = time.monotonic()
        await self._check_quiet()
        # Fitting takes a moment, and the lease is renewed meanwhile: hence the threads.
        while not self._time_is_up:
            task = await asyncio.to_thread(self._campaign.next, self._left_s)
            if task is None:
                break
            self._rows, self._setup_s = [], None
            await self._one(task)
            await asyncio.to_thread(self._campaign.add, task, self._rows, self._setup_s)
        self.report.error, self.report.bound = self._campaign.error, self._campaign.bound
        self.report.seconds = time.monotonic() - self._begin_s
        return self.report

    @property
    def _left_s(self) -> float:
        return self._begin_s + self._options.budget_s - time.monotonic()

    @property
    def _time_is_up(self) -> bool:
        return self._left_s < self._options.settle_s + self._options.window_s

    async def _one(self, task: Task) -> None:
        load = task.load
        try:
            if isinstance(load, DecodeLoad | MixedLoad):
                await self._batch(load, task.clocks_mhz)
            elif isinstance(load, PrefillLoad):
                await self._descend(
                    task,
                    "TTFT",
                    self._options.slo_ttft_s,
                    lambda clock, worst_s: self._points.prefill(load, clock, worst_s),
                )
            else:
                await self._idle(task)
            self.report.loads += 1
        except SloExceeded as reason:
            self.report.loads += 1
            self.report.skipped.append(f"{load}: {reason}")
        finally:
            await self._lease.release()
        await self._drained()

    async def _batch(self, load: DecodeLoad | MixedLoad, clocks_mhz: tuple[int, ...]) -> None:
        self._tell(str(load), clocks_mhz[0])
        room = self._limits.kv_capacity_tokens // load.batch - load.context_tokens
        if isinstance(load, MixedLoad):
            room -= load.prompt_tokens // load.batch + 1
        answer = max(min(self._limits.max_model_len - load.context_tokens, room), 1)
        patience_s = max(_SETUP_SHARE * self._options.budget_s, _LEAST_SETUP_S)
        seed = self._random.randrange(1 << 30)
        async with Batch(self._target, load.batch, load.context_tokens, answer, seed) as batch:
            await self._lease.set(clocks_mhz[0])
            begin_s = time.monotonic()
            try:
                async with asyncio.timeout(min(patience_s, max(self._left_s, 1.0))):
                    await batch.started()
            except TimeoutError:
                self.report.skipped.append(f"{load}: not running after {time.monotonic() - begin_s:.0f} s")
                return
            self._setup_s = time.monotonic() - begin_s

            async def measure(clock: int, worst_s: float) -> Point:
                if isinstance(load, MixedLoad):
                    return await self._points.mixed(load, batch, clock, worst_s)
                return await self._points.decode(load, batch, clock, worst_s)

            await self._descend(Task(load, clocks_mhz), "TBT", self._options.slo_tbt_s, measure)

    async def _descend(
        self, task: Task, metric: str, limit_s: float, measure: Callable[[int, float], Awaitable[Point]]
    ) -> None:
        """`measure(clock, worst latency to expect)` gives the latency that the limit is about."""
        latency_s, before_mhz = 0.0, task.clocks_mhz[0]
        for clock in task.clocks_mhz:
            if self._time_is_up:
                return
            if (worst_s := worst_next_s(latency_s, before_mhz, clock)) > limit_s:
                raise SloExceeded(
                    f"{metric} {latency_s:.3f} s at {before_mhz} MHz may become {worst_s:.3f} s at {clock}, "
                    f"limit {limit_s:g} s"
                )
            self._tell(str(task.load), clock)
            point = await self._at(clock, functools.partial(measure, clock, worst_s))
            latency_s, before_mhz = point.latency_s, clock
            self._keep(point, f"{task.load} at {clock} MHz")
            if latency_s > limit_s:
                raise SloExceeded(f"{metric} {latency_s:.3f} s at {clock} MHz, limit {limit_s:g} s")

    async def _idle(self, task: Task) -> None:
        """Power at the highest, the middle and the lowest clock while nothing runs."""
        clocks = task.clocks_mhz
        for clock in dict.fromkeys((clocks[-1], clocks[len(clocks) // 2], clocks[0])):
            if self._time_is_up:
                return
            self._tell("idle", clock)
            point = await self._at(clock, functools.partial(self._points.idle, clock))
            self._keep(point, f"idle at {clock} MHz")

    async def _at(self, clock: int, measure: Callable[[], Awaitable[Point]]) -> Point:
        """Measured at the settled clock; once more where the lease ran out on a machine that stood still."""
        try:
            return await self._settled(clock, measure)
        except GuardError as error:
            if error.code != Code.LEASE_EXPIRED:
                raise
        return await self._settled(clock, measure)

    async def _settled(self, clock: int, measure: Callable[[], Awaitable[Point]]) -> Point:
        await self._lease.set(clock)
        await asyncio.sleep(self._options.settle_s)
        return await measure()

    def _keep(self, point: Point, what: str) -> None:
        for row in point.rows:
            self._write(row)
        self._rows += point.rows
        self.report.rows += len(point.rows)
        if point.missing is not None:
            self.report.skipped.append(f"{what}: {point.missing}")

    def _tell(self, name: str, clock: int) -> None:
        done = 1 - max(self._left_s, 0.0) / self._options.budget_s
        error = self._campaign.error
        known = f", error {100 * error:.1f} %" if error is not None else ""
        self._progress(f"{name}, {clock} MHz, {self.report.rows} rows{known}", min(done, 1.0))

    async def _foreign(self) -> bool:
        snapshot = await self._meter.snapshot()
        return snapshot.running + snapshot.waiting > 0

    async def _check_quiet(self) -> None:
        first = await self._meter.snapshot()
        await asyncio.sleep(_QUIET_S)
        last = await self._meter.snapshot()
        moved = last.generation_tokens_total > first.generation_tokens_total
        if first.running + first.waiting + last.running + last.waiting > 0 or moved:
            raise ForeignTrafficError(
                f"the server is serving others ({last.running} running, {last.waiting} waiting): "
                "take it out of its router, or learn from its traffic with --live"
            )

    async def _drained(self) -> None:
        """Until the engine has dropped our requests; what then still runs is not ours."""
        deadline_s = time.monotonic() + _DRAIN_TIMEOUT_S
        while await self._foreign():
            if time.monotonic() > deadline_s:
                raise ForeignTrafficError(
                    "other requests arrived on the server; learn from its traffic with --live"
                )
            await asyncio.sleep(0.05)
