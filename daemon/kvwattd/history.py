"""The last quarter of an hour of every instance, a point a second: what the page draws when it is opened.

Kept in single precision, and shorter where there are many instances: a few MB at most for all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from kvwattd.instance import InstanceRuntime
from kvwattd.regime import Regime

log = logging.getLogger(__name__)

PERIOD_S = 1.0
KEPT = 900
KEPT_IN_ALL = 90_000
COLUMNS = (
    "clock_target_mhz",
    "clock_actual_mhz",
    "power_w",
    "predicted_power_w",
    "running",
    "waiting",
    "kv_usage",
    "step_s",
    "predicted_step_s",
    "step_bound_s",
)
Row = tuple[float | None, ...]


class History:
    """Points of one instance in a ring, oldest overwritten first. Times are monotonic seconds."""

    def __init__(self, kept: int = KEPT) -> None:
        self._times_s = np.empty(kept)
        self._rows = np.empty((kept, len(COLUMNS)), dtype=np.float32)
        self._count = 0

    def add(self, now_s: float, row: Row) -> None:
        """`row` as COLUMNS; None for what was not known."""
        place = self._count % len(self._times_s)
        self._times_s[place] = now_s
        self._rows[place] = [np.nan if value is None else value for value in row]
        self._count += 1

    def read(self) -> tuple[npt.NDArray[np.float64], dict[str, list[float | None]]]:
        """Times (n,), oldest first, and a list of n per column."""
        kept = len(self._times_s)
        order = np.arange(max(self._count - kept, 0), self._count) % kept
        columns = self._rows[order].T
        return self._times_s[order], {
            name: [None if np.isnan(value) else round(float(value), 6) for value in column]
            for name, column in zip(COLUMNS, columns, strict=True)
        }


class Histories:
    """One for each instance that there is."""

    def __init__(
        self,
        runs: Callable[[], Mapping[str, InstanceRuntime]],
        now: Callable[[], float],
        period_s: float = PERIOD_S,
    ) -> None:
        self._runs, self._now, self._period_s = runs, now, period_s
        self._kept: dict[str, History] = {}
        self._failed = False

    async def run(self) -> None:
        """A point every period until cancelled."""
        while True:
            try:
                self.take()
            except Exception:  # what is only looked at must never end serving
                if not self._failed:
                    log.exception("history: a point is lost; this is said once")
                self._failed = True
            await asyncio.sleep(self._period_s)

    def take(self) -> None:
        """A point of each instance; those that are gone are forgotten."""
        runs, now_s = self._runs(), self._now()
        length = max(min(KEPT, KEPT_IN_ALL // max(len(runs), 1)), 1)
        self._kept = {name: self._kept.get(name) or History(length) for name in runs}
        for name, run in runs.items():
            self._kept[name].add(now_s, row_of(run, now_s))

    def of(self, name: str) -> History:
        """Empty before the first point."""
        return self._kept.get(name) or History(1)


def row_of(run: InstanceRuntime, now_s: float) -> Row:
    """What the instance does at this moment; load only from a page that can be trusted."""
    seen = run.observation
    page = seen.snapshot if seen.fault(now_s) is None else None
    chosen = run.last.chosen if run.last is not None and run.regime is Regime.ACTIVE else None
    check = seen.check
    expected_s = check.predicted_itl_s
    return (
        _decided(run),
        min((sample.clock_mhz for sample in run.samples.values()), default=None),
        sum(sample.power_w for sample in run.samples.values()) if run.samples else None,
        chosen.power_w if chosen is not None else None,
        page.running if page is not None else None,
        page.waiting if page is not None else None,
        page.kv_usage if page is not None else None,
        check.measured_itl_s,
        expected_s,
        expected_s * check.calibration.upper_factor if expected_s is not None else None,
    )


def _decided(run: InstanceRuntime) -> float | None:
    """The clock in force, and in shadow mode the one that would be asked for."""
    if run.regime is not Regime.SHADOW:
        return run.confirmed_mhz
    return run.last.clock_mhz if run.last is not None else None
