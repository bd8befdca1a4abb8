from __future__ import annotations

from pathlib import Path

import pytest

from kvwatt_sim.replay.scenario import Case, case, plant
from kvwatt_sim.traces import TraceRequest, window
from kvwatt_sim.workload import generate

AZURE = Path(__file__).parents[3] / "shared/data/traces"


@pytest.fixture(scope="session")
def azure() -> Path:
    """The folder with the Azure traces."""
    if not AZURE.is_dir():
        pytest.skip(f"needs the Azure traces in {AZURE}")
    return AZURE


@pytest.fixture(scope="session")
def trace() -> tuple[TraceRequest, ...]:
    """Twenty minutes of the built-in workload, faster than any plant here serves it."""
    return generate(6.0, 1200.0, seed=0)


@pytest.fixture(scope="session")
def setting(trace: tuple[TraceRequest, ...]) -> Case:
    """Half of an L20's capacity under the paper's promises; its first two minutes."""
    whole = case(plant("l20"), trace, 0.5, "paper", seed=100)
    return Case(
        whole.card, whole.clocks_mhz, whole.shape, window(whole.requests, 120.0), whole.promises, 150.0
    )
