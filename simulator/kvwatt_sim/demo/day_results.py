"""What a day of the pool ends with: its own energy and promises beside those of all instances always on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from kvwatt.state import Metric
from kvwatt_sim.latency import LatencyReport
from kvwatt_sim.replay.outcome import Outcome

BASELINE = "driver default, all instances always on: the same requests replayed in virtual time"


@dataclass(frozen=True, slots=True)
class DayResult:
    """Energy in joules over `duration_s` seconds; the pool's from the GPUs' counters."""

    instances: int
    day_s: float
    duration_s: float
    energy_j: float
    latency: LatencyReport
    baseline: Outcome
    baseline_kept: Mapping[str, float]
    ready_mean: float
    ready_most: int
    ready_least: int
    events: Sequence[Mapping[str, Any]]
    start_s: float | None  # mean time that a start took
    router: str
    seed: int
    warnings: tuple[str, ...] = ()
    course: Sequence[tuple[float, int]] = field(default_factory=tuple)  # hour, instances in service

    @property
    def baseline_j(self) -> float:
        """Of the baseline, over as long."""
        return self.baseline.energy_j * self.duration_s / self.baseline.duration_s

    @property
    def saved_ratio(self) -> float:
        """Share of the baseline's energy that was not used."""
        return 1.0 - self.energy_j / self.baseline_j

    def document(self) -> dict[str, Any]:
        """What `--json` writes."""
        latency = self.latency
        return {
            "instances": self.instances,
            "day_s": self.day_s,
            "duration_s": self.duration_s,
            "energy_j": self.energy_j,
            "baseline_energy_j": self.baseline_j,
            "baseline": BASELINE,
            "energy_saved_ratio": self.saved_ratio,
            "slo_attainment": {str(m): a.ratio for m, a in latency.attainment.items()},
            "baseline_slo_attainment": dict(self.baseline_kept),
            "requests": latency.requests,
            "finished": latency.finished,
            "unfinished": latency.unfinished,
            "failed": latency.failed,
            "tokens": latency.tokens,
            "ready_mean": self.ready_mean,
            "ready_most": self.ready_most,
            "ready_least": self.ready_least,
            "scale_events": [dict(event) for event in self.events],
            "start_mean_s": self.start_s,
            "router": self.router,
            "course": [[hour, count] for hour, count in self.course],
            "seed": self.seed,
            "warnings": list(self.warnings),
        }


def print_day(console: Console, result: DayResult) -> None:
    """Print the table, the saving and the warnings."""
    served = f"{result.latency.requests} requests over a day of {result.day_s:.0f} s"
    table = Table(title=f"{served}; router: {result.router}")
    table.add_column("")
    table.add_column(f"{result.instances} at driver default*", justify="right")
    table.add_column("kvwatt", justify="right")
    for row in _rows(result):
        table.add_row(*row)
    console.print(table)
    kept = ", ".join(f"{metric.upper()} {_share(a.ratio)}" for metric, a in result.latency.attainment.items())
    console.print(
        f"Energy saved against {result.instances} at driver default: {_share(result.saved_ratio)}; "
        f"promises kept: {kept}",
        highlight=False,
        style="bold",
    )
    console.print(f"* {BASELINE}", highlight=False, style="dim", markup=False)
    for warning in result.warnings:
        console.print(f"warning: {warning}", highlight=False, style="yellow", markup=False)


def _rows(result: DayResult) -> list[tuple[str, str, str]]:
    latency, tokens = result.latency, result.latency.tokens
    events = ", ".join(f"{e['count']} {e['action']} {e['outcome']}" for e in result.events) or "none"
    joules = (result.baseline_j, result.energy_j)
    rows = [
        ("energy", f"{result.baseline_j:,.0f} J", f"{result.energy_j:,.0f} J"),
        ("mean power", f"{joules[0] / result.duration_s:.0f} W", f"{joules[1] / result.duration_s:.0f} W"),
        ("tokens per joule", f"{tokens / joules[0]:.3f}", f"{tokens / joules[1]:.3f}"),
        ("instances in service, mean", f"{result.instances}", f"{result.ready_mean:.2f}"),
        ("least and most", f"{result.instances}", f"{result.ready_least} to {result.ready_most}"),
        ("finished / unfinished / failed", f"{len(result.baseline.served)} / 0 / 0", _fates(latency)),
    ]
    rows += [_promise(result, metric) for metric in latency.attainment]
    return [*rows, ("scale actions", "-", events), ("a start took", "-", _seconds(result.start_s))]


def _promise(result: DayResult, metric: Metric) -> tuple[str, str, str]:
    kept = result.latency.attainment[metric]
    return f"{metric.upper()} kept", _share(result.baseline_kept.get(str(metric))), _share(kept.ratio)


def _fates(latency: LatencyReport) -> str:
    return f"{latency.finished} / {latency.unfinished} / {latency.failed}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _share(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"
