"""The sweep: loads in the planned order, each measured from the highest clock down, until time is up.

For every load the clock only goes down while the promise would hold even if the latency grew in inverse
proportion to the clock; the first latency over its limit gives the clocks back at once.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from kvwatt.profiles import ProfileRow
from kvwattd.profiler.lease import ClockLease
from kvwattd.profiler.plan import DecodeLoad, Limits, Load, PrefillLoad, plan, worst_next_s
from kvwattd.profiler.rows import (
    ForeignTrafficError,
    WindowUnusable,
    check_plausible,
    decode_row,
    idle_row,
    prefill_row,
)
from kvwattd.profiler.streams import Batch, Target, complete
from kvwattd.profiler.windows import Meter

_STEPS_PER_WINDOW = 15
_LONGEST_WINDOW_S = 3.0
_RETRIES = 2
_DRAIN_TIMEOUT_S = 10.0
_SETUP_SHARE = 0.2  # of the budget: a load that takes longer to set up is not worth it
_LEAST_SETUP_S = 10.0
_MOST_PROMPTS = 12
_QUIET_S = 0.5


class SloExceeded(Exception):  # noqa: N818 - an outcome, not a mistake
    """A latency is over its limit, or would be at the next clock; the message says which."""


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """Times in seconds. `live` measures beside other traffic instead of refusing."""

    budget_s: float = 600.0
    slo_tbt_s: float = 0.2
    slo_ttft_s: float = math.inf
    window_s: float = 1.2
    settle_s: float = 0.3
    live: bool = False
    tp: int = 1
    seed: int = 0


@dataclass(slots=True)
class SweepReport:
    """What was measured and what was left out, with reasons."""

    rows: int = 0
    loads: int = 0
    planned_loads: int = 0
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
        self._clocks = clocks_mhz
        self._options = options
        self._write = write
        self._progress = progress
        self._random = random.Random(options.seed)  # noqa: S311 - load, not secrets
        self._begin_s = 0.0
        self._setup_s_per_token = 0.0
        self._idle_w = math.nan
        self.report = SweepReport()

    async def run(self) -> SweepReport:
        """Raises ForeignTrafficError, LoadError, GuardError, TelemetryError, GpuUnavailable.

        Rows written before an exception remain.
        """
        self._begin_s = time.monotonic()
        loads = plan(self._limits)
        self.report.planned_loads = len(loads)
        await self._check_quiet()
        for load in loads:
            if self._time_is_up:
                break
            await self._one(load)
        return self.report

    @property
    def _left_s(self) -> float:
        return self._begin_s + self._options.budget_s - time.monotonic()

    @property
    def _time_is_up(self) -> bool:
        return self._left_s < self._options.settle_s + self._options.window_s

    async def _one(self, load: Load) -> None:
        try:
            if isinstance(load, DecodeLoad):
                await self._decode(load)
            elif isinstance(load, PrefillLoad):
                await self._prefill(load)
            else:
                await self._idle()
            self.report.loads += 1
        except SloExceeded as reason:
            self.report.loads += 1
            self.report.skipped.append(f"{load}: {reason}")
        finally:
            await self._lease.release()
        await self._drained()

    async def _decode(self, load: DecodeLoad) -> None:
        tokens = load.batch * load.context_tokens
        patience_s = max(_SETUP_SHARE * self._options.budget_s, _LEAST_SETUP_S)
        if tokens * self._setup_s_per_token > min(patience_s, self._left_s):
            self.report.skipped.append(f"{load}: setting it up would take too long")
            return
        self._tell(str(load), self._clocks[0])
        room = self._limits.kv_capacity_tokens // load.batch - load.context_tokens
        answer = max(min(self._limits.max_model_len - load.context_tokens, room), 1)
        seed = self._random.randrange(1 << 30)
        async with Batch(self._target, load.batch, load.context_tokens, answer, seed) as batch:
            await self._lease.set(self._clocks[0])
            begin_s = time.monotonic()
            try:
                async with asyncio.timeout(min(patience_s, max(self._left_s, 1.0))):
                    await batch.started()
            except TimeoutError:
                self.report.skipped.append(f"{load}: not running after {time.monotonic() - begin_s:.0f} s")
                return
            self._setup_s_per_token = (time.monotonic() - begin_s) / tokens
            await self._descend(
                str(load),
                "TBT",
                self._options.slo_tbt_s,
                lambda clock, worst_s: self._decode_point(load, batch, clock, worst_s),
            )

    async def _prefill(self, load: PrefillLoad) -> None:
        await self._descend(
            str(load),
            "TTFT",
            self._options.slo_ttft_s,
            lambda clock, worst_s: self._prefill_point(load, clock, worst_s),
        )

    async def _descend(
        self, name: str, metric: str, limit_s: float, measure: Callable[[int, float], Awaitable[float]]
    ) -> None:
        """`measure(clock, worst latency to expect)` gives the latency that the limit is about."""
        latency_s, before_mhz = 0.0, self._clocks[0]
        for clock in self._clocks:
            if self._time_is_up:
                return
            if (worst_s := worst_next_s(latency_s, before_mhz, clock)) > limit_s:
                raise SloExceeded(
                    f"{metric} {latency_s:.3f} s at {before_mhz} MHz may become {worst_s:.3f} s at {clock}, "
                    f"limit {limit_s:g} s"
                )
            self._tell(name, clock)
            await self._lease.set(clock)
            await asyncio.sleep(self._options.settle_s)
            latency_s, before_mhz = await measure(clock, worst_s), clock
            if latency_s > limit_s:
                raise SloExceeded(f"{metric} {latency_s:.3f} s at {clock} MHz, limit {limit_s:g} s")

    async def _decode_point(self, load: DecodeLoad, batch: Batch, clock: int, worst_s: float) -> float:
        seconds = min(max(self._options.window_s, _STEPS_PER_WINDOW * worst_s), _LONGEST_WINDOW_S)
        latency_s = worst_s
        for _ in range(1 + _RETRIES):
            window = await self._meter.window(seconds)
            batch.check()
            self._lease.check()
            latency_s = max(window.itl_s or worst_s, worst_s)
            try:
                row = decode_row(window, clock, load.batch, self._options.tp, live=self._options.live)
                check_plausible(row.step_time_s, worst_s)
            except WindowUnusable as reason:
                why = str(reason)
                continue
            self._keep(row)
            return max(window.itl_s or 0.0, row.step_time_s)
        self.report.skipped.append(f"{load} at {clock} MHz: {why}")
        return latency_s

    async def _prefill_point(self, load: PrefillLoad, clock: int, worst_s: float) -> float:
        begin_s, begin_j = await self._meter.energy()
        times: list[float] = []
        enough_s = time.monotonic() + self._options.window_s
        while len(times) < 2 or (time.monotonic() < enough_s and len(times) < _MOST_PROMPTS):
            times.append(await complete(self._target, load.prompt_tokens, 1, self._random))
        actual_mhz = await self._meter.clock_mhz()
        end_s, end_j = await self._meter.energy()
        self._lease.check()
        if self._options.live and await self._foreign():
            self.report.skipped.append(f"{load} at {clock} MHz: other requests were running")
            return worst_s
        elapsed = (end_s - begin_s, end_j - begin_j)
        row = prefill_row(
            load.prompt_tokens, times, elapsed, self._idle_w, clock, actual_mhz, self._options.tp
        )
        self._keep(row)
        return max(times)

    async def _idle(self) -> None:
        """Power at the highest, the middle and the lowest clock while nothing runs."""
        if await self._foreign():
            self.report.skipped.append("idle: other requests were running")
            return
        middle = self._clocks[len(self._clocks) // 2]
        for clock in dict.fromkeys((self._clocks[-1], middle, self._clocks[0])):
            if self._time_is_up:
                return
            self._tell("idle", clock)
            await self._lease.set(clock)
            await asyncio.sleep(self._options.settle_s)
            window = await self._meter.window(self._options.window_s)
            if window.iterations == 0:
                self._keep(idle_row(window, clock, self._options.tp))
                self._idle_w = window.power_w

    def _keep(self, row: ProfileRow) -> None:
        self._write(row)
        self.report.rows += 1

    def _tell(self, name: str, clock: int) -> None:
        done = 1 - max(self._left_s, 0.0) / self._options.budget_s
        self._progress(f"{name}, {clock} MHz, {self.report.rows} rows", min(done, 1.0))

    async def _foreign(self) -> bool:
        snapshot = await self._meter.snapshot()
        return snapshot.running + snapshot.waiting > 0

    async def _check_quiet(self) -> None:
        if self._options.live:
            return
        first = await self._meter.snapshot()
        await asyncio.sleep(_QUIET_S)
        last = await self._meter.snapshot()
        moved = last.generation_tokens_total > first.generation_tokens_total
        if first.running + first.waiting + last.running + last.waiting > 0 or moved:
            raise ForeignTrafficError(
                f"the server is serving others ({last.running} running, {last.waiting} waiting): "
                "take it out of its router, or profile beside the traffic with --live"
            )

    async def _drained(self) -> None:
        """Until the engine has dropped our requests; what then still runs is not ours."""
        deadline_s = time.monotonic() + _DRAIN_TIMEOUT_S
        while await self._foreign():
            if self._options.live:
                return
            if time.monotonic() > deadline_s:
                raise ForeignTrafficError(
                    "other requests arrived on the server; profile with --live beside them"
                )
            await asyncio.sleep(0.05)
