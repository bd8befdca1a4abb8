"""What serving teaches: operating points to refit a model to, and rows for `kvwatt train` without a model.

`Learner` keeps bounded operating points in memory, at the clock the GPUs really ran. `SampleLog` writes rows
while there is no model: one clock alone cannot teach what other clocks do, so they do not replace
`kvwatt profile`. Files are bounded and written by a thread, never by the loop.
"""

from __future__ import annotations

import asyncio
import csv
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kvwatt.profiles import COLUMNS, ProfileRow, format_row
from kvwatt.residual import MIN_ITERATIONS
from kvwatt.samples import Sample, SampleRing
from kvwatt.state import GpuSample
from kvwatt.traffic import Interval
from kvwattd.holdbacks import held_back

log = logging.getLogger(__name__)

MAX_ROWS = 20_000
FLUSH_ROWS = 20


SPAN_S = 2.0  # one page may count work of the page before; over some of them that evens out
CLOCK_TOLERANCE = 0.02  # a clock that moved more within a span was not one clock


@dataclass
class _Span:
    """Sums over the intervals of one span; weights as in the means they turn into."""

    clock_mhz: float
    dt_s: float = 0.0
    batch_s: float = 0.0
    kv_s: float = 0.0
    power_s: float = 0.0
    iterations: float = 0.0
    prompt_tokens: float = 0.0
    itl_sum_s: float = 0.0
    itl_count: float = 0.0

    def add(self, step: Interval, power_w: float) -> None:
        self.dt_s += step.dt_s
        self.batch_s += step.running_mean * step.dt_s
        self.kv_s += step.kv_tokens_mean * step.dt_s
        self.power_s += power_w * step.dt_s
        self.iterations += step.iterations
        self.prompt_tokens += step.prompt_tokens
        self.itl_sum_s += step.itl_sum_s
        self.itl_count += step.itl_count

    def sample(self, number: int, chunk_tokens: float) -> Sample:
        power_w = self.power_s / self.dt_s
        return Sample(
            number=number,
            clock_mhz=self.clock_mhz,
            decode_batch=max(self.batch_s / self.dt_s, 1.0),
            kv_tokens=self.kv_s / self.dt_s,
            chunk_tokens=chunk_tokens,
            chunks_per_step=self.prompt_tokens / chunk_tokens / self.iterations,
            itl_s=self.itl_sum_s / self.itl_count,
            power_w=power_w if power_w > 0 else math.nan,
        )


class Learner:
    """Operating points of one instance. Idle stretches and clocks in motion teach nothing."""

    def __init__(self) -> None:
        self.ring = SampleRing()
        self.served = ""  # name of the served model that the samples are of
        self._span: _Span | None = None

    def observe(
        self,
        served: str,
        step: Interval | None,
        samples: Mapping[str, GpuSample],
        chunk_tokens: float,
        steady: bool,
    ) -> None:
        """Fold in one interval; `steady` says that no clock was set during it or shortly before."""
        if served != self.served:
            self._forget(served)
        usable = step is not None and step.busy and step.iterations >= MIN_ITERATIONS and step.itl_count > 0
        steady = steady and not held_back(samples.values())
        if step is None or not usable or not steady or not samples or step.itl_sum_s <= 0:
            self._span = None
            return
        clock_mhz = float(min(sample.clock_mhz for sample in samples.values()))
        if self._span is None or abs(clock_mhz / self._span.clock_mhz - 1) > CLOCK_TOLERANCE:
            self._span = _Span(clock_mhz)
        self._span.add(step, sum(sample.power_w for sample in samples.values()))
        if self._span.dt_s >= SPAN_S:
            self.ring.add(self._span.sample(self.ring.last + 1, chunk_tokens))
            self._span = None

    def _forget(self, served: str) -> None:
        """Another model is served: what was seen of the old one does not hold for it."""
        self.ring = SampleRing(first=self.ring.last)
        self.served, self._span = served, None

    def restore(self, served: str, samples: Iterable[Sample], least: int) -> None:
        """Take up samples of an earlier run, before any of this one; new numbers are above `least` too."""
        ring = SampleRing()
        for sample in samples:
            ring.add(sample)
        ring.last = max(ring.last, least, self.ring.last)
        self.ring, self.served = ring, served


class SampleLog:
    """Appends profile rows to `folder`/<instance>.csv."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, list[ProfileRow]] = {}
        self._written: dict[str, int] = {}
        self._failing = False

    def observe(self, name: str, step: Interval | None, samples: Mapping[str, GpuSample], tp: int) -> None:
        """Keep one interval; idle ones and those too short to mean anything teach nothing."""
        if step is None or not step.busy or step.iterations < MIN_ITERATIONS or not samples:
            return
        if held_back(samples.values()):
            return
        if self.rows(name) < MAX_ROWS:
            self._pending.setdefault(name, []).append(_row(step, samples, tp))

    def rows(self, name: str) -> int:
        """Rows kept for one instance since the start."""
        return self._written.get(name, 0) + len(self._pending.get(name, ()))

    async def flush(self, least: int = FLUSH_ROWS) -> None:
        """Write what has gathered; a full disk costs rows and a log line, nothing else."""
        for name, rows in list(self._pending.items()):
            if len(rows) >= max(least, 1):
                self._pending[name] = []
                self._written[name] = self._written.get(name, 0) + len(rows)
                await asyncio.to_thread(self._append, name, rows)

    def _append(self, name: str, rows: list[ProfileRow]) -> None:
        path = self._folder / f"{name}.csv"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fresh = not path.exists()
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if fresh:
                    writer.writerow(COLUMNS)
                writer.writerows(format_row(row) for row in rows)
        except OSError as error:
            if not self._failing:
                log.warning("samples cannot be kept in %s: %s", path, error)
            self._failing = True
            return
        self._failing = False


def _row(step: Interval, samples: Mapping[str, GpuSample], tp: int) -> ProfileRow:
    prefill_tokens = step.prompt_tokens / step.iterations
    return ProfileRow(
        clock_mhz=min(sample.clock_mhz for sample in samples.values()),
        decode_batch=step.running_mean,
        kv_tokens=step.kv_tokens_mean,
        prefill_tokens=prefill_tokens,
        step_time_s=step.dt_s / step.iterations,
        power_w=sum(sample.power_w for sample in samples.values()),
        tp=tp,
        kind="mixed" if prefill_tokens > 0 else "decode",
    )
