"""Permissions, injected faults, the setter log, and processes that die at the worst moment."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvwatt_sim.nvml.build import NvmlLibs, env_for
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import Fault

Nvml = Callable[[str], Any]
STANDS_S = 3.0  # a look that takes so long is not merely slow
LOCK = "answer(n.nvmlDeviceSetGpuLockedClocks, h, 210, 1200)"


@contextmanager
def child(code: str, libs: NvmlLibs, gpus: SimGpus) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is certainly gone afterwards."""
    environment = {**os.environ, **env_for(libs, gpus.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def eventually(condition: Callable[[], bool], within_s: float = 90.0) -> bool:
    end_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.01)
    return condition()


def look(gpus: SimGpus) -> threading.Event:
    """Reads the GPU in a thread; the event tells that it came back."""
    answered = threading.Event()
    threading.Thread(target=lambda: (gpus.read(0), answered.set()), daemon=True).start()
    return answered


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    ("permission", "answer"),
    [
        ("allow", None),
        ("deny", "NVMLError_NoPermission"),
        ("root", None if os.geteuid() == 0 else "NVMLError_NoPermission"),
    ],
)
def test_permission_modes(gpus: SimGpus, nvml: Nvml, permission: Any, answer: str | None) -> None:
    """Setters answer by the mode; getters always work."""
    gpus.set_permission(permission)
    found = nvml(f"""
        result = [{LOCK}, answer(n.nvmlDeviceResetGpuLockedClocks, h),
                  answer(n.nvmlDeviceSetPowerManagementLimit, h, 150000), n.nvmlDeviceGetClockInfo(h, 1)]
    """)
    assert found == [answer, answer, answer, 210]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_only_means_the_callers_user(live_gpus: SimGpus, nvml: Nvml) -> None:
    """The same call that root may make is refused to another user."""
    live_gpus.set_permission("root")
    found = nvml(f"""
        import os
        first = {LOCK}
        os.seteuid(65534)
        result = [first, {LOCK}]
    """)
    assert found == [None, "NVMLError_NoPermission"]


def test_power_limit_is_set_within_its_constraints(gpus: SimGpus, nvml: Nvml) -> None:
    """A limit outside the constraints is an invalid argument; one inside is read back."""
    found = nvml("""
        refused = [answer(n.nvmlDeviceSetPowerManagementLimit, h, mw) for mw in (99_999, 275_001)]
        n.nvmlDeviceSetPowerManagementLimit(h, 150_000)
        default = n.nvmlDeviceGetPowerManagementDefaultLimit(h)
        result = [*refused, n.nvmlDeviceGetPowerManagementLimit(h), default]
    """)
    assert found == ["NVMLError_InvalidArgument"] * 2 + [150_000, 275_000]


def test_every_setter_is_logged_with_its_caller(gpus: SimGpus, nvml: Nvml) -> None:
    """Accepted, refused and unsimulated setters are in the log, with process, arguments and result."""
    pid = nvml(f"""
        import os
        {LOCK}
        answer(n.nvmlDeviceSetGpuLockedClocks, h, 211, 1200)
        answer(n.nvmlDeviceResetGpuLockedClocks, n.nvmlDeviceGetHandleByIndex(1))
        answer(n.nvmlDeviceSetApplicationsClocks, h, 9001, 1200)
        n.nvmlDeviceGetPowerUsage(h)
        result = os.getpid()
    """)
    calls = gpus.setter_log()
    assert [(call.gpu, call.call, call.args, call.result) for call in calls] == [
        (0, "nvmlDeviceSetGpuLockedClocks", "210,1200", "SUCCESS"),
        (0, "nvmlDeviceSetGpuLockedClocks", "211,1200", "INVALID_ARGUMENT"),
        (1, "nvmlDeviceResetGpuLockedClocks", "", "SUCCESS"),
        (0, "nvmlDeviceSetApplicationsClocks", "", "NOT_SUPPORTED"),
    ]
    assert {call.pid for call in calls} == {pid}
    assert all("python" in call.comm for call in calls)


