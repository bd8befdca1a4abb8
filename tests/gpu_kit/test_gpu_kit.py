"""The hardware kit (bench/gpu) on simulated GPUs: a check sets nothing, a sweep gives back what it set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvwatt.profiles import parse_csv
from kvwatt_sim.cards.load import load_file
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.server.launch import SimServer

KIT = Path(__file__).resolve().parents[2] / "bench" / "gpu"
LOADS = ["--batches", "1", "--contexts", "64", "--prompts", "128", "--like", "l20"]
QUICK = [*LOADS, "--window", "0.3", "--watch", "0.4"]
CAREFUL = ["--i-own-this-gpu", "--spawn-guard", "--clocks", "2", "--min-mhz", "1200"]


@pytest.fixture(scope="module")
def server() -> Iterator[SimServer]:
    with SimServer(card="l20", max_num_seqs=8, max_num_batched_tokens=512) as running:
        yield running


def start(server: SimServer, command: str, out: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [
        str(KIT / f"{command}.py"),
        "--out",
        str(out),
        "--url",
        server.base_url,
        *QUICK,
        *more,
    ]
    return subprocess.Popen(
        [sys.executable, "-u", *arguments],
        env={**os.environ, **server.env()},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def setters(server: SimServer) -> list[str]:
    """Every setter called so far; no clock may be locked."""
    with SimGpus.open(server.state) as gpus:
        assert gpus.lock_mhz(0) is None
        return [call.call for call in gpus.setter_log()]


def test_the_check_sets_nothing_and_measures_what_the_gpu_is(server: SimServer, tmp_path: Path) -> None:
    """No setter is called; period and limits are the simulated GPU's own; the files can be read."""
    before = setters(server)
    told, _ = start(server, "check", tmp_path).communicate(timeout=180)
    assert setters(server) == before, told
    document = json.loads((tmp_path / "readings.json").read_text())
    counter = document["movements"][0]
    assert counter["period_ms"] == pytest.approx(50.0, rel=0.2) and counter["step"] > 0
    assert {cost["error"] for cost in document["costs"]} == {None}
    rows = parse_csv((tmp_path / "profile.csv").read_text())
    assert [row.kind for row in rows] == ["decode", "prefill"]
    card = load_file(tmp_path / "card.toml")
    assert (card.gpu_name, card.power_cap_w, card.num_blocks) == ("NVIDIA L20", 275.0, 28990)
    assert card.energy_update_s == pytest.approx(0.05, rel=0.2)
    assert card.provenance["power.idle_w"].how == "assumed"  # one clock tells no law
    assert card.provenance["gpu.power_cap_w"].how == "measured"


def test_the_sweep_gives_back_what_it_set(server: SimServer, tmp_path: Path) -> None:
    """Points at both clocks, a switch time, and driver default at the end."""
    before = len(setters(server))
    told, _ = start(server, "sweep", tmp_path, *CAREFUL, "--yes").communicate(timeout=180)
    calls = setters(server)[before:]
    assert "nvmlDeviceSetGpuLockedClocks" in calls, told
    rows = parse_csv((tmp_path / "profile.csv").read_text())
    assert {row.clock_mhz for row in rows} == {1200, 2520}
    assert load_file(tmp_path / "card.toml").provenance["gpu.switch_latency_s"].how == "measured"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_ended_leaves_driver_default(
    server: SimServer, tmp_path: Path, number: signal.Signals
) -> None:
    """However it ends: itself, or by the guard that outlives it."""
    process = start(server, "sweep", tmp_path, *CAREFUL, "--yes", "--window", "20", "--watch", "0.1")
    assert process.stdout is not None
    told: list[str] = []
    while not told or "MHz:" not in told[-1]:
        told.append(process.stdout.readline())
        assert told[-1], "".join(told)
    process.send_signal(number)
    process.communicate(timeout=180)
    with SimGpus.open(server.state) as gpus:
        until_s = time.monotonic() + 90.0
        while gpus.lock_mhz(0) is not None and time.monotonic() < until_s:
            time.sleep(0.02)
    setters(server)


def test_a_sweep_needs_the_owners_word(server: SimServer, tmp_path: Path) -> None:
    """Without the flag, or without a yes, nothing is touched."""
    before = setters(server)
    process = start(server, "sweep", tmp_path)
    assert "--i-own-this-gpu" in process.communicate(timeout=180)[0] and process.returncode == 2
    process = start(server, "sweep", tmp_path, *CAREFUL)
    assert process.communicate("no\n", timeout=180) and process.returncode == 2
    assert setters(server) == before


def test_without_server_and_torch_the_readings_stand_alone(server: SimServer, tmp_path: Path) -> None:
    """A machine with neither still tells what its driver says."""
    arguments = [str(KIT / "check.py"), "--out", str(tmp_path), "--watch", "0.2", "--device", "cpu"]
    blocked = {**os.environ, **server.env(), "PYTHONPATH": str(tmp_path)}
    (tmp_path / "torch.py").write_text("raise ImportError('not here')\n")
    done = subprocess.run(
        [sys.executable, *arguments], env=blocked, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "no steps measured" in done.stdout and (tmp_path / "readings.json").exists()
