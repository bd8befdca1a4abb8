"""What unmodified nvidia-ml-py, nvitop and gpustat see of the simulated GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvwatt_sim.nvml import symbols
from kvwatt_sim.nvml.build import NvmlLibs, env_for
from kvwatt_sim.nvml.control import SimGpus

Nvml = Callable[[str], Any]


def tool(name: str, *args: str, libs: NvmlLibs, gpus: SimGpus) -> str:
    """Output of an installed program that looks at the simulated GPUs."""
    program = Path(sysconfig.get_path("scripts")) / name
    environment = {**os.environ, **env_for(libs, gpus.path), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [str(program), *args], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_identity(gpus: SimGpus, nvml: Nvml) -> None:
    """Name, UUID, architecture, memory, driver and PCI address are those of the specification."""
    found = nvml("""
        second = n.nvmlDeviceGetHandleByIndex(1)
        uuid = n.nvmlDeviceGetUUID(second)
        pci = n.nvmlDeviceGetPciInfo(h)
        result = {
            "count": n.nvmlDeviceGetCount(),
            "driver": n.nvmlSystemGetDriverVersion(),
            "name": n.nvmlDeviceGetName(h),
            "uuid": n.nvmlDeviceGetUUID(h),
            "arch": n.nvmlDeviceGetArchitecture(h) == n.NVML_DEVICE_ARCH_ADA,
            "capability": n.nvmlDeviceGetCudaComputeCapability(h),
            "memory": n.nvmlDeviceGetMemoryInfo(h).total,
            "memory_v2": n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2).total,
            "by_uuid": n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(uuid)),
            "by_bus": n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(pci.busId)),
            "unknown": answer(n.nvmlDeviceGetHandleByUUID, "GPU-nobody"),
            "out_of_range": answer(n.nvmlDeviceGetHandleByIndex, 2),
            "persistence": n.nvmlDeviceGetPersistenceMode(h),
        }
    """)
    spec = gpus.spec(0)
    assert found == {
        "count": 2,
        "driver": spec.driver_version,
        "name": spec.name,
        "uuid": spec.uuid,
        "arch": True,
        "capability": [8, 9],
        "memory": spec.memory_total_bytes,
        "memory_v2": spec.memory_total_bytes,
        "by_uuid": 1,
        "by_bus": 0,
        "unknown": "NVMLError_NotFound",
        "out_of_range": "NVMLError_InvalidArgument",
        "persistence": 1,
    }


def test_readings(gpus: SimGpus, nvml: Nvml) -> None:
    """Clock, power, temperature, utilisation, caps, processes and reasons follow the plant."""
    gpus.publish(0, 0.25, 0.5)
    gpus.set_process(0, os.getpid(), 20 << 30)
    gpus.set_temperature(0, 61.0)
    gpus.advance(30.0)
    found = nvml("""
        fields = n.nvmlDeviceGetFieldValues(h, [n.NVML_FI_DEV_POWER_INSTANT, 83, 1])
        rates = n.nvmlDeviceGetUtilizationRates(h)
        result = {
            "clock": [n.nvmlDeviceGetClockInfo(h, kind) for kind in (0, 1, 2)],
            "max": n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM),
            "power": [n.nvmlDeviceGetPowerUsage(h), fields[0].value.uiVal],
            "energy": [n.nvmlDeviceGetTotalEnergyConsumption(h), fields[1].value.ullVal],
            "field_unknown": fields[2].nvmlReturn,
            "temperature": [n.nvmlDeviceGetTemperature(h, 0), n.nvmlDeviceGetTemperatureV(h, 0)],
            "rates": [rates.gpu, rates.memory],
            "cap": n.nvmlDeviceGetPowerManagementLimit(h),
            "constraints": n.nvmlDeviceGetPowerManagementLimitConstraints(h),
            "processes": [[p.pid, p.usedGpuMemory] for p in n.nvmlDeviceGetComputeRunningProcesses(h)],
            "used": n.nvmlDeviceGetMemoryInfo(h).used,
            "reasons": n.nvmlDeviceGetCurrentClocksEventReasons(h),
            "mig": answer(n.nvmlDeviceGetMigMode, h),
        }
    """)
    power_mw = round(gpus.power_w(0) * 1e3)
    assert found == {
        "clock": [2520, 2520, 9001],
        "max": 2520,
        "power": [power_mw, power_mw],
        "energy": [pytest.approx(gpus.energy_j(0) * 1e3, abs=1)] * 2,
        "field_unknown": 3,
        "temperature": [61, 61],
        "rates": [75, 50],
        "cap": 275_000,
        "constraints": [100_000, 275_000],
        "processes": [[os.getpid(), 20 << 30]],
        "used": 20 << 30,
        "reasons": 0,
        "mig": "NVMLError_NotSupported",
    }


def test_supported_clocks_are_exactly_what_the_setter_takes(gpus: SimGpus, nvml: Nvml) -> None:
    """Every supported clock is accepted as minimum and maximum; every other one is an invalid argument."""
    found = nvml("""
        (memory,) = n.nvmlDeviceGetSupportedMemoryClocks(h)
        clocks = n.nvmlDeviceGetSupportedGraphicsClocks(h, memory)
        lock = n.nvmlDeviceSetGpuLockedClocks
        result = {
            "clocks": clocks,
            "taken": [mhz for mhz in range(0, 2600) if answer(lock, h, mhz, mhz) is None],
            "refusals": sorted({answer(lock, h, *pair) for pair in
                [(210, 211), (211, 2520), (2520, 210), (0, 2520), (210, 9999)]}),
            "other_memory": answer(n.nvmlDeviceGetSupportedGraphicsClocks, h, memory + 1),
        }
    """)
    supported = list(gpus.spec(0).supported_mhz)
    assert found["clocks"] == supported[::-1]
    assert found["taken"] == supported
    assert found["refusals"] == ["NVMLError_InvalidArgument"]
    assert found["other_memory"] == "NVMLError_NotFound"


def test_two_processes_see_the_same_gpu(gpus: SimGpus, nvml: Nvml) -> None:
    """A lock set by one process is the clock and the energy that all others read."""
    gpus.publish(0, 0.5, 0.5)
    nvml("result = n.nvmlDeviceSetGpuLockedClocks(h, 210, 1200)")
    gpus.advance(0.2)
    look = "result = [n.nvmlDeviceGetClockInfo(h, 1), n.nvmlDeviceGetTotalEnergyConsumption(h)]"
    first, second = nvml(look), nvml(look)
    assert first == second
    assert first[0] == gpus.clock_mhz(0) == 1200
    assert first[1] > 0


def test_every_function_of_the_binding_exists(gpus: SimGpus, nvml: Nvml) -> None:
    """nvidia-ml-py finds every function it may look up, and what is not simulated is not supported."""
    names = symbols.known()
    assert len(names) > 300
    assert names <= symbols.simulated() | symbols.unsupported()
    assert not symbols.simulated() & symbols.unsupported()
    missing, unsupported = nvml(f"""
        missing = [name for name in {sorted(names)} if not hasattr(n.nvmlLib, name)]
        result = [missing, answer(n.nvmlDeviceGetDefaultEccMode, h)]
    """)
    assert missing == []
    assert unsupported == "NVMLError_NotSupported"


def test_calls_before_init_and_after_shutdown_are_uninitialized(gpus: SimGpus, nvml: Nvml) -> None:
    """Without a user the library answers nothing, and it can be initialised again."""
    found = nvml("""
        n.nvmlShutdown()
        after = [answer(n.nvmlDeviceGetPowerUsage, h), answer(n.nvmlDeviceGetCount), answer(n.nvmlShutdown)]
        n.nvmlInit()
        result = [*after, answer(n.nvmlDeviceGetCount)]
    """)
    assert found == ["NVMLError_Uninitialized"] * 3 + [2]


def test_without_a_state_file_there_is_no_driver(libs: NvmlLibs, tmp_path: Path) -> None:
    """A missing state file answers as a machine without a driver does, a foreign one as a version clash."""
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"something else")
    code = "import pynvml as n\ntry: n.nvmlInit()\nexcept n.NVMLError as error: print(type(error).__name__)"
    said = []
    for state in (tmp_path / "nothing", foreign):
        environment = {**os.environ, **env_for(libs, state)}
        python = Path(sysconfig.get_path("scripts")) / "python"
        done = subprocess.run(
            [str(python), "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        said.append(done.stdout.strip())
    assert said == ["NVMLError_DriverNotLoaded", "NVMLError_LibRmVersionMismatch"]


def test_gpustat_shows_the_gpus(live_gpus: SimGpus, libs: NvmlLibs) -> None:
    """gpustat runs unmodified and shows name, memory and the process."""
    live_gpus.set_process(0, os.getpid(), 20 << 30)
    shown = json.loads(tool("gpustat", "--json", libs=libs, gpus=live_gpus))["gpus"]
    assert [gpu["name"] for gpu in shown] == ["NVIDIA L20"] * 2
    assert shown[0]["memory.used"] == 20 << 10
    assert [process["pid"] for process in shown[0]["processes"]] == [os.getpid()]
    assert shown[1]["enforced.power.limit"] == 275


def test_nvitop_shows_the_gpus(live_gpus: SimGpus, libs: NvmlLibs) -> None:
    """nvitop runs unmodified and shows cards, memory and caps."""
    live_gpus.set_process(1, os.getpid(), 30 << 30)
    shown = tool("nvitop", "--once", libs=libs, gpus=live_gpus)
    assert "L20" in shown
    assert "30.00GiB / 48.00GiB" in shown
    assert "275W" in shown
    assert str(os.getpid()) in shown


def test_many_processes_share_one_gpu(live_gpus: SimGpus, libs: NvmlLibs) -> None:
    """While several processes read and lock at once, each sees a counter that never falls."""
    code = """if True:
        import pynvml as n
        n.nvmlInit()
        h = n.nvmlDeviceGetHandleByIndex(0)
        seen = []
        for step in range(300):
            n.nvmlDeviceSetGpuLockedClocks(h, 210, 210 + 15 * (step % 100))
            seen.append(n.nvmlDeviceGetTotalEnergyConsumption(h))
        print(seen == sorted(seen), len(seen))
    """
    python = str(Path(sysconfig.get_path("scripts")) / "python")
    environment = {**os.environ, **env_for(libs, live_gpus.path)}
    live_gpus.publish(0, 0.5, 0.5)
    running = [
        subprocess.Popen([python, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate(timeout=180)[0].strip() for process in running] == ["True 300"] * 3
    assert len({call.pid for call in live_gpus.setter_log()}) == 3
    assert live_gpus.energy_j(0) > 0
