"""The unchanged daemon beside real vLLM: it saves with slack, yields to load, and fails safe.

vLLM runs on the CPU at the pace of a simulated L20 (`slowed_worker`), so the loop is closed: a lower clock
makes its tokens slower and its energy smaller. The daemon sees the GPU only through NVML, and vLLM only
through its metrics page.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from kvwatt_daemon import (
    LEASE_S,
    QUANTILE,
    TBT_LIMIT_S,
    TTFT_LIMIT_S,
    DaemonProcess,
    daemon,
    wait_until,
)
from load_phases import Background, ClockLog, Phase, requests, serve
from plant_model import free_port, train_model
from vllm_server import CARD, VllmServer, make_model, running, vllm_python

from kvwatt_sim.cards import load
from kvwatt_sim.loadgen import RequestRecord
from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.nvml.control import SimGpus

pytestmark = pytest.mark.vllm

GPU = "GPU-5f1c2b7e-0000-4000-8000-000000000020"
LOW, HIGH = Phase(0.3, 40.0), Phase(2.0, 40.0)
LOOK_S = 15.0  # of the end of each phase: by then the phase before has drained and lengths are known
HOLD_S = 2.0  # a clock held this long is no passing decision


@dataclass(frozen=True)
class Plant:
    """Real vLLM on a simulated GPU, and a model of the two."""

    server: VllmServer
    gpus: SimGpus
    model: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """vLLM, started once for all tests here."""
    folder = tmp_path_factory.mktemp("plant")
    python = vllm_python()
    state = folder / "gpus.state"
    with SimGpus.create(state, [load(CARD).gpu_spec(GPU)]) as gpus:
        server = VllmServer(
            python, make_model(python, folder / "tiny"), state, free_port(), folder / "vllm.log"
        )
        environment = os.environ | env_for(build(), state)
        with running(server):
            yield Plant(server, gpus, train_model(folder / "model"), environment)


@pytest.fixture
def beside(plant: Plant, tmp_path: Path) -> Iterator[DaemonProcess]:
    """A daemon of its own for each test."""
    with daemon(tmp_path / "kvwatt", plant.server.url, GPU, plant.model, plant.environment) as started:
        yield started


def test_clocks_follow_the_load_and_promises_hold(plant: Plant, beside: DaemonProcess) -> None:
    """Clocks are low with slack, higher under load and low again, and TTFT and mean TBT hold throughout."""
    assert beside.wait_for("active")["telemetry"]["layout"] == "v0.20"
    phases = (LOW, HIGH, LOW)
    with ClockLog(plant.gpus) as clocks:
        start_s = time.monotonic()
        records = serve(plant.server.url, requests(phases, seed=1), seed=1)
    ends_s = [start_s + sum(phase.duration_s for phase in phases[: i + 1]) for i in range(3)]
    medians_mhz = [clocks.median_mhz(end_s - LOOK_S, end_s) for end_s in ends_s]
    ttft_s, tbt_s = latencies(records)
    print(f"clocks {medians_mhz} MHz; worst TTFT {ttft_s[-5:]} s, TBT {tbt_s[-5:]} s of {len(records)}")
    boost_mhz = plant.gpus.spec(0).boost_mhz
    assert max(medians_mhz[0], medians_mhz[2]) < medians_mhz[1] <= boost_mhz
    assert max(medians_mhz[0], medians_mhz[2]) < 0.75 * boost_mhz
    assert len(records) > 60
    assert {record.error for record in records} == {None}
    assert all(record.tokens == record.output_tokens for record in records)
    assert kept(ttft_s, TTFT_LIMIT_S) >= QUANTILE
    assert kept(tbt_s, TBT_LIMIT_S) >= QUANTILE


def latencies(records: Sequence[RequestRecord]) -> tuple[list[float], list[float]]:
    """What the clients saw, ascending: time to first token, and mean time between tokens per request."""
    ttft_s, tbt_s = [], []
    for record in records:
        assert record.first_token_s is not None and record.last_token_s is not None, record
        ttft_s.append(record.first_token_s - record.due_s)
        if record.tokens > 1:
            tbt_s.append((record.last_token_s - record.first_token_s) / (record.tokens - 1))
    return sorted(ttft_s), sorted(tbt_s)


def kept(values_s: Sequence[float], limit_s: float) -> float:
    """Share of values within the limit."""
    return sum(value <= limit_s for value in values_s) / len(values_s)


def wait_for_control(plant: Plant, beside: DaemonProcess) -> None:
    """Wait until a clock has been locked without a break for HOLD_S."""
    free_s = time.monotonic()

    def held() -> bool:
        nonlocal free_s
        if plant.gpus.lock_mhz(0) is None:
            free_s = time.monotonic()
        return time.monotonic() - free_s > HOLD_S

    wait_until(held, 60.0, beside.describe)


def test_a_killed_daemon_leaves_default_clocks_within_the_lease(plant: Plant, beside: DaemonProcess) -> None:
    """After kill -9 under load the guard restores the driver's default before the lease is over."""
    with Background(plant.server.url, requests((Phase(0.5, 120.0),), seed=7), seed=7):
        wait_for_control(plant, beside)
        killed_s = plant.gpus.now_s()
        beside.process.send_signal(signal.SIGKILL)
        wait_until(lambda: plant.gpus.lock_mhz(0) is None, 30.0, lambda: "the clock stays locked")
    resets = [c for c in plant.gpus.setter_log() if c.t_s >= killed_s and "Reset" in c.call]
    assert resets
    assert resets[0].result == "SUCCESS"
    assert resets[0].t_s - killed_s <= LEASE_S


def test_stopping_vllm_is_failsafe_until_it_is_back(plant: Plant, beside: DaemonProcess) -> None:
    """A vanished vLLM means FAILSAFE at default clocks; when it is back the same daemon resumes control."""
    load_requests = requests((Phase(0.5, 300.0),), seed=11)
    with Background(plant.server.url, load_requests, seed=11):
        wait_for_control(plant, beside)
    plant.server.stop()
    failed = beside.wait_for("failsafe")
    assert failed["telemetry"]["errors_total"].get("unreachable", 0) > 0
    wait_until(lambda: plant.gpus.lock_mhz(0) is None, 30.0, beside.describe)
    plant.server.start()
    beside.wait_for("active")
    with Background(plant.server.url, load_requests, seed=12):
        wait_for_control(plant, beside)
    assert beside.process.poll() is None
