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


def _energy_faults(gpu: GpuView) -> Samples:
    e = gpu.energy
    if e is None:
        return []
    return [
        (("reset",), e.resets_total),
        (("refused",), e.refused_total),
        (("frozen",), e.frozen_total),
        (("gap",), e.gaps_total),
        (("disagrees",), e.disagreements_total),
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
    count(
        "kvwatt_gpu_energy_estimated_joules",
        "Part of the energy that no counter vouches for: power times time, in joules.",
        lambda g: g.energy.estimated_j if g.energy else None,
    ),
    Series(
        "kvwatt_gpu_energy_counter_faults",
        "Times that the energy counter could not be taken as it was, by what was wrong with it.",
        _energy_faults,
        ("fault",),
        counter=True,
    ),
    one(
        "kvwatt_gpu_energy_alarm",
        "1 while energy counter and power differ by more than a tenth, else 0.",
        lambda g: g.energy.disagrees if g.energy else None,
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
