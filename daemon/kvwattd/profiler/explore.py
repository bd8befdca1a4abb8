"""Profiling on live traffic: no load of its own, one rung down for a short window, back at the first sign."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kvwatt.profiles import ProfileRow
from kvwattd.guard.protocol import Code, GuardError
from kvwattd.profiler.excursions import Excursions, Guarded
from kvwattd.profiler.lease import ClockLease
from kvwattd.profiler.rows import WindowUnusable, decode_row, mixed_row
from kvwattd.profiler.sweep import SweepReport
from kvwattd.profiler.windows import Meter, Window

_LOOKS = 4  # windows per excursion; after each one it may end
_STEADY = 0.1  # relative change of the batch within a window that still is one operating point
_LIKE = 0.2  # relative distance in batch of a plain decode row that serves as reference


@dataclass(frozen=True, slots=True)
class ExploreOptions:
    """Times in seconds. `look_s`: after so long at a lower clock the promises are looked at again."""

    budget_s: float = 600.0
    slo_tbt_s: float = 0.2
    slo_ttft_s: float = math.inf
    look_s: float = 0.4
    settle_s: float = 0.3
    rest_s: float = 1.0
    tp: int = 1


@dataclass
class Explorer:
    """`write` gets every row as it is measured, `progress` what is being done."""

    meter: Meter
    lease: ClockLease
    clocks_mhz: tuple[int, ...]  # from high to low; the first is what the driver gives
    options: ExploreOptions
    write: Callable[[ProfileRow], None]
    progress: Callable[[str, float], None]
    report: SweepReport = field(default_factory=SweepReport)
    _plain: list[ProfileRow] = field(default_factory=list)

    async def run(self) -> SweepReport:
        """Raises GuardError, TelemetryError, GpuUnavailable; rows written before an exception remain."""
        begin_s = time.monotonic()
        self.report.planned_loads = len(self.clocks_mhz)
        guarded = Guarded(self.options.slo_tbt_s, self.options.slo_ttft_s)
        excursions = Excursions(self.clocks_mhz, self.options.rest_s)
        while (spent_s := time.monotonic() - begin_s) < self.options.budget_s:
            self.progress(f"default clock, {self.report.rows} rows", spent_s / self.options.budget_s)
            window = await self.meter.window(self.options.look_s)
            self._learn(window, self.clocks_mhz[0])
            rung = excursions.next(guarded, window)
            rest_s = self.options.rest_s
            if rung is not None:
                self.progress(
                    f"{self.clocks_mhz[rung]} MHz, {self.report.rows} rows", spent_s / self.options.budget_s
                )
                rest_s = excursions.came_back(rung, await self._excursion(guarded, rung))
            await asyncio.sleep(min(rest_s, max(self.options.budget_s - time.monotonic() + begin_s, 0.0)))
        self.report.loads = excursions.safe + 1
        self.report.seconds = time.monotonic() - begin_s
        return self.report

    async def _excursion(self, guarded: Guarded, rung: int) -> bool:
        """True when no sign showed; the clock is the driver's again in any case."""
        clock = self.clocks_mhz[rung]
        try:
            await self.lease.set(clock)
            settling = await self.meter.window(self.options.settle_s)
            sign = guarded.sign(settling)
            for _ in range(_LOOKS):
                if sign is not None:
                    self.report.skipped.append(f"{clock} MHz: turned back: {sign}")
                    return False
                window = await self.meter.window(self.options.look_s)
                await self.lease.check()
                self._learn(window, clock)
                sign = guarded.sign(window)
            return sign is None
        except GuardError as error:
            if error.code != Code.LEASE_EXPIRED:
                raise
            self.report.skipped.append(f"{clock} MHz: {error}")
            return False
        finally:
            await self.lease.release()

    def _learn(self, window: Window, clock: int) -> None:
        """A row, where the window shows one operating point; most windows of busy traffic do not."""
        before, after = window.before.running, window.after.running
        batch = (before + after) / 2
        if min(before, after) < 1 or abs(after - before) > max(_STEADY * batch, 0.0):
            return
        try:
            row = self._row(window, clock, batch)
        except WindowUnusable:
            return  # a window like any other under live traffic: the next one may serve
        if row is not None:
            self.write(row)
            self.report.rows += 1

    def _row(self, window: Window, clock: int, batch: float) -> ProfileRow | None:
        if window.prompt_tokens == 0:
            row = decode_row(window, clock, math.ceil(batch), self.options.tp, live=True)
            self._plain.append(row)
            return row
        plain = self._reference(clock, batch)
        if plain is None or window.first_tokens < 1:
            return None
        return mixed_row(window, plain, window.prompt_tokens / window.first_tokens, window.first_tokens)

    def _reference(self, clock: int, batch: float) -> ProfileRow | None:
        """A plain decode row at this clock with about this batch: the newest of the nearest."""
        like = [
            row
            for row in reversed(self._plain)
            if row.clock_mhz == clock and abs(row.decode_batch / batch - 1) <= _LIKE
        ]
        return min(like, key=lambda row: abs(row.decode_batch - batch), default=None)
