"""`kvwatt train --scheduler`: one model from the telemetry of a fleet, on a cluster of processes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from kvwatt import artifact
from kvwatt.profiles import ProfileRow, ProfileTable, table_of
from kvwatt.state import EngineShape
from kvwatt.training import Origin, fit
from kvwatt_sim import cards
from kvwatt_sim.virtual_profile import virtual_profile
from kvwattd.commands.train import train
from kvwattd.fleet.telemetry import SAMPLE_ROWS, TelemetryError, read

WHY = "Dask is not installed: pip install 'kvwatt[fleet]'"
for name in ("dask.dataframe", "distributed", "pyarrow", "sklearn"):
    pytest.importorskip(name, reason=WHY)
pandas = pytest.importorskip("pandas", reason=WHY)
distributed = pytest.importorskip("distributed", reason=WHY)

CARD = "l20"
HOSTS = 4
# Each worker bins features from the rows it holds, so that trees split at slightly other places.
TOLERANCE, TOLERANCE_MEAN = 0.02, 0.003

app = typer.Typer()
app.command()(train)


def host_rows(host: int) -> list[ProfileRow]:
    """What one host of the fleet measured."""
    return list(virtual_profile(cards.load(CARD, 1), seed=host))


def frame(rows: list[ProfileRow], hardware: str) -> Any:
    names = (
        "clock_mhz",
        "tp",
        "decode_batch",
        "kv_tokens",
        "prefill_tokens",
        "step_time_s",
        "power_w",
        "kind",
    )
    values = [{name: getattr(row, name) for name in names} for row in rows]
    return pandas.DataFrame(values).assign(hardware=hardware, model_name="sim")


def fleet_table() -> ProfileTable:
    """All hosts as one table, as one would train on it here: idle power is the mean by clock."""
    rows = [row for host in range(HOSTS) for row in host_rows(host)]
    idle = [row for row in rows if row.kind == "idle"]
    means = [
        replace(row, power_w=float(np.mean([r.power_w for r in idle if r.clock_mhz == row.clock_mhz])))
        for row in idle[: len(idle) // HOSTS]
    ]
    return table_of([*(row for row in rows if row.kind != "idle"), *means])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file per host, and one of another GPU."""
    folder = tmp_path_factory.mktemp("fleet")
    for host in range(HOSTS):
        frame(host_rows(host), "GPU A").to_parquet(folder / f"host{host}.parquet")
    other = [r for r in host_rows(9) if r.kind != "idle"][:20]
    frame(other, "GPU B").to_parquet(folder / "other.parquet")
    return folder


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Address of a scheduler with two workers, each a process of its own."""
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def trained(fleet: Path, scheduler: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The command's JSON."""
    output = tmp_path_factory.mktemp("trained") / "model"
    options = ["--telemetry", f"{fleet}/*.parquet", "--scheduler", scheduler, "--hardware", "GPU A"]
    result = CliRunner().invoke(app, [*options, "-o", str(output), "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout[result.stdout.index("{") :])
    return document


def test_the_fleets_model_is_close_to_one_trained_here(trained: dict[str, Any]) -> None:
    """The same prior, and predictions within 2 % of local training at every point, 0.3 % on average."""
    table = fleet_table()
    local, distant = fit(table, Origin("GPU A")), artifact.load(Path(trained["model"]))
    assert np.allclose(distant.prior.coefficients, local.prior.coefficients, rtol=1e-6)
    for ask in ("step_time_s", "power_w"):
        ours, theirs = (getattr(m, ask)(table.clock_mhz, *table.load) for m in (local, distant))
        off = np.abs(theirs / ours - 1)
        assert off.max() < TOLERANCE and off.mean() < TOLERANCE_MEAN, (ask, off.max(), off.mean())


def test_the_artifact_says_where_it_comes_from_and_how_good_it_is(trained: dict[str, Any]) -> None:
    """Hardware, rows, served model, and errors on points that were held out; the other GPU is left out."""
    busy = len(fleet_table())
    assert (trained["hardware"], trained["model_name"], trained["rows"]) == ("GPU A", "sim", busy)
    assert trained["errors"]["fold_decode_mape"] < 0.04
    assert trained["errors"]["fold_power_mape"] < 0.06
    assert trained["upper_factor"] >= 1.0


def test_the_daemon_can_use_it_as_any_other(trained: dict[str, Any]) -> None:
    """It compiles, is monotone in the clock, and carries rows for a refit."""
    folder = Path(trained["model"])
    compiled = artifact.load_compiled(folder, (900, 1500, 2100), EngineShape(16, 20_001, 128, 2048))
    table = compiled.step_time_s(np.array([1.0, 32.0]), np.array([500.0, 20_000.0]), np.zeros(2))
    assert (np.diff(table, axis=1) <= 0).all()
    assert len(artifact.load_profile(folder)) == trained["rows"]


def test_a_scheduler_that_is_not_there_is_said_so(fleet: Path, tmp_path: Path) -> None:
    """Exit code 2 and the address."""
    options = ["--telemetry", f"{fleet}/*.parquet", "--scheduler", "nonsense://x", "-o", str(tmp_path / "m")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2 and "nonsense://x" in result.output


def test_a_sample_stands_for_rows_that_do_not_fit(fleet: Path) -> None:
    """Ranges and count are of all rows, whatever the size of the sample; idle power is a mean by clock."""
    whole = read([f"{fleet}/host*.parquet"], None, None, parts=2)
    part = read([f"{fleet}/host*.parquet"], None, None, parts=2, sample_rows=100)
    assert len(whole.sample) == whole.count < SAMPLE_ROWS
    assert 90 <= len(part.sample) <= 100 and part.count == whole.count and part.ranges == whole.ranges
    assert 0.1 < whole.held.mean() < 0.3
    assert (np.diff(whole.sample.idle_clock_mhz) > 0).all()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("step_time_s", -1.0, "step_time_s must be finite and >= 1e-09, got -1.0"),
        ("step_time_s", math.nan, "step_time_s must be finite"),
        ("clock_mhz", 0.0, "clock_mhz must be finite and >= 1, got 0.0"),
        ("kv_tokens", math.inf, "kv_tokens must be finite"),
        ("power_w", 0.0, "power_w must be finite"),
        ("kind", "warm", "kind must be one of decode, prefill, mixed, idle, got 'warm'"),
        ("hardware", "GPU C", "hardware must have one value, got .*GPU A.*GPU C.*--hardware"),
        ("tp", 2, r"tp must have one value, got \[1, 2\]: choose one with --tp"),
    ],
)
def test_bad_rows_are_refused_by_column_and_value(
    tmp_path: Path, column: str, value: object, message: str
) -> None:
    """One bad cell is enough: telemetry is not repaired."""
    table = frame(host_rows(0)[1:40], "GPU A")
    table[column] = [value, *table[column].iloc[1:]]
    table.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(TelemetryError, match=message):
        read([f"{tmp_path}/*.parquet"], None, None, parts=1)


def test_missing_columns_and_files_are_named(tmp_path: Path) -> None:
    """What is needed is told."""
    with pytest.raises(TelemetryError, match="no file matches"):
        read([f"{tmp_path}/*.parquet"], None, None, parts=1)
    frame(host_rows(0)[:40], "GPU A").drop(columns=["power_w"]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(TelemetryError, match="columns missing: power_w"):
        read([f"{tmp_path}/*.parquet"], None, None, parts=1)
