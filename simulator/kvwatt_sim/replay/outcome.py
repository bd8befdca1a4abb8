"""What one replay cost and served, and how far its promises were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from kvwatt.state import Slo
from kvwatt_sim.engine import FinishReason, Request, RequestRecord
from kvwatt_sim.replay.gaps import Gaps

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LEVELS = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Served:
    """Finished requests, one row each in order of finish. `index`: place in the trace."""

    index: Ints
    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    scheduled_s: Floats
    first_s: Floats
    last_s: Floats
    preemptions: Ints

    def __len__(self) -> int:
        return len(self.index)

    def records(self) -> tuple[RequestRecord, ...]:
        """As the engine tells of its finished requests."""
        columns = (self.index, self.arrival_s, self.prompt_tokens, self.output_tokens)
        times = (self.scheduled_s, self.first_s, self.last_s)
        rows = zip(*(c.tolist() for c in (*columns, *times, self.preemptions)), strict=True)
        return tuple(
            RequestRecord(
                Request(f"r{i}", arrival, prompt, output),
                FinishReason.STOP,
                scheduled,
                first,
                last,
                last,
                output,
                preempted,
                0,
            )
            for i, arrival, prompt, output, scheduled, first, last, preempted in rows
        )

    def latencies(self) -> dict[str, Floats]:
        """Seconds per request: TTFT, mean TBT (of those with two tokens or more) and E2E, keyed by name."""
        several = self.output_tokens > 1
        tbt = (self.last_s - self.first_s)[several] / (self.output_tokens[several] - 1)
        return {"ttft": self.first_s - self.arrival_s, "tbt": tbt, "e2e": self.last_s - self.arrival_s}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`energy_j`: all GPUs of the group over `duration_s`, idle included. `gaps`: every time between two
    tokens of one request."""

    energy_j: float
    duration_s: float
    tokens: int
    clock_changes: int
    steps: int
    served: Served
    gaps: Gaps

    @property
    def records(self) -> tuple[RequestRecord, ...]:
        """Every finished request, in order of finish."""
        return self.served.records()

    def quantiles(self, levels: Sequence[float] = LEVELS) -> dict[str, dict[float, float]]:
        """Quantiles of TTFT, TBT, E2E and of the single gaps (ITL); NaN of nothing."""
        found = {
            name: {level: _quantile(values, level) for level in levels}
            for name, values in self.served.latencies().items()
        }
        found["itl"] = {level: self.gaps.quantile(level) for level in levels}
        return found

    def attainment(self, slo: Slo) -> dict[str, float]:
        """Share of requests within each promise, of gaps for ITL; 1 of nothing."""
        values = self.served.latencies()
        targets = {"ttft": slo.ttft, "tbt": slo.tbt, "e2e": slo.e2e}
        kept = {
            name: float(np.mean(values[name] <= target.limit_s)) if values[name].size else 1.0
            for name, target in targets.items()
            if target is not None
        }
        if slo.itl is not None:
            kept["itl"] = self.gaps.share_within(slo.itl.limit_s)
        return kept


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Several plants side by side as one: energy, tokens, changes and gaps added up."""
    names = [item.name for item in fields(Served)]
    columns = (np.concatenate([getattr(o.served, name) for o in outcomes]) for name in names)
    return Outcome(
        energy_j=sum(o.energy_j for o in outcomes),
        duration_s=max(o.duration_s for o in outcomes),
        tokens=sum(o.tokens for o in outcomes),
        clock_changes=sum(o.clock_changes for o in outcomes),
        steps=sum(o.steps for o in outcomes),
        served=Served(*columns),
        gaps=Gaps(np.sum([o.gaps.counts for o in outcomes], axis=0)),
    )


def _quantile(values: Floats, level: float) -> float:
    return float(np.quantile(values, level, method="inverted_cdf")) if values.size else float("nan")
