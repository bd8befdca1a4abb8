"""Measurements at default clocks, kept while there is no model: rows that `kvwatt train` can read.

One clock alone cannot teach what other clocks do, so this does not replace `kvwatt profile`; it anchors
a model where the service really runs. Files are bounded and written by a thread, never by the loop.
"""

from __future__ import annotations

import asyncio
import csv
import logging
from collections.abc import Mapping
from pathlib import Path

from kvwatt.profiles import COLUMNS, ProfileRow, format_row
from kvwatt.residual import MIN_ITERATIONS
from kvwatt.state import GpuSample
from kvwatt.traffic import Interval

log = logging.getLogger(__name__)

MAX_ROWS = 20_000
FLUSH_ROWS = 20


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
