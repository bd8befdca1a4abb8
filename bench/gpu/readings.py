"""What NVML tells of one GPU, what each reading costs, and how often its counters move. Reads only.

The energy counter is refreshed every so often and in steps of a certain size; power is sampled at a period of
its own (Yang et al., "Part-time Power Measurements", arXiv 2312.02741). Both bound what any power figure of
this project can be worth on that GPU, so they are measured and not assumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import pynvml

from kvwattd.guard.nvml_session import Handle, energy_mj, mig_enabled, supported_clocks_mhz

_SPARE_S = 0.0005  # between two looks at a counter: finer than any period that was ever seen
_LEAST_CHANGES = 3


@dataclass(frozen=True, slots=True)
class Facts:
    """The GPU and its limits, as the driver states them. None: the driver does not tell."""

    name: str
    uuid: str
    driver: str
    nvml: str
    architecture: int | None
    supported_mhz: tuple[int, ...]
    max_sm_mhz: int
    memory_mhz: int
    memory_total_bytes: int
    default_limit_w: float | None
    enforced_limit_w: float
    least_limit_w: float | None
    most_limit_w: float | None
    persistence: bool | None
    mig: bool
    processes: int | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of one call: the median and the 99th percentile of `calls`, or why there is none."""

    call: str
    calls: int
    median_us: float | None
    p99_us: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Movement:
    """How a counter moved while it was watched. None where it moved too seldom to tell."""

    what: str
    watched_s: float
    looks: int
    changes: int
    period_ms: float | None
    step: float | None  # the smallest that was seen, in the counter's unit


def facts(handle: Handle) -> Facts:
    """Raises pynvml.NVMLError where something that every GPU tells cannot be read."""
    limits = _or_none(lambda: pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle))
    default_mw = _or_none(lambda: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle))
    running = _or_none(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    persistence = _or_none(lambda: pynvml.nvmlDeviceGetPersistenceMode(handle))
    return Facts(
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        driver=_text(pynvml.nvmlSystemGetDriverVersion()),
        nvml=_text(pynvml.nvmlSystemGetNVMLVersion()),
        architecture=_or_none(lambda: pynvml.nvmlDeviceGetArchitecture(handle)),
        supported_mhz=supported_clocks_mhz(handle),
        max_sm_mhz=pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        memory_mhz=max(pynvml.nvmlDeviceGetSupportedMemoryClocks(handle), default=0),
        memory_total_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        default_limit_w=None if default_mw is None else default_mw / 1e3,
        enforced_limit_w=pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        least_limit_w=None if limits is None else limits[0] / 1e3,
        most_limit_w=None if limits is None else limits[1] / 1e3,
        persistence=None if persistence is None else bool(persistence),
        mig=mig_enabled(handle),
        processes=None if running is None else len(running),
    )


def readers(handle: Handle) -> dict[str, Callable[[], object]]:
    """Every reading that the daemon or the guard takes while it runs."""
    instant = [pynvml.NVML_FI_DEV_POWER_INSTANT]
    return {
        "clock": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "power, instant (field)": lambda: pynvml.nvmlDeviceGetFieldValues(handle, instant),
        "power, averaged": lambda: pynvml.nvmlDeviceGetPowerUsage(handle),
        "energy counter": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        "utilisation": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle),
        "clock event reasons": lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        "temperature": lambda: pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU),
    }


def costs(handle: Handle, calls: int = 200) -> list[Cost]:
    """What each reading costs, called back to back."""
    return [_cost(name, read, calls) for name, read in readers(handle).items()]


def movements(handle: Handle, seconds: float) -> list[Movement]:
    """Period and step of the energy counter (J) and of the two power figures (W), `seconds` each."""
    instant = [pynvml.NVML_FI_DEV_POWER_INSTANT]

    def instant_w() -> float | None:
        field = pynvml.nvmlDeviceGetFieldValues(handle, instant)[0]
        return field.value.uiVal / 1e3 if field.nvmlReturn == pynvml.NVML_SUCCESS else None

    def counter_j() -> float | None:
        counter = energy_mj(handle)
        return None if counter is None else counter / 1e3

    watched = {
        "energy counter (J)": counter_j,
        "power, instant (W)": instant_w,
        "power, averaged (W)": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
    }
    return [movement(what, read, seconds) for what, read in watched.items()]


def movement(
    what: str,
    read: Callable[[], float | None],
    seconds: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Movement:
    """Watch one figure. The first change is where the watch begins: before it half a period is missing."""
    begin_s = now()
    last, looks = read(), 1
    moved_s: list[float] = []
    steps: list[float] = []
    while now() - begin_s < seconds:
        sleep(_SPARE_S)
        value = read()
        looks += 1
        if value is not None and last is not None and value != last:
            moved_s.append(now())
            steps.append(abs(value - last))
        last = value
    gaps_s = [after - before for before, after in pairwise(moved_s)]
    enough = len(gaps_s) >= _LEAST_CHANGES
    return Movement(
        what,
        watched_s=now() - begin_s,
        looks=looks,
        changes=len(moved_s),
        period_ms=1e3 * median(gaps_s) if enough else None,
        step=min(steps) if enough else None,
    )


def _cost(name: str, read: Callable[[], object], calls: int) -> Cost:
    took_us = []
    try:
        read()  # the first call may have to load something
        for _ in range(calls):
            begin_ns = time.perf_counter_ns()
            read()
            took_us.append((time.perf_counter_ns() - begin_ns) / 1e3)
    except pynvml.NVMLError as error:
        return Cost(name, len(took_us), None, None, str(error))
    took_us.sort()
    return Cost(name, calls, median(took_us), took_us[min(int(0.99 * calls), calls - 1)])


def _or_none(read: Callable[[], Any]) -> Any:  # noqa: ANN401 - what pynvml answers
    try:
        return read()
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
