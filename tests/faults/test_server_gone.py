"""A server that goes and comes back, at the same address, is never served blindly."""

from __future__ import annotations

import time

import httpx
from daemon_process import eventually
from fault_stage import CEILING_MHZ, FAILSAFE_BOUND_S, Stage

SERVER_TIMEOUT_S = 30.0


def test_a_killed_server_means_driver_default_until_it_is_back(stage: Stage) -> None:
    """A vanished server is told by name; its successor on the same port is taken up without a restart."""
    before = stage.moment()
    stage.server.kill()
    failed = stage.daemon.wait_for("failsafe")
    stage.default_within(FAILSAFE_BOUND_S, before.t_s)
    default_s = time.monotonic()
    assert failed["regime_reason"].startswith("telemetry: ")
    eventually(
        lambda: f"telemetry: unreachable: {stage.server.base_url}/metrics" in stage.said_since(before),
        stage.daemon.log,
    )
    assert "active -> failsafe" in stage.said_since(before)
    assert stage.daemon.metric("kvwatt_telemetry_errors_total", cause="unreachable") > 0
    assert stage.daemon.metric("kvwatt_regime", regime="failsafe") == 1.0
    stage.nothing_lowered(before, default_s)
    stage.server.start()
    eventually(lambda: "counters went back" in stage.said_since(before), stage.daemon.describe)
    stage.control()


def test_a_sleeping_engine_runs_at_driver_default(stage: Stage) -> None:
    """While the engine sleeps nothing is held and the decision says so; awake, control goes on."""
    before = stage.moment()
    _post(stage, "/sleep?level=1&mode=abort")
    stage.default_within(FAILSAFE_BOUND_S, before.t_s)
    default_s = time.monotonic()
    assert stage.daemon.decisions()[0]["reason"] == "driver default: the engine sleeps"
    time.sleep(1.0)
    stage.nothing_lowered(before, default_s)
    _post(stage, "/wake_up")
    stage.control()
    assert stage.held_mhz is not None and stage.held_mhz < CEILING_MHZ


def test_a_paused_engine_with_requests_inside_runs_at_driver_default(stage: Stage) -> None:
    """An engine that holds requests and counts no step is not in order, whatever its page says."""
    before = stage.moment()
    _post(stage, "/pause?mode=keep")
    failed = stage.daemon.wait_for("failsafe")
    assert "stands still" in failed["regime_reason"] and "requests inside" in failed["regime_reason"]
    stage.default_within(FAILSAFE_BOUND_S, before.t_s)
    stage.nothing_lowered(before, time.monotonic())
    _post(stage, "/resume")
    stage.control()


def _post(stage: Stage, path: str) -> None:
    httpx.post(stage.server.base_url + path, timeout=SERVER_TIMEOUT_S, trust_env=False).raise_for_status()
