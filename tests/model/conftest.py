"""Tables and models that the tests share; fitting takes about a second, so once per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_world import synthetic_rows

from kvwatt.profiles import ProfileTable, parse_csv, table_of
from kvwatt.state import EngineShape
from kvwatt.throughput import StepModel
from kvwatt.training import Origin, fit

L20 = Path(__file__).resolve().parents[3] / "shared" / "data" / "profiles" / "l20_qwen2.5-7b"


@pytest.fixture(scope="session")
def table() -> ProfileTable:
    return table_of(synthetic_rows())


@pytest.fixture(scope="session")
def model(table: ProfileTable) -> StepModel:
    return fit(table, Origin("Made-up GPU"))


@pytest.fixture(scope="session")
def shape() -> EngineShape:
    return EngineShape(block_size=16, num_blocks=20_001, max_num_seqs=128, max_num_batched_tokens=2048)


@pytest.fixture(scope="session")
def l20_table() -> ProfileTable:
    if not L20.is_dir():
        pytest.skip(f"measured L20 profile not found at {L20}")
    names = ("decode_7b_tp1.csv", "prefill_7b_tp1.csv", "static_7b_tp1.csv")
    return table_of(row for name in names for row in parse_csv((L20 / name).read_text(), name))
