"""A GPU that is lost, hangs or refuses leads to FAILSAFE with its name, and back to control by itself."""

from __future__ import annotations

import math
import time

from daemon_process import eventually
from fault_stage import FAILSAFE_BOUND_S, Stage

from kvwatt_sim.nvml.control import Fault

# The guard tries a failed reset again within 5 s, the longest of its growing pauses.
RESET_RETRY_BOUND_S = 8.0
# A call that misses its deadline (1 s), a reading that gets too old (2 s), a tick and a reset.
HANG_BOUND_S = 6.0


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
