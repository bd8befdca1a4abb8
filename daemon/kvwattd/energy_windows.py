"""Rows for the energy model from what the daemon sees anyway: pages of the engine and readings of its GPUs.

A window closes at the first GPU reading `WINDOW_S` after the one it began with, and its joules are what
the counter says between the two. Rates come from the pages in between, each over its own time: a page and
a reading are never of the same moment. Pure: no I/O, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvwatt.energy_factors import FactorError, window_row
from kvwatt.state import EngineSnapshot, GpuSample, Histogram
from kvwatt.traffic import difference, interval, kv_capacity_tokens
from kvwattd.telemetry.vllm_metrics import counters_reset

WINDOW_S = 10.0
LENGTHS_MEMORY_S = 600.0
LONGEST_S = 3 * WINDOW_S  # readings were missing: what happened meanwhile is not known well enough
LEAST_BUSY = 0.2  # of the window that pages must cover


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What does not change while the engine runs. `power_cap_w`: of the whole group, NaN if unknown."""

    tp: int
    max_num_batched_tokens: int
    power_cap_w: float = math.nan


@dataclass(frozen=True, slots=True)
class ClosedWindow:
    """`row` as `energy_factors.window_row` makes it; joules of the group by its counters."""

    ended_s: float
    row: tuple[float, ...]
    energy_j: float


@dataclass(slots=True)
class _Lengths:
    """Mean and spread of lengths, the newest counting more."""

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, told: Histogram, dt_s: float) -> None:
        keep = math.exp(-dt_s / LENGTHS_MEMORY_S)
        self.count = self.count * keep + told.count
        self.total = self.total * keep + told.sum
        self.squares = self.squares * keep + _squares(told)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count > 0.5 else math.nan

    @property
    def cv(self) -> float:
        if not self.count > 0.5 or self.total <= 0:
            return math.nan
        return math.sqrt(max(self.squares / self.count - self.mean**2, 0.0)) / self.mean


def _squares(told: Histogram) -> float:
    """Sum of squares with every length in the middle of its bucket; the last is open: its lower bound."""
    total, low, below = 0.0, 0.0, 0.0
    for bound, cumulative in zip(told.bounds, told.cumulative, strict=True):
        middle = low if math.isinf(bound) else (low + bound) / 2
        total += (cumulative - below) * middle**2
        low, below = bound, cumulative
    return total


@dataclass(slots=True)
class _Mean:
    """Time-weighted mean of something sampled, each pair of samples by the trapezoid."""

    area: float = 0.0
    span_s: float = 0.0

    def add(self, old: float, new: float, dt_s: float) -> None:
        if dt_s > 0 and math.isfinite(old) and math.isfinite(new):
            self.area += (old + new) / 2 * dt_s
            self.span_s += dt_s

    @property
    def value(self) -> float:
        return self.area / self.span_s if self.span_s > 0 else math.nan


@dataclass(slots=True)
class _Pages:
    """Sums over the pages of a window."""

    span_s: float = 0.0
    steps: float = 0.0
    output: float = 0.0
    prompts: float = 0.0
    asked: float = 0.0  # prompt tokens, cache hits included
    preempted: float = 0.0
    flops: float = 0.0  # NaN where a page does not tell
    moved: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    running: _Mean = field(default_factory=_Mean)
    waiting: _Mean = field(default_factory=_Mean)
    usage: _Mean = field(default_factory=_Mean)


