"""Whether the forecast of TTFT and E2E holds: requests of each page against what was forecast before it.

Where a promise is being broken, forecasts that did not hold are believed less: `cautious` limits are those
that the forecast has to keep so that requests keep the promised ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from kvwatt.attainment import Tally, targets, within
from kvwatt.calibration import LatencyCalibration
from kvwatt.state import EngineSnapshot, Forecast, Metric, Slo
from kvwatt.traffic import difference

DEFAULT_QUANTILE = 0.99
FULLY_AT = 1.5  # times the permitted misses: there the forecast's whole factor counts


class LatencyMonitor:
    """Feed every page with the forecast in force; read `calibrations`."""

    def __init__(self) -> None:
        self.calibrations: dict[Metric, LatencyCalibration] = {}
        self._before: tuple[EngineSnapshot, Forecast | None] | None = None

    def restart(self) -> None:
        """Another engine run or model: what was learned does not hold for it."""
        self.calibrations, self._before = {}, None

    def on_page(self, page: EngineSnapshot, forecast: Forecast | None, slo: Slo) -> None:
        """Score the requests since the last page against the forecast that stood then."""
        before, self._before = self._before, (page, forecast)
        old, expected = before if before is not None else (None, None)
        if old is None or expected is None:
            return
        for metric, target, new_s, old_s, bound_s in (
            (Metric.TTFT, slo.ttft, page.ttft_s, old.ttft_s, expected.ttft_s),
            (Metric.E2E, slo.e2e, page.e2e_s, old.e2e_s, expected.e2e_s),
        ):
            went_back = new_s.bounds != old_s.bounds or new_s.count < old_s.count
            if went_back or not math.isfinite(bound_s) or bound_s <= 0:
                continue
            quantile = target.quantile if target is not None else DEFAULT_QUANTILE
            calibration = self.calibrations.setdefault(metric, LatencyCalibration(quantile))
            kept = within(difference(new_s, old_s), calibration.factor * bound_s)
            calibration.update(min(kept.met, kept.total), kept.total)

    def cautious(self, slo: Slo, budget: Mapping[Metric, Tally]) -> Slo:
        """The same promises; limits with more misses than permitted, less what forecasts fell short."""
        limits = {}
        for metric, target in targets(slo).items():
            tally, calibration = budget.get(metric), self.calibrations.get(metric)
            if tally is None or calibration is None:
                continue
            over = tally.missed / max(tally.permitted, 1.0) - 1.0
            share = min(max(over / (FULLY_AT - 1.0), 0.0), 1.0)
            if share > 0.0 and calibration.factor > 1.0:
                limit_s = target.limit_s / calibration.factor**share
                limits[str(metric)] = replace(target, limit_s=limit_s)
        return replace(slo, **limits) if limits else slo
