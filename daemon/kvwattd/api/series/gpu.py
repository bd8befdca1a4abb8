"""Series of one GPU."""

from __future__ import annotations

from kvwattd.api.schemas import GpuView
from kvwattd.api.series.base import Samples, Series, count, hertz, one

# NVML clocks event reasons (nvml.h): why a GPU does not run at the clock that was asked for.
EVENT_REASONS = {
    "idle": 0x1,
    "power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "power_brake": 0x80,
}


def _reasons(gpu: GpuView) -> Samples:
    mask = gpu.event_reasons
    return [
        ((name,), None if mask is None else float(bool(mask & bit))) for name, bit in EVENT_REASONS.items()
    ]


GPU_SERIES: tuple[Series[GpuView], ...] = (
    one(
        "kvwatt_gpu_clock_target_hertz",
        "SM clock asked for, in hertz; no sample at driver default.",
        lambda g: hertz(g.clock_target_mhz),
    ),
    one(
        "kvwatt_gpu_clock_held",
        "1 when a clock is asked for, 0 at driver default.",
        lambda g: g.clock_target_mhz is not None,
    ),
    one(
        "kvwatt_gpu_clock_actual_hertz", "SM clock read back, in hertz.", lambda g: hertz(g.clock_actual_mhz)
    ),
    one("kvwatt_gpu_power_watts", "Power drawn, in watts.", lambda g: g.power_w),
    count(
        "kvwatt_gpu_energy_joules", "Energy used since the daemon started, in joules.", lambda g: g.energy_j
    ),
    one("kvwatt_gpu_temperature_celsius", "Temperature, in degrees Celsius.", lambda g: g.temperature_c),
    one(
        "kvwatt_gpu_utilization_ratio", "Share of time with work on the GPU, 0 to 1.", lambda g: g.utilization
    ),
    Series(
        "kvwatt_gpu_clock_event", "1 when this reason holds the clock back, else 0.", _reasons, ("reason",)
    ),
    one("kvwatt_gpu_reading_age_seconds", "Age of the GPU's reading, in seconds.", lambda g: g.age_s),
)