def test_the_log_keeps_the_latest(gpus: SimGpus, nvml: Nvml) -> None:
    """After more setters than the log holds, the last ones are there, in order."""
    nvml("""
        for mhz in range(1100):
            answer(n.nvmlDeviceSetGpuLockedClocks, h, 0, mhz)
        result = None
    """)
    assert [call.args for call in gpus.setter_log()] == [f"0,{mhz}" for mhz in range(76, 1100)]


def test_a_lost_gpu_answers_nothing_until_it_is_back(gpus: SimGpus, nvml: Nvml) -> None:
    """Loss hits every call on that GPU, new handles included, and no other GPU."""
    gpus.inject(1, Fault("*", error="GPU_IS_LOST"))
    ask = f"""
        uuid = {gpus.spec(1).uuid!r}
        result = [answer(n.nvmlDeviceGetHandleByIndex, 1), answer(n.nvmlDeviceGetHandleByUUID, uuid)]
        result = [value if isinstance(value, str) else "handle" for value in result]
        result.append(n.nvmlDeviceGetPowerUsage(h) > 0)
    """
    lost = nvml(ask)
    gpus.clear_faults(1)
    assert lost == ["NVMLError_GpuIsLost", "NVMLError_GpuIsLost", True]
    assert nvml(ask) == ["handle", "handle", True]


def test_faults_can_be_counted_and_named(gpus: SimGpus, nvml: Nvml) -> None:
    """A fault meets its own call, with or without version suffix or by prefix, as often as it says."""
    gpus.inject(0, Fault("nvmlDeviceGetPowerUsage", error="NOT_SUPPORTED", count=2))
    gpus.inject(0, Fault("nvmlDeviceGetComputeRunningProcesses", error="UNKNOWN"))
    gpus.inject(0, Fault("nvmlDeviceGetTemperature*", error="NO_DATA"))
    found = nvml("""
        result = {
            "power": [answer(n.nvmlDeviceGetPowerUsage, h) for _ in range(3)][:2],
            "power_after": answer(n.nvmlDeviceGetPowerUsage, h) > 0,
            "processes": answer(n.nvmlDeviceGetComputeRunningProcesses, h),
            "temperature": answer(n.nvmlDeviceGetTemperatureV, h, 0),
            "clock": answer(n.nvmlDeviceGetClockInfo, h, 1),
        }
    """)
    assert found == {
        "power": ["NVMLError_NotSupported"] * 2,
        "power_after": True,
        "processes": "NVMLError_Unknown",
        "temperature": "NVMLError_NoData",
        "clock": 210,
    }


@pytest.mark.parametrize(("obedience", "clock_mhz"), [("ignore", 2520), ("wrong", 705), ("obey", 1200)])
def test_a_setter_can_lie(gpus: SimGpus, nvml: Nvml, obedience: Any, clock_mhz: int) -> None:
    """Success does not mean obeyed: the clock stays, or goes somewhere else."""
    gpus.publish(0, 0.3, 0.3)
    gpus.inject(0, Fault("nvmlDeviceSetGpuLockedClocks", obedience=obedience))
    assert nvml(f"result = {LOCK}") is None
    gpus.advance(1.0)
    assert gpus.clock_mhz(0) == clock_mhz
    assert gpus.setter_log()[-1].result == "SUCCESS"


def test_a_hang_holds_only_its_caller(live_gpus: SimGpus, libs: NvmlLibs, nvml: Nvml) -> None:
    """While one process hangs in a call, others use the same GPU; clearing the fault sets it free."""
    live_gpus.inject(0, Fault("nvmlDeviceGetPowerUsage", error="TIMEOUT", hang_s=math.inf))
    code = """if True:
        import pynvml as n
        n.nvmlInit()
        h = n.nvmlDeviceGetHandleByIndex(0)
        print("asking", flush=True)
        try:
            n.nvmlDeviceGetPowerUsage(h)
        except n.NVMLError as error:
            print(type(error).__name__, flush=True)
    """
    with child(code, libs, live_gpus) as process:
        assert line_of(process) == "asking"
        assert nvml(f"result = {LOCK}") is None
        assert eventually(lambda: live_gpus.lock_mhz(0) == (210, 1200))
        assert process.poll() is None
        live_gpus.clear_faults(0)
        assert line_of(process) == "NVMLError_Timeout"


