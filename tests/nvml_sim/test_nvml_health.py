"""A GPU's condition as nvidia-ml-py reads it: counters, rows, pages, what the driver asks for, Xid events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import Health

READ = """
def health():
    return [
        answer(n.nvmlDeviceGetTotalEccErrors, h, 0, 0), answer(n.nvmlDeviceGetTotalEccErrors, h, 1, 0),
        answer(n.nvmlDeviceGetRetiredPagesPendingStatus, h), answer(n.nvmlDeviceGetRemappedRows, h),
        answer(lambda: n.nvmlDeviceGetFieldValues(h, [230])[0].value.uiVal),
        answer(lambda: n.nvmlDeviceGetMemoryInfo(h).used),
    ]
result = health()
"""
EVENTS = """
from pathlib import Path
import os
from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import Health
gpus = SimGpus.open(Path(os.environ["KVWATT_SIM_STATE"]))
events = n.nvmlEventSetCreate()
gpus.set_health(0, Health(xid=13))
n.nvmlDeviceRegisterEvents(h, n.nvmlEventTypeXidCriticalError, events)
def take(timeout_ms=0):
    found = n.nvmlEventSetWait_v2(events, timeout_ms)
    return [n.nvmlDeviceGetUUID(found.device), found.eventType, found.eventData]
result = [answer(take)]
gpus.set_health(0, Health(xid=79))
result += [answer(take), answer(take, 20)]
gpus.set_health(1, Health(xid=48))
result += [answer(take), answer(n.nvmlDeviceRegisterEvents, h, 1, events)]
n.nvmlEventSetFree(events)
"""


def test_a_healthy_gpu_has_its_counters_at_zero(nvml: Callable[[str], Any], gpus: SimGpus) -> None:
    """All zero; without ECC there are no counters."""
    assert nvml(READ) == [0, 0, 0, [0, 0, 0, 0], 0, 0]
    gpus.set_health(0, Health(ecc=False))
    assert nvml(READ)[:4] == ["NVMLError_NotSupported"] * 4


def test_what_is_set_is_read(nvml: Callable[[str], Any], gpus: SimGpus) -> None:
    """Each in its own call; a reload of the driver clears what counts from there or was pending."""
    gpus.set_health(0, Health(True, 3, 2, True, 5, 6, True, True, 1, 7 << 20))
    assert nvml(READ) == [3, 2, 1, [5, 6, 1, 1], 1, 7 << 20]
    gpus.reload_driver(0)
    assert nvml(READ) == [0, 0, 0, [5, 6, 0, 1], 0, 7 << 20]


def test_critical_errors_are_events(nvml: Callable[[str], Any], gpus: SimGpus) -> None:
    """From the registration on, each once, of registered GPUs only."""
    before, xid, once, other, unknown = nvml(EVENTS)
    assert before == once == other == "NVMLError_Timeout"
    assert xid == [gpus.spec(0).uuid, 8, 79]
    assert unknown == "NVMLError_NotSupported"
