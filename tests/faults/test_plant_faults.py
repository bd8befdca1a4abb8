"""A server that goes and comes back, a GPU that is lost, hangs or refuses: never served blindly."""

from __future__ import annotations

import math
import time

import httpx
from daemon_process import eventually
from fault_stage import CEILING_MHZ, FAILSAFE_BOUND_S, Stage

from kvwatt_sim.nvml.control import Fault

SERVER_TIMEOUT_S = 30.0
# The guard tries a failed reset again within 5 s, the longest of its growing pauses.
RESET_RETRY_BOUND_S = 8.0
# A call that misses its deadline (1 s), a reading that gets too old (2 s), a tick and a reset.
HANG_BOUND_S = 6.0


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


def test_a_lost_gpu_means_failsafe_and_driver_default_as_soon_as_it_is_back(stage: Stage) -> None:
    """Nothing can be written to a lost GPU; when it is back the guard's reset lands, then control returns."""
    before = stage.moment()
    uuid = stage.gpus.spec(0).uuid
    stage.gpus.inject(0, Fault("nvmlDevice*", error="GPU_IS_LOST"))
    failed = stage.daemon.wait_for("failsafe")
    assert failed["regime_reason"].startswith("GPU: ") and uuid in failed["regime_reason"]
    assert "lost" in failed["regime_reason"].lower()
    failing_s = time.monotonic()
    time.sleep(2.5)  # longer than the daemon's and the guard's own retries: none may succeed or lower
    assert stage.daemon.instance()["regime"] == "failsafe"
    assert not [call for call in stage.sets_since(failing_s) if call.result == "SUCCESS"]
    assert stage.daemon.metric("kvwatt_regime", regime="failsafe") == 1.0
    assert stage.daemon.metric("kvwatt_gpu_clock_held") == 0.0
    stage.gpus.clear_faults(0)
    back_s = time.monotonic()
    eventually(lambda: bool(stage.resets_since(back_s)) or stage.held_mhz is None, stage.daemon.describe)
    assert time.monotonic() - back_s <= RESET_RETRY_BOUND_S
    assert "active -> failsafe: GPU: " in stage.said_since(before)
    stage.control()


def test_gpu_readings_that_hang_mean_driver_default(stage: Stage) -> None:
    """A hung read neither stops the ticks nor leaves a clock behind; when it returns, control does too."""
    before, status = stage.moment(), stage.daemon.status()
    stage.gpus.inject(0, Fault("nvmlDeviceGetUtilizationRates", hang_s=math.inf))
    failed = stage.daemon.wait_for("failsafe")
    stage.default_within(HANG_BOUND_S, before.t_s)
    default_s = time.monotonic()
    assert failed["regime_reason"].startswith("GPU")
    eventually(
        lambda: "did not answer within" in stage.daemon.instance()["regime_reason"], stage.daemon.describe
    )
    assert stage.daemon.status()["ticks_total"] > status["ticks_total"]
    time.sleep(1.0)
    stage.nothing_lowered(before, default_s)
    assert "active -> failsafe: GPU" in stage.said_since(before)
    stage.gpus.clear_faults(0)
    stage.control()


def test_without_permission_no_clock_is_ever_set_and_the_message_says_what_to_do(stage: Stage) -> None:
    """A guard that may not set clocks means FAILSAFE, driver default and a hint at root or CAP_SYS_ADMIN."""
    stage.server.misbehave("500")
    stage.daemon.wait_for("failsafe")
    stage.default_within(FAILSAFE_BOUND_S, time.monotonic())
    before = stage.moment()
    errors = stage.daemon.metric("kvwatt_guard_errors_total")
    stage.gpus.set_permission("deny")
    stage.server.misbehave("ok")
    eventually(lambda: "CAP_SYS_ADMIN" in stage.daemon.instance()["regime_reason"], stage.daemon.describe)
    assert stage.daemon.instance()["regime"] == "failsafe"
    assert "Insufficient Permissions" in stage.daemon.instance()["regime_reason"]
    assert "Insufficient Permissions" in stage.said_since(before)
    assert stage.daemon.metric("kvwatt_guard_errors_total") > errors
    assert stage.held_mhz is None
    tried = stage.sets_since(before.t_s)
    assert tried and {call.result for call in tried} == {"NO_PERMISSION"}
    stage.gpus.set_permission("allow")
    stage.control()


def _post(stage: Stage, path: str) -> None:
    httpx.post(stage.server.base_url + path, timeout=SERVER_TIMEOUT_S, trust_env=False).raise_for_status()
