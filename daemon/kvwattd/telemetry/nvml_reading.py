"""One GPU's figures through NVML: read, checked for nonsense, never written. Blocking."""

from __future__ import annotations

from dataclasses import dataclass

import pynvml

from kvwattd.guard.nvml_session import (
    Handle,
    NvmlCallError,
    NvmlSession,
    energy_mj,
    failure,
    mig_enabled,
    supported_clocks_mhz,
)
from kvwattd.guard.protocol import Code

_MAX_CLOCK_MHZ = 10_000
_MAX_POWER_FACTOR = 3.0  # instantaneous power peaks above the limit
_TEMPERATURE_C = (-50, 150)


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """What does not change while the driver stays loaded."""

    uuid: str
    index: int
    name: str
    supported_mhz: tuple[int, ...]  # ascending
    default_mhz: int  # under load when nothing is locked
    power_limit_w: float
    mig: bool
    persistence: bool
    driver_version: str


@dataclass(frozen=True, slots=True)
class RawSample:
    """One reading. `energy_mj` None where the GPU has no counter."""

    clock_mhz: int
    power_w: float
    energy_mj: int | None
    temperature_c: float
    utilization: float  # 0..1
    event_reasons: int


def identify(session: NvmlSession, selector: str) -> str:
    """The UUID of a GPU given by UUID or by index. Raises NvmlCallError."""
    if not selector.isdigit():
        return session.run(selector, "looking it up", _uuid)
    try:
        session.start()
        return _uuid(pynvml.nvmlDeviceGetHandleByIndex(int(selector)))
    except pynvml.NVMLError as error:
        raise failure(error, f"GPU {selector}: looking it up by index") from None


def describe(handle: Handle) -> GpuInfo:
    """Raises pynvml.NVMLError, NvmlCallError."""
    supported = supported_clocks_mhz(handle)
    if not supported:
        raise NvmlCallError(Code.NOT_SUPPORTED, "the GPU lists no supported clocks")
    boost = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
    return GpuInfo(
        uuid=_uuid(handle),
        index=int(pynvml.nvmlDeviceGetIndex(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        supported_mhz=supported,
        default_mhz=max((clock for clock in supported if clock <= boost), default=supported[-1]),
        power_limit_w=pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        mig=mig_enabled(handle),
        persistence=_persistence(handle),
        driver_version=_text(pynvml.nvmlSystemGetDriverVersion()),
    )


def sample(handle: Handle, info: GpuInfo) -> RawSample:
    """Raises pynvml.NVMLError; NvmlCallError when a figure cannot be true."""
    reading = RawSample(
        clock_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        power_w=_power_w(handle),
        energy_mj=energy_mj(handle),
        temperature_c=float(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)),
        utilization=pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0,
        event_reasons=int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
    )
    refuse_nonsense(reading, info)
    return reading


def refuse_nonsense(reading: RawSample, info: GpuInfo) -> None:
    """Raises NvmlCallError when a figure cannot be true."""
    most_w = _MAX_POWER_FACTOR * info.power_limit_w
    coldest_c, hottest_c = _TEMPERATURE_C
    checks = (
        ("clock", reading.clock_mhz, 0 < reading.clock_mhz <= _MAX_CLOCK_MHZ, f"1 to {_MAX_CLOCK_MHZ} MHz"),
        ("power", reading.power_w, 0.0 <= reading.power_w <= most_w, f"0 to {most_w:g} W"),
        (
            "temperature",
            reading.temperature_c,
            coldest_c <= reading.temperature_c <= hottest_c,
            f"{coldest_c} to {hottest_c} C",
        ),
        ("utilization", reading.utilization, 0.0 <= reading.utilization <= 1.0, "0 to 1"),
    )
    for name, value, plausible, expected in checks:
        if not plausible:
            raise NvmlCallError(Code.NVML, f"GPU {info.uuid}: {name} = {value}: expected {expected}")


def _power_w(handle: Handle) -> float:
    """Instantaneous where the GPU tells it (plain power is a one-second average on Ampere and later)."""
    try:
        field = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])[0]
    except pynvml.NVMLError as error:
        if int(error.value) not in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            raise
    else:
        if field.nvmlReturn == pynvml.NVML_SUCCESS:
            return float(field.value.uiVal) / 1e3
    return float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1e3


def _persistence(handle: Handle) -> bool:
    try:
        return bool(pynvml.nvmlDeviceGetPersistenceMode(handle))
    except pynvml.NVMLError as error:
        if int(error.value) == pynvml.NVML_ERROR_NOT_SUPPORTED:
            return False
        raise


def _uuid(handle: Handle) -> str:
    return _text(pynvml.nvmlDeviceGetUUID(handle))


def _text(value: str | bytes) -> str:
    """The binding's older releases answer bytes."""
    return value.decode() if isinstance(value, bytes) else value


class NvmlSource:
    """Finds and reads NVIDIA GPUs, by UUID or index. Methods raise NvmlCallError."""

    def __init__(self) -> None:
        self._session = NvmlSession()

    def find(self, selector: str) -> GpuInfo:
        """What it is."""
        uuid = identify(self._session, selector)
        return self._session.run(uuid, "reading what it is", describe)

    def read(self, info: GpuInfo) -> RawSample:
        """What it does now."""
        return self._session.run(info.uuid, "reading it", lambda handle: sample(handle, info))
