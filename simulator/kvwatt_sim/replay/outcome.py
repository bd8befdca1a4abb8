"""What one replay cost and served, and how far its promises were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvwatt.state import Slo
from kvwatt_sim.engine import RequestRecord
from kvwatt_sim.replay.gaps import Gaps

Floats = npt.NDArray[np.float64]
LEVELS = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`energy_j`: all GPUs of the group over `duration_s`, idle included. `gaps`: every time between two
    tokens of one request."""

    energy_j: float
    duration_s: float
    tokens: int
    clock_changes: int
    steps: int
    records: tuple[RequestRecord, ...]
    gaps: Gaps

    def latencies(self) -> dict[str, Floats]:
        """Seconds per finished request: TTFT, mean TBT (from two tokens on) and E2E, keyed by name."""
        return latencies(self.records)

    def quantiles(self, levels: Sequence[float] = LEVELS) -> dict[str, dict[float, float]]:
        """Quantiles of TTFT, TBT, E2E and of the single gaps (ITL); NaN of nothing."""
        found = {
            name: {level: _quantile(values, level) for level in levels}
            for name, values in self.latencies().items()
        }
        found["itl"] = {level: self.gaps.quantile(level) for level in levels}
        return found

    def attainment(self, slo: Slo, itl_limit_s: float | None = None) -> dict[str, float]:
        """Share of requests within each promise, of gaps for ITL; 1 of nothing."""
        values = self.latencies()
        targets = {"ttft": slo.ttft, "tbt": slo.tbt, "e2e": slo.e2e}
        kept = {
            name: float(np.mean(values[name] <= target.limit_s)) if values[name].size else 1.0
            for name, target in targets.items()
            if target is not None
        }
        if itl_limit_s is not None:
            kept["itl"] = self.gaps.share_within(itl_limit_s)
        return kept


def latencies(records: Sequence[RequestRecord]) -> dict[str, Floats]:
    """TTFT, mean TBT and E2E in seconds of finished requests; requests of one token have no TBT."""
    rows = [
        (r.request.arrival_s, r.first_token_s, r.last_token_s, r.output_tokens)
        for r in records
        if r.first_token_s is not None and r.last_token_s is not None
    ]
    arrival, first, last, tokens = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    several = tokens > 1
    tbt = (last - first)[several] / (tokens[several] - 1)
    return {"ttft": first - arrival, "tbt": tbt, "e2e": last - arrival}


def _quantile(values: Floats, level: float) -> float:
    return float(np.quantile(values, level, method="inverted_cdf")) if values.size else float("nan")
