"""Doctor as an operator runs it, over simulated GPUs, a simulated server and a real guard."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvwatt_sim import cards
from kvwatt_sim.nvml.build import build, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import Fault
from kvwatt_sim.nvml.spec import demo_uuid
from kvwatt_sim.server.launch import SimServer
from kvwattd.guard.spawn import spawn_guard

CONFIG = """
[daemon]
mode = "active"
state_dir = "{folder}"
[api]
port = 0
[guard]
socket = "{folder}/guard.sock"
[model]
path = "{folder}/model"
[slo.tbt]
limit_s = 0.1
[[instance]]
name = "chat"
url = "{url}"
gpus = ["0"]
"""
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server() -> Iterator[SimServer]:
    with SimServer(card="l20") as running:
        yield running


@pytest.fixture
def gpus(tmp_path: Path) -> Iterator[SimGpus]:
    with SimGpus.create(tmp_path / "gpus", [cards.load("l20").gpu_spec(demo_uuid(0))]) as made:
        yield made


def write_config(folder: Path, url: str) -> Path:
    path = folder / "kvwatt.toml"
    path.write_text(CONFIG.format(folder=folder, url=url))
    return path


def doctor(state: Path | None, *args: str) -> tuple[int, dict[tuple[str, str], str]]:
    """Exit code, and what was found by check and level."""
    libs = build()
    env = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    env |= env_for(libs, state) if state is not None else {}
    done = subprocess.run(
        [sys.executable, "-m", "kvwattd", "doctor", "--json", *args],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["ok"] == (done.returncode == 0)
    return done.returncode, {(f["check"], f["level"]): f["found"] for f in document["findings"]}


async def test_everything_in_place_but_the_model(server: SimServer, tmp_path: Path) -> None:
    """With GPU, server and guard in place only the model is missing, and that is a warning."""
    config = write_config(tmp_path, server.base_url)
    with set_environment(server.env()):
        guard = await spawn_guard(tmp_path / "guard.sock", tmp_path / "guard.json", [server.uuids[0]])
    try:
        code, found = doctor(server.state, "--config", str(config))
    finally:
        await guard.stop()
    assert code == 0, found
    assert "NVIDIA L20" in found["GPU 0", "ok"]
    assert "the guard at" in found["permission", "ok"]
    assert "1 GPU(s)" in found["guard", "ok"]
    assert server.base_url in found["vLLM chat", "ok"]
    assert "driver default" in found["model", "warning"]


@contextlib.contextmanager
def set_environment(values: dict[str, str]) -> Iterator[None]:
    """The guard is a child and takes its environment from us."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


def test_without_configuration_all_gpus_are_looked_at(gpus: SimGpus, tmp_path: Path) -> None:
    """Without a configuration doctor checks the machine alone."""
    code, found = doctor(tmp_path / "gpus")
    assert code == 0, found
    assert gpus.spec(0).uuid in found["GPU 0", "ok"]
    assert "not checked" in found["configuration", "note"]


def test_doctor_sets_nothing(gpus: SimGpus, server: SimServer, tmp_path: Path) -> None:
    """Not a single setter is called, whatever doctor wants to know."""
    doctor(tmp_path / "gpus", "--config", str(write_config(tmp_path, server.base_url)))
    assert gpus.setter_log() == []


def test_no_driver(tmp_path: Path) -> None:
    """On a machine without GPU and server each is told, and doctor ends with 1."""
    code, found = doctor(None, "--config", str(write_config(tmp_path, NOWHERE)))
    assert code == 1
    assert "unreachable" in found["vLLM chat", "problem"]
    assert "guard.sock" in found["guard", "problem"]
    if ("driver", "ok") not in found:
        assert "NVML" in found["driver", "problem"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("*", error="GPU_IS_LOST"), "lost"),
        (Fault("nvmlDeviceGetClockInfo", error="GPU_IS_LOST"), "lost"),
        (Fault("nvmlDeviceGetClockInfo", hang_s=float("inf")), "did not answer"),
    ],
    ids=["lost", "lost while reading", "hangs while reading"],
)
def test_broken_gpu_is_a_finding_and_no_crash(gpus: SimGpus, tmp_path: Path, fault: Fault, told: str) -> None:
    """A GPU that is lost or hangs is a problem that doctor tells and outlives."""
    gpus.inject(0, fault)
    code, found = doctor(tmp_path / "gpus")
    gpus.clear_faults(0)
    assert code == 1
    assert told in found["GPU 0", "problem"]


def test_bad_configuration_is_told_key_by_key(gpus: SimGpus, tmp_path: Path) -> None:
    """A refused configuration is a problem; the machine is checked all the same."""
    path = tmp_path / "bad.toml"
    path.write_text("[daemon]\ntick_s = -1\n")
    code, found = doctor(tmp_path / "gpus", "--config", str(path))
    assert code == 1
    assert "instance" in found["configuration", "problem"]
    assert ("GPU 0", "ok") in found


def test_port_of_somebody_else_is_a_problem(gpus: SimGpus, tmp_path: Path) -> None:
    """A port that another program holds is told with its address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = write_config(tmp_path, NOWHERE)
        path.write_text(path.read_text().replace("port = 0", f"port = {port}"))
        _, found = doctor(tmp_path / "gpus", "--config", str(path))
    assert f"127.0.0.1:{port}" in found["port", "problem"]
