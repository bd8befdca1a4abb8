"""One measured window: what the engine counted and what the GPUs drew between two instants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from kvwatt.state import EngineSnapshot, GpuSample
from kvwattd.telemetry.gpu import GpuReader
from kvwattd.telemetry.poller import Poller

_EDGE_POLL_S = 0.005
_EDGE_LIMIT_S = 0.25  # counters refresh every 20-100 ms
_CLOCK_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Window:
    """Differences between the ends of one window."""

    before: EngineSnapshot
    after: EngineSnapshot
    energy_j: float
    energy_s: float  # between the two refreshes of the counter that `energy_j` spans
    clock_mhz: float  # mean over the ends and GPUs
    middle: EngineSnapshot | None = None

    @property
    def unevenness(self) -> float:
        """Relative difference of the time between tokens in the two halves; 0 where it is not known."""
        if self.middle is None:
            return 0.0
        halves = [
            (b.itl_s.sum - a.itl_s.sum, b.itl_s.count - a.itl_s.count)
            for a, b in ((self.before, self.middle), (self.middle, self.after))
        ]
        if any(count <= 0 or total <= 0 for total, count in halves):
            return 0.0
        first, second = (total / count for total, count in halves)
        return abs(first / second - 1.0)

    @property
    def power_w(self) -> float:
        """Mean power of all GPUs together."""
        return self.energy_j / self.energy_s

    @property
    def duration_s(self) -> float:
        return self.after.observed_s - self.before.observed_s

    @property
    def iterations(self) -> float:
        return self.after.iterations.count - self.before.iterations.count

    @property
    def prompt_tokens(self) -> float:
        """Computed, without what the prefix cache gave."""
        computed = self.after.prompt_tokens_total - self.before.prompt_tokens_total
        return computed - (self.after.prompt_tokens_cached_total - self.before.prompt_tokens_cached_total)

    @property
    def itl_count(self) -> float:
        """Tokens that followed another one: one per decoding sequence and step."""
        return self.after.itl_s.count - self.before.itl_s.count

    @property
    def itl_sum_s(self) -> float:
        return self.after.itl_s.sum - self.before.itl_s.sum

    @property
    def first_tokens(self) -> float:
        """Requests whose prompt was completed."""
        return self.after.ttft_s.count - self.before.ttft_s.count

    @property
    def itl_s(self) -> float | None:
        """Mean time between tokens; in a steady batch, the step time. None when no token came."""
        count = self.after.itl_s.count - self.before.itl_s.count
        return (self.after.itl_s.sum - self.before.itl_s.sum) / count if count > 0 else None

    @property
    def ttft_s(self) -> float | None:
        count = self.after.ttft_s.count - self.before.ttft_s.count
        return (self.after.ttft_s.sum - self.before.ttft_s.sum) / count if count > 0 else None


class Meter:
    """Reads one engine and its GPUs."""

    def __init__(self, poller: Poller, gpus: GpuReader) -> None:
        self._poller = poller
        self._gpus = gpus

    async def snapshot(self) -> EngineSnapshot:
        """Raises TelemetryError."""
        return await self._poller.poll(time.monotonic)

    async def window(self, seconds: float) -> Window:
        """Measure for `seconds`. Raises TelemetryError, GpuUnavailable."""
        first_edge, first = await self._energy_edge()
        before = await self.snapshot()
        await asyncio.sleep(seconds / 2)
        middle = await self.snapshot()
        await asyncio.sleep(seconds / 2)
        after = await self.snapshot()
        last_edge, last = await self._energy_edge()
        joules, span_s = _joules(last) - _joules(first), last_edge - first_edge
        return Window(before, after, joules, span_s, _clock(first, last), middle)

    async def energy(self) -> tuple[float, float]:
        """Instant of a refresh of the energy counter, and joules of all GPUs since the start."""
        edge_s, samples = await self._energy_edge()
        return edge_s, _joules(samples)

    async def clock_mhz(self) -> float:
        """Actual clock now, mean of the GPUs."""
        samples = await self._gpus.read()
        return fmean(sample.clock_mhz for sample in samples.values())

    async def _energy_edge(self) -> tuple[float, Mapping[str, GpuSample]]:
        """The first reading after the counter has moved: elsewhere it is up to 100 ms old."""
        base = await self._gpus.read()
        deadline_s = time.monotonic() + _EDGE_LIMIT_S
        while True:
            samples = await self._gpus.read()
            observed_s = max(sample.observed_s for sample in samples.values())
            if _joules(samples) > _joules(base) or observed_s >= deadline_s:
                return observed_s, samples
            await asyncio.sleep(_EDGE_POLL_S)


def nominal_clock_mhz(target_mhz: float, actual_mhz: float) -> float:
    """The clock a measurement belongs to: what was asked for, unless a cap kept the GPU from it."""
    return target_mhz if abs(actual_mhz / target_mhz - 1) <= _CLOCK_TOLERANCE else actual_mhz


def _joules(samples: Mapping[str, GpuSample]) -> float:
    return sum(sample.energy_j for sample in samples.values())


def _clock(first: Mapping[str, GpuSample], last: Mapping[str, GpuSample]) -> float:
    return fmean(sample.clock_mhz for samples in (first, last) for sample in samples.values())
