"""The GPU and its driver."""

from __future__ import annotations

import math
import subprocess
import sys
import time

from daemon_process import eventually
from fault_stage import CEILING_MHZ, FLOOR_MHZ, Stage
from scenario import Do, Scenario, becomes, grows
from scenarios_process import FAULT_S

from kvwatt_sim.nvml.said import Fault

OVERRIDE = "/api/v1/instances/sim/override"
SET = "nvmlDeviceSetGpuLockedClocks"
# A call that misses its deadline (1 s), a reading that gets too old (2 s), a tick and a reset.
HANG_S = 4.5
# The guard tries a failed reset again within 5 s, the longest of its growing pauses.
RESET_RETRY_S = 6.0
# A switch is given a second, then three readings of a quarter of a second each must say the same.
WATCHED_S = 3.5
BY_HAND_MHZ = 1800


def inject(fault: Fault) -> Do:
    return lambda stage: stage.gpus.inject(0, fault)


def clear(stage: Stage) -> None:
    stage.gpus.clear_faults(0)


def lost_and_back(stage: Stage) -> float:
    """Nothing can be written to a lost GPU: the time counts from its return."""
    stage.gpus.inject(0, Fault("nvmlDevice*", error="GPU_IS_LOST"))
    stage.daemon.wait_for("failsafe")
    lost_s = time.monotonic()
    time.sleep(2.0)
    assert not [call for call in stage.sets_since(lost_s) if call.result == "SUCCESS"]
    clear(stage)
    return time.monotonic()


def without_permission(stage: Stage) -> float:
    """Setting is forbidden while nothing is set, so that there is nothing to be undone."""
    stage.server.misbehave("500")
    stage.daemon.wait_for("failsafe")
    eventually(lambda: stage.held_mhz is None, stage.daemon.describe)
    stage.gpus.set_permission("deny")
    stage.server.misbehave("ok")
    denied_s = time.monotonic()
    eventually(lambda: "CAP_SYS_ADMIN" in stage.daemon.instance()["regime_reason"], stage.daemon.describe)
    assert {call.result for call in stage.sets_since(denied_s)} == {"NO_PERMISSION"}
    return time.monotonic()


def permitted(stage: Stage) -> None:
    stage.gpus.set_permission("allow")


def disobeying(obedience: str) -> Do:
    """The driver answers success to the next clock, and runs at another."""

    def disobey(stage: Stage) -> float:
        stage.gpus.inject(0, Fault(SET, obedience=obedience))  # type: ignore[arg-type]
        asked_s = stage.gpus.now_s()
        assert stage.daemon.put(OVERRIDE, {"clock_mhz": BY_HAND_MHZ, "duration_s": 300}).status_code == 200
        eventually(lambda: bool(stage.sets_since(asked_s)), stage.daemon.describe)
        return time.monotonic()

    return disobey


def setter_hangs(stage: Stage) -> float:
    """The next clock hangs in the driver; it must not stay locked behind the guard's back."""
    stage.gpus.inject(0, Fault(SET, hang_s=math.inf))
    asked_s = time.monotonic()
    assert stage.daemon.put(OVERRIDE, {"clock_mhz": BY_HAND_MHZ, "duration_s": 300}).status_code == 200
    return asked_s


def given_back(stage: Stage) -> None:
    clear(stage)
    assert stage.daemon.delete(OVERRIDE).status_code == 204


def by_hand(mhz: int) -> Do:
    """A clock by hand, so that the driver has something to hold back."""

    def override(stage: Stage) -> None:
        stage.control()
        assert stage.daemon.put(OVERRIDE, {"clock_mhz": mhz, "duration_s": 300}).status_code == 200
        eventually(lambda: stage.held_mhz == mhz, stage.daemon.describe)

    return override


def trusted_again(stage: Stage) -> None:
    """The driver obeys, and the operator ends the guard's hold-off."""
    clear(stage)
    assert stage.daemon.delete(OVERRIDE).status_code == 204
    resume(stage)


def resume(stage: Stage) -> None:
    command = [sys.executable, "-m", "kvwattd.guard", "--resume", "--gpu", stage.gpus.spec(0).uuid]
    folder = stage.daemon.folder
    command += ["--socket", str(folder / "guard.sock"), "--state-file", str(folder / "state" / "none.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=180)


def hot(stage: Stage) -> None:
    """Hot enough for the driver to slow the GPU down, at a clock that is above what it allows."""
    stage.gpus.set_temperature(0, stage.gpus.spec(0).slowdown_c + 3)


def cool(stage: Stage) -> None:
    stage.gpus.set_temperature(0, None)
    assert stage.daemon.delete(OVERRIDE).status_code == 204


def capped(stage: Stage) -> None:
    stage.gpus.set_power_cap_w(0, stage.gpus.spec(0).min_cap_w)


def uncapped(stage: Stage) -> None:
    stage.gpus.set_power_cap_w(0, stage.gpus.spec(0).default_cap_w)
    assert stage.daemon.delete(OVERRIDE).status_code == 204


def reloaded(stage: Stage) -> None:
    stage.gpus.reload_driver(0)


def foreign_clock(stage: Stage) -> None:
    """Another program locks the GPU while it is ours."""
    stage.gpus.request_lock(0, (FLOOR_MHZ, FLOOR_MHZ + 600))


def foreign_gone(stage: Stage) -> None:
    stage.gpus.request_lock(0, None)
    resume(stage)


failsafe = becomes(1.0, "kvwatt_regime", regime="failsafe")

SCENARIOS = (
    Scenario(
        "GPU lost, from its return",
        lost_and_back,
        RESET_RETRY_S,
        grows("kvwatt_guard_errors_total"),
        "GPU is lost",
        stays=False,
    ),
    Scenario(
        "NVML without permission",
        without_permission,
        FAULT_S,
        grows("kvwatt_guard_errors_total"),
        "Insufficient Permissions",
        permitted,
    ),
    Scenario(
        "NVML reads hang",
        inject(Fault("nvmlDeviceGetUtilizationRates", hang_s=math.inf)),
        HANG_S,
        failsafe,
        "active -> failsafe: GPU",
        clear,
    ),
    Scenario(
        "NVML slow",
        inject(Fault("nvmlDevice*", slow_s=0.03)),
        None,
        becomes(1.0, "kvwatt_gpu_clock_held"),
        "",
        clear,
    ),
    Scenario(
        "NVML setter hangs",
        setter_hangs,
        HANG_S,
        grows("kvwatt_guard_errors_total"),
        "did not answer within",
        given_back,
    ),
    Scenario(
        "wrong clock accepted",
        disobeying("wrong"),
        WATCHED_S,
        failsafe,
        "clock not obeyed",
        trusted_again,
        quick=False,
    ),
    Scenario(
        "clock not obeyed",
        disobeying("ignore"),
        WATCHED_S,
        failsafe,
        "clock not obeyed",
        trusted_again,
    ),
    Scenario(
        "thermal slowdown",
        hot,
        None,
        becomes(1.0, "kvwatt_gpu_clock_event", reason="sw_thermal"),
        "held back by: sw_thermal",
        cool,
        prepare=by_hand(CEILING_MHZ - 15),
    ),
    Scenario(
        "power cap",
        capped,
        None,
        becomes(1.0, "kvwatt_gpu_clock_event", reason="power_cap"),
        "held back by: power_cap",
        uncapped,
        prepare=by_hand(CEILING_MHZ - 15),
    ),
    Scenario(
        "driver reloaded",
        reloaded,
        FAULT_S,
        failsafe,
        "the driver was reloaded",
        stays=False,
    ),
)
