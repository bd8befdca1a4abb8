"""One measured point: a load at a clock, as rows of the profile table and the latency that it showed."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kvwatt.profiles import ProfileRow
from kvwattd.profiler.lease import ClockLease
from kvwattd.profiler.plan import DecodeLoad, MixedLoad, PrefillLoad
from kvwattd.profiler.rows import (
    WindowUnusable,
    check_plausible,
    decode_row,
    idle_row,
    mixed_row,
    prefill_row,
    prompts_in,
)
from kvwattd.profiler.streams import Batch, Target, complete
from kvwattd.profiler.windows import Meter, Window

_STEPS_PER_WINDOW = 15
_PROMPTS_PER_WINDOW = 8
_LONGEST_WINDOW_S = 3.0
_RETRIES = 2
_LEAST_PROMPTS, _MOST_PROMPTS = 3, 12


@dataclass(frozen=True, slots=True)
class Point:
    """Rows that were measured, the latency that the promise is about, and why a row is missing."""

    rows: tuple[ProfileRow, ...]
    latency_s: float
    missing: str | None = None


@dataclass
class PointMeter:
    """Measures points of the loads it is given; the clock is set and settled by the caller."""

    meter: Meter
    lease: ClockLease
    target: Target
    window_s: float
    tp: int
    random: random.Random
    idle_w: float = field(default=math.nan)
    overhead_s: float = 0.0  # of one request beside its engine step
    single_s: dict[int, float] = field(default_factory=dict)  # step time of one sequence, by clock

    async def decode(self, load: DecodeLoad | MixedLoad, batch: Batch, clock: int, worst_s: float) -> Point:
        """Steady decoding. `worst_s`: step time to expect at most, 0 when unknown."""
        seconds = self._seconds(_STEPS_PER_WINDOW * worst_s)
        latency_s, why = worst_s, None
        for _ in range(1 + _RETRIES):
            window = await self._window(seconds, batch)
            latency_s = max(window.itl_s or worst_s, worst_s)
            try:
                row = decode_row(window, clock, load.batch, self.tp)
                check_plausible(row.step_time_s, worst_s)
            except WindowUnusable as reason:
                why = str(reason)
                continue
            if load.batch == 1:
                self.single_s[clock] = row.step_time_s
            return Point((row,), max(window.itl_s or 0.0, row.step_time_s))
        return Point((), latency_s, why)

    async def mixed(self, load: MixedLoad, batch: Batch, clock: int, worst_s: float) -> Point:
        """The same batch without and then with prompts beside it."""
        plain = await self.decode(load, batch, clock, worst_s)
        if not plain.rows:
            return plain
        decode, why = plain.rows[0], None
        latency_s = plain.latency_s
        for _ in range(1 + _RETRIES):
            async with self._prompts(load.prompt_tokens) as feed:
                pace_s = await feed.pace_s()
                window = await self._window(self._seconds(_PROMPTS_PER_WINDOW * pace_s), batch)
                feed.check()
            latency_s = max(latency_s, window.itl_s or 0.0)
            try:
                prompts = prompts_in(window, load.prompt_tokens, load.batch)
                row = mixed_row(window, decode, load.prompt_tokens, prompts)
            except WindowUnusable as reason:
                why = str(reason)
                continue
            return Point((decode, row), latency_s)
        return Point((decode,), latency_s, why)

    async def prefill(self, load: PrefillLoad, clock: int, worst_s: float) -> Point:
        """Single prompts, one after the other."""
        if clock in self.single_s:
            await self._learn_overhead(self.single_s[clock])
        latency_s, why = worst_s, None
        for _ in range(1 + _RETRIES):
            row, slowest_s = await self._prompts_alone(load, clock)
            latency_s = max(row.step_time_s, worst_s)
            try:
                check_plausible(row.step_time_s, worst_s)
            except WindowUnusable as reason:
                why = str(reason)
                continue
            return Point((row,), max(slowest_s if worst_s == 0 else 0.0, row.step_time_s))
        return Point((), latency_s, why)

    async def _prompts_alone(self, load: PrefillLoad, clock: int) -> tuple[ProfileRow, float]:
        begin_s, begin_j = await self.meter.energy()
        times: list[float] = []
        enough_s = time.monotonic() + self.window_s
        while len(times) < _LEAST_PROMPTS or (time.monotonic() < enough_s and len(times) < _MOST_PROMPTS):
            times.append(await complete(self.target, load.prompt_tokens, 1, self.random))
        actual_mhz = await self.meter.clock_mhz()
        end_s, end_j = await self.meter.energy()
        await self.lease.check()
        elapsed = (end_s - begin_s, end_j - begin_j)
        row = prefill_row(
            load.prompt_tokens, times, elapsed, self.idle_w, clock, actual_mhz, self.tp, self.overhead_s
        )
        return row, max(times)

    async def _learn_overhead(self, single_s: float) -> None:
        """What a request costs beside its step: a prompt of one token is a step like that of one sequence."""
        times = [await complete(self.target, 1, 1, self.random) for _ in range(_LEAST_PROMPTS)]
        seen_s = min(max(min(times) - single_s, 0.0), single_s)
        self.overhead_s = seen_s if self.overhead_s == 0 else min(self.overhead_s, seen_s)

    async def idle(self, clock: int) -> Point:
        """Power while nothing runs."""
        window = await self.meter.window(self.window_s)
        await self.lease.check()
        if window.iterations > 0:
            return Point((), 0.0, "something ran")
        self.idle_w = window.power_w
        return Point((idle_row(window, clock, self.tp),), 0.0)

    def _seconds(self, wanted_s: float) -> float:
        return min(max(self.window_s, wanted_s), _LONGEST_WINDOW_S)

    async def _window(self, seconds: float, batch: Batch) -> Window:
        window = await self.meter.window(seconds)
        batch.check()
        await self.lease.check()
        return window

    @asynccontextmanager
    async def _prompts(self, prompt_tokens: int) -> AsyncIterator[PromptFeed]:
        feed = PromptFeed(self.target, prompt_tokens, self.random)
        task = asyncio.create_task(feed.run())
        feed.task = task
        try:
            yield feed
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class PromptFeed:
    """One prompt at a time, the next when the first token of the last has come."""

    def __init__(self, target: Target, prompt_tokens: int, source: random.Random) -> None:
        self._target = target
        self._prompt_tokens = prompt_tokens
        self._random = source
        self._first = asyncio.Event()
        self._times: list[float] = []
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            begin_s = time.monotonic()
            await complete(self._target, self._prompt_tokens, 1, self._random)
            self._times.append(time.monotonic() - begin_s)
            self._first.set()

    async def pace_s(self) -> float:
        """Seconds per prompt, once the first has come. Raises LoadError when it cannot."""
        first = asyncio.create_task(self._first.wait())
        try:
            await asyncio.wait(
                [first] if self.task is None else [first, self.task], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            first.cancel()
        self.check()
        return self._times[-1]

    def check(self) -> None:
        """Raises the LoadError of a prompt that failed."""
        if self.task is not None and self.task.done() and not self.task.cancelled():
            error = self.task.exception()
            if error is not None:
                raise error
