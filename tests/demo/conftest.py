from __future__ import annotations

import pytest

from kvwatt.state import Metric
from kvwatt_sim.demo.results import DemoResult, PlantResult
from kvwatt_sim.demo.settings import SLO
from kvwatt_sim.latency import Attainment, LatencyReport


def plant_result(energy_j: float, tokens: int, met: int, changes: int) -> PlantResult:
    latency = LatencyReport(
        requests=40,
        finished=38,
        unfinished=2,
        failed=0,
        tokens=tokens,
        quantiles_s={metric: {0.5: 0.25, 0.99: None} for metric in Metric},
        itl_p99_s=0.3,
        attainment={metric: Attainment(met, 40) for metric in Metric},
    )
    return PlantResult(energy_j, 2.0 * energy_j, 30.0, tokens, latency, changes, 1500.0)


@pytest.fixture
def result() -> DemoResult:
    return DemoResult(
        baseline=plant_result(6000.0, 6000, 40, 0),
        kvwatt=plant_result(3600.0, 4500, 39, 12),
        slo=SLO,
        warmup_s=9.0,
        rate_per_s=1.5,
        load=0.5,
        seed=0,
        workload="built-in conversations",
        cpu_shares={"daemon": 0.03},
        loop_lag_p99_s=0.004,
        warnings=("the server kvwatt lost 1.0 s",),
    )