class WindowBuilder:
    """Feed `on_page` and `on_gpu`; the latter gives a window when one is over."""

    def __init__(self, facts: EngineFacts) -> None:
        self.facts = facts
        self.dropped = 0  # windows that could not be told of
        self._page: EngineSnapshot | None = None
        self._gpu: tuple[float, float, float, float, float] | None = None
        self._start: tuple[float, float] | None = None  # seconds, joules
        self._prompts, self._outputs = _Lengths(), _Lengths()
        self._begin()

    def _begin(self) -> None:
        self._pages = _Pages()
        self._clock, self._busy, self._heat = _Mean(), _Mean(), _Mean()

    def restart(self) -> None:
        """Another engine run, or readings that do not follow each other: the window so far is given up."""
        self._page, self._gpu, self._start = None, None, None
        self._begin()

    def on_page(self, page: EngineSnapshot) -> None:
        """A metrics page that was accepted."""
        old, self._page = self._page, page
        if old is None or page.observed_s <= old.observed_s:
            return
        if counters_reset(old, page):
            self.restart()
            self._page = page
            return
        done, sums = interval(old, page), self._pages
        sums.span_s += done.dt_s
        sums.steps += done.iterations
        sums.output += done.generation_tokens
        sums.prompts += done.prompt_tokens
        sums.asked += max(page.prompt_tokens_total - old.prompt_tokens_total, 0.0)
        sums.flops += _grown(old.flops_total, page.flops_total)
        sums.moved += _grown(old.bytes_total, page.bytes_total)
        sums.preempted += max(page.preemptions_total - old.preemptions_total, 0.0)
        sums.arrivals.append(done.arrivals)
        for mean, name in ((sums.running, "running"), (sums.waiting, "waiting"), (sums.usage, "kv_usage")):
            mean.add(getattr(old, name), getattr(page, name), done.dt_s)
        self._prompts.add(difference(page.prompt_lengths, old.prompt_lengths), done.dt_s)
        self._outputs.add(difference(page.generation_lengths, old.generation_lengths), done.dt_s)

    def on_gpu(self, samples: Mapping[str, GpuSample]) -> ClosedWindow | None:
        """A reading of all GPUs of the group."""
        if not samples:
            return None
        new = _group(samples)
        old, self._gpu = self._gpu, new
        if old is None or self._start is None or not 0.0 < new[0] - old[0] < LONGEST_S:
            self._start = new[:2]
            self._begin()
            return None
        dt_s = new[0] - old[0]
        for mean, place in ((self._clock, 2), (self._busy, 3), (self._heat, 4)):
            mean.add(old[place], new[place], dt_s)
        if new[0] - self._start[0] < WINDOW_S:
            return None
        closed = self._close(new[0], new[0] - self._start[0], new[1] - self._start[1])
        self._start = new[:2]
        self._begin()
        return closed

    def _close(self, at_s: float, duration_s: float, energy_j: float) -> ClosedWindow | None:
        page, sums = self._page, self._pages
        if page is None or sums.span_s < LEAST_BUSY * duration_s or not 0.0 < energy_j < math.inf:
            self.dropped += 1
            return None
        per_s = 1.0 / sums.span_s
        factors = {
            "kv_capacity_tokens": float(kv_capacity_tokens(page)),
            "kv_usage": min(max(sums.usage.value, 0.0), 1.0),
            "preemptions_per_s": sums.preempted * per_s,
            "prefix_hit_ratio": min(1.0 - sums.prompts / sums.asked, 1.0) if sums.asked > 0 else math.nan,
            "running": sums.running.value,
            "waiting": sums.waiting.value,
            "token_budget": float(self.facts.max_num_batched_tokens),
            "tp": float(self.facts.tp),
            "clock_mhz": self._clock.value,
            "power_cap_w": self.facts.power_cap_w,
            "utilization": min(self._busy.value, 1.0),
            "flops_per_s": sums.flops * per_s * self.facts.tp,
            "bytes_per_s": sums.moved * per_s * self.facts.tp,
            "temperature_c": max(self._heat.value, 0.0),
            "requests_per_s": sum(sums.arrivals) * per_s,
            "rate_dispersion": _dispersion(sums.arrivals),
            "prompt_tokens_per_s": sums.prompts * per_s,
            "output_tokens_per_s": max(sums.output, 0.0) * per_s,
            "steps_per_s": sums.steps * per_s,
            "prompt_mean_tokens": self._prompts.mean,
            "prompt_cv": self._prompts.cv,
            "output_mean_tokens": self._outputs.mean,
            "output_cv": self._outputs.cv,
        }
        try:
            return ClosedWindow(at_s, window_row(duration_s, factors), energy_j)
        except FactorError:  # counters that contradict each other teach nothing
            self.dropped += 1
            return None


def _grown(old: float | None, new: float | None) -> float:
    return new - old if old is not None and new is not None and new >= old else math.nan


def _group(samples: Mapping[str, GpuSample]) -> tuple[float, float, float, float, float]:
    """Time, joules of all, lowest clock, mean utilization, highest temperature."""
    items = list(samples.values())
    return (
        max(item.observed_s for item in items),
        sum(item.energy_j for item in items),
        float(min(item.clock_mhz for item in items)),
        sum(item.utilization for item in items) / len(items),
        max(item.temperature_c for item in items),
    )


def _dispersion(arrivals: list[float]) -> float:
    mean = sum(arrivals) / max(len(arrivals), 1)
    if mean <= 0 or len(arrivals) < 2:
        return math.nan
    return sum((count - mean) ** 2 for count in arrivals) / (len(arrivals) - 1) / mean
