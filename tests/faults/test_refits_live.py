"""The whole way of a refit: samples, a worker, a version that serves, damage, and back over REST."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon_process import DaemonProcess, eventually
from fault_stage import daemon_for

from kvwatt import artifact
from kvwatt.profiles import table_of
from kvwatt.refit import columns_of, expected_itl_s
from kvwatt.samples import Sample, sample_values
from kvwatt_sim import cards
from kvwatt_sim.server.launch import SimServer
from kvwatt_sim.virtual_profile import virtual_profile

MODEL = "/api/v1/instances/sim/model"
SLOWER = 1.15


@pytest.fixture(scope="module")
def shipped(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's model with the profile it was fitted to."""
    folder = tmp_path_factory.mktemp("shipped")
    artifact.save(artifact.load(model), folder, table_of(virtual_profile(cards.load("l20", 1), seed=0)))
    return folder


def slow_gpu_samples(shipped: Path) -> list[Sample]:
    """What serving looks like on a GPU that takes 15 % longer than its model says."""
    model, draw = artifact.load(shipped), np.random.default_rng(1)
    clocks = [c for c in cards.load("l20", 1).supported_mhz if 900 <= c <= 2400][::20]
    samples = []
    for number in range(1, 241):
        batch = float(draw.uniform(2, 60))
        sample = Sample(number, float(draw.choice(clocks)), batch, batch * 700, 256, 0.0, 1.0, math.nan)
        expected_s = float(expected_itl_s(model, columns_of([sample]))[0])
        samples.append(replace(sample, itl_s=expected_s * SLOWER * math.exp(draw.normal(0, 0.02))))
    return samples


@pytest.fixture
def daemon(
    server: SimServer, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DaemonProcess]:
    """A daemon that refits every second and remembers a slow GPU."""
    monkeypatch.setenv("KVWATT_MODEL__REFIT_S", "1")
    daemon = daemon_for(server, tmp_path, shipped, "shadow")
    try:
        daemon.start()
        served = daemon.wait_for("shadow")["model_name"]
        assert daemon.stop() == 0
        memory = tmp_path / "state" / "models" / "sim" / "samples.json"
        memory.parent.mkdir(parents=True, exist_ok=True)
        values = [sample_values(sample) for sample in slow_gpu_samples(shipped)]
        memory.write_text(json.dumps({"served": served, "samples": values}))
        daemon.start()
        yield daemon
    finally:
        daemon.close()


def test_a_refit_serves_until_it_is_damaged_or_rolled_back(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Version 1 wins and is taken up; damaged it no longer serves; rolled back, refits are held."""

    def versions() -> dict[str, Any]:
        found: dict[str, Any] = daemon.get(f"{MODEL}/versions").raise_for_status().json()
        return found

    eventually(lambda: daemon.metric("kvwatt_model_version") >= 1.0, daemon.describe)
    listed = versions()
    first = next(v for v in listed["versions"] if v["version"] == 1)
    assert first["state"] == "sound" and first["parent"] == 0
    assert first["challenger_error_ratio"] < 0.5 * first["champion_error_ratio"]
    assert daemon.metric("kvwatt_model_refits_total", outcome="promoted") >= 1.0
    assert "refit promoted: version 1 serves" in daemon.log()

    assert daemon.put(f"{MODEL}/rollback", {"version": 1}, token=None).status_code == 401
    back = daemon.put(f"{MODEL}/rollback", {"version": 1, "hold": True})
    assert back.status_code == 200 and (back.json()["serving"], back.json()["held"]) == (1, True)
    assert f'"action":"PUT {MODEL}/rollback","outcome":"done"' in daemon.log()

    trees = tmp_path / "state" / "models" / "sim" / "versions" / "1" / "model.step.txt"
    whole = trees.read_bytes()
    trees.write_bytes(whole[: len(whole) // 2])
    eventually(lambda: daemon.metric("kvwatt_model_version") == 0.0, daemon.describe)
    damaged = next(v for v in versions()["versions"] if v["version"] == 1)
    assert damaged["state"] == "damaged" and "model.step.txt" in damaged["detail"]
    refused = daemon.put(f"{MODEL}/rollback", {"version": 1})
    assert refused.status_code == 409 and "one of 0" in refused.json()["accepted"]
    assert daemon.instance()["regime"] == "shadow"

    assert daemon.put(f"{MODEL}/rollback", {"version": 0}).json()["serving"] == 0
    eventually(lambda: "held since a rollback" in versions()["refit"]["reason"], daemon.describe)
    assert versions()["serving"] == 0