def test_a_slow_call_still_answers(gpus: SimGpus, nvml: Nvml) -> None:
    """A slow call takes at least its time and then gives the value."""
    gpus.inject(0, Fault("nvmlDeviceGetClockInfo", slow_s=0.2))
    took_s, clock_mhz = nvml("""
        start = time.monotonic()
        clock = n.nvmlDeviceGetClockInfo(h, 1)
        result = [time.monotonic() - start, clock]
    """)
    assert took_s >= 0.2
    assert clock_mhz == 210


def test_a_driver_that_does_not_come_up(gpus: SimGpus, nvml: Nvml) -> None:
    """Initialisation and the device count meet faults injected by name, as often as they say."""
    gpus.inject(0, Fault("nvmlDeviceGetCount", error="DRIVER_NOT_LOADED", count=1))
    found = nvml("result = [answer(n.nvmlDeviceGetCount), answer(n.nvmlDeviceGetCount)]")
    assert found == ["NVMLError_DriverNotLoaded", 2]
    gpus.inject(0, Fault("nvmlInit", error="DRIVER_NOT_LOADED"))
    with pytest.raises(AssertionError, match="NVMLError_DriverNotLoaded"):
        nvml("result = None")


def test_a_driver_reload_forgets(gpus: SimGpus) -> None:
    """After a reload there is no lock and the energy counter starts again."""
    gpus.request_lock(0, (210, 1200))
    gpus.set_power_cap_w(0, 120.0)
    gpus.advance(5.0)
    assert gpus.read(0).visible_j > 100
    gpus.reload_driver(0)
    now = gpus.read(0)
    assert (now.lock_mhz, now.lock_pending, now.cap_w, now.visible_j) == (None, False, 275.0, 0.0)


def test_a_killed_process_blocks_nobody(live_gpus: SimGpus, libs: NvmlLibs, nvml: Nvml) -> None:
    """SIGKILL in the middle of a change leaves a mutex that the next caller takes over."""
    code = f"""if True:
        from pathlib import Path
        from kvwatt_sim.nvml.control import SimGpus
        gpus = SimGpus.open(Path({str(live_gpus.path)!r}))
        print("holding", flush=True)
        gpus.hold_mutex(600)
    """
    with child(code, libs, live_gpus) as process:
        assert line_of(process) == "holding"
        # The child says so just before it takes the mutex: look until a look does not come back.
        answered = look(live_gpus)
        while answered.wait(STANDS_S):
            answered = look(live_gpus)
        process.send_signal(signal.SIGKILL)
        assert answered.wait(90)
    assert live_gpus.read(0).recovered == 1
    assert nvml(f"result = {LOCK}") is None


def test_bad_input_is_refused_by_name(gpus: SimGpus) -> None:
    """Faults, activities, caps, locks and indices that make no sense are refused."""
    with pytest.raises(ValueError, match="GPU_ON_FIRE"):
        Fault("*", error="GPU_ON_FIRE")
    with pytest.raises(ValueError, match="count = 0"):
        Fault("*", count=0)
    for bad in ((1.1, 0.0), (-0.1, 0.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="out of range"):
            gpus.publish(0, *bad)
    with pytest.raises(ValueError, match="out of range"):
        gpus.set_power_cap_w(0, 1000.0)
    with pytest.raises(ValueError, match="out of range"):
        gpus.request_lock(0, (210, 211))
    with pytest.raises(OSError, match="No such device"):
        gpus.read(5)
    gpus.close()
    with pytest.raises(ValueError, match="closed"):
        gpus.read(0)
