"""What the demonstration ends with: one record per plant, their comparison, and its JSON form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kvwatt.state import Metric, Slo
from kvwatt_sim.latency import LatencyReport


@dataclass(frozen=True, slots=True)
class PlantResult:
    """One plant over the whole horizon; energy from the GPU's own counter, idle time included.

    `latency` is of the requests due within the horizon, `tokens` are all that came within it.
    """

    energy_j: float
    energy_with_warmup_j: float
    duration_s: float
    tokens: int
    latency: LatencyReport
    clock_changes: int
    mean_clock_mhz: float

    @property
    def tokens_per_j(self) -> float:
        """Output tokens per joule; 0 when nothing was drawn."""
        return self.tokens / self.energy_j if self.energy_j > 0.0 else 0.0

    def document(self) -> dict[str, Any]:
        """Plain types for JSON."""
        latency = self.latency
        quantiles = {
            f"{metric}_p{round(level * 100)}_s": value
            for metric, levels in latency.quantiles_s.items()
            for level, value in levels.items()
        }
        return {
            "energy_j": self.energy_j,
            "energy_with_warmup_j": self.energy_with_warmup_j,
            "mean_power_w": self.energy_j / self.duration_s,
            "tokens": self.tokens,
            "tokens_per_j": self.tokens_per_j,
            "requests": latency.requests,
            "finished": latency.finished,
            "unfinished": latency.unfinished,
            "failed": latency.failed,
            **quantiles,
            "itl_p99_s": latency.itl_p99_s,
            "attainment": {str(metric): a.ratio for metric, a in latency.attainment.items()},
            "judged": {str(metric): a.judged for metric, a in latency.attainment.items()},
            "clock_changes": self.clock_changes,
            "mean_clock_mhz": self.mean_clock_mhz,
        }


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Both plants under the same requests over the same time."""

    baseline: PlantResult
    kvwatt: PlantResult
    slo: Slo
    warmup_s: float
    rate_per_s: float
    load: float
    seed: int
    workload: str
    cpu_shares: dict[str, float]
    loop_lag_p99_s: float
    warnings: tuple[str, ...]

    @property
    def energy_saved_ratio(self) -> float:
        """1 - kvwatt / baseline, in joules over the horizon."""
        return 1.0 - self.kvwatt.energy_j / self.baseline.energy_j

    @property
    def saved_with_warmup_ratio(self) -> float:
        """The same from the first request on, when kvwatt still watches."""
        return 1.0 - self.kvwatt.energy_with_warmup_j / self.baseline.energy_with_warmup_j

    @property
    def per_token_saved_ratio(self) -> float | None:
        """The same per output token: tells when less was saved than left undone. None without tokens."""
        if not self.baseline.tokens_per_j or not self.kvwatt.tokens_per_j:
            return None
        return 1.0 - self.baseline.tokens_per_j / self.kvwatt.tokens_per_j

    def document(self) -> dict[str, Any]:
        """What `--json` writes."""
        targets = {Metric.TTFT: self.slo.ttft, Metric.TBT: self.slo.tbt, Metric.E2E: self.slo.e2e}
        kvwatt = self.kvwatt.document()
        return {
            "baseline": self.baseline.document(),
            "kvwatt": kvwatt,
            "energy_saved_ratio": self.energy_saved_ratio,
            "energy_saved_with_warmup_ratio": self.saved_with_warmup_ratio,
            "energy_per_token_saved_ratio": self.per_token_saved_ratio,
            "slo_attainment": kvwatt["attainment"],
            "slo": {
                str(metric): {"limit_s": target.limit_s, "quantile": target.quantile}
                for metric, target in targets.items()
                if target is not None
            },
            "horizon_s": self.kvwatt.duration_s,
            "warmup_s": self.warmup_s,
            "workload": self.workload,
            "rate_per_s": self.rate_per_s,
            "load": self.load,
            "seed": self.seed,
            "cpu_shares": self.cpu_shares,
            "loop_lag_p99_s": self.loop_lag_p99_s,
            "warnings": list(self.warnings),
        }
