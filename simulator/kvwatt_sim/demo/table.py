"""The closing table: both plants, every promise, and the saving beside what it is measured against."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from kvwatt.state import Metric, SloTarget
from kvwatt_sim.demo.results import DemoResult, PlantResult


def print_result(console: Console, result: DemoResult) -> None:
    """Print the table, the saving and the warnings."""
    table = Table(title=_title(result))
    table.add_column("")
    table.add_column("driver default", justify="right")
    table.add_column("kvwatt", justify="right")
    for label, cell in _rows(result):
        table.add_row(label, cell(result.baseline), cell(result.kvwatt))
    console.print(table)
    per_token = result.per_token_saved_ratio
    attained = ", ".join(
        f"{metric.upper()} {_share(a.ratio)}" for metric, a in result.kvwatt.latency.attainment.items()
    )
    console.print(
        f"Energy saved against driver default over {result.kvwatt.duration_s:.0f} s: "
        f"{_share(result.energy_saved_ratio)} ({_share(per_token)} per token; "
        f"{_share(result.saved_with_warmup_ratio)} with {result.warmup_s:.0f} s of warm-up); "
        f"promises kept: {attained}",
        highlight=False,
        style="bold",
    )
    shares = ", ".join(f"{name} {_share(share)}" for name, share in result.cpu_shares.items())
    console.print(f"CPU, of one core: {shares}", highlight=False, style="dim")
    for warning in result.warnings:
        console.print(f"warning: {warning}", highlight=False, style="yellow", markup=False)


def _title(result: DemoResult) -> str:
    return (
        f"{result.kvwatt.latency.requests} requests, {result.rate_per_s:.2f}/s "
        f"({100 * result.load:.0f} % of capacity), {result.workload}"
    )


def _rows(result: DemoResult) -> list[tuple[str, Callable[[PlantResult], str]]]:
    slo = result.slo
    rows: list[tuple[str, Callable[[PlantResult], str]]] = [
        ("energy", lambda p: f"{p.energy_j:,.0f} J"),
        ("tokens per joule", lambda p: f"{p.tokens_per_j:.3f}"),
        ("mean power", lambda p: f"{p.energy_j / p.duration_s:.0f} W"),
        ("mean clock", lambda p: f"{p.mean_clock_mhz:.0f} MHz"),
        ("clock changes", lambda p: str(p.clock_changes)),
        ("finished / unfinished / failed", _fates),
    ]
    for metric, target in ((Metric.TTFT, slo.ttft), (Metric.TBT, slo.tbt), (Metric.E2E, slo.e2e)):
        rows.append((f"{metric.upper()} p50", _quantile(metric, 0.5)))
        rows.append((f"{metric.upper()} p99", _quantile(metric, 0.99)))
        if target is not None:
            rows.append((_promise(metric, target), _attained(metric)))
    return rows


def _promise(metric: Metric, target: SloTarget) -> str:
    return f"{metric.upper()} within {target.limit_s:g} s (promised: {100 * target.quantile:g} %)"


def _quantile(metric: Metric, level: float) -> Callable[[PlantResult], str]:
    def cell(plant: PlantResult) -> str:
        value = plant.latency.quantiles_s[metric][level]
        return "-" if value is None else f"{value:.3f} s"

    return cell


def _attained(metric: Metric) -> Callable[[PlantResult], str]:
    def cell(plant: PlantResult) -> str:
        attainment = plant.latency.attainment[metric]
        return f"{_share(attainment.ratio)} of {attainment.judged}"

    return cell


def _fates(plant: PlantResult) -> str:
    return f"{plant.latency.finished} / {plant.latency.unfinished} / {plant.latency.failed}"


def _share(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.1f} %"
