"""What a simulated GPU is: the numbers its NVML library needs, checked once, in the units of their names."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

MAX_GPUS = 8
MAX_CLOCKS = 256

# nvmlDeviceArchitecture_t
ARCHITECTURES = {"volta": 5, "turing": 6, "ampere": 7, "ada": 8, "hopper": 9, "blackwell": 10}


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """Power as a function of clock and activity; the same law is in `csrc/law.c` and `kvwatt_sim.gpu`.

    With r = f / f_ref_mhz and v(f) = max(v_min, 1 + v_slope * (r - 1)):
        d(f) = r * v(f)**2
        P(f, u_c, u_m) = idle_w + idle_slope_w * r + d(f) * (compute_w * u_c + memory_clock_w * u_m)
                         + memory_w * u_m

    u_c and u_m are the shares of time (0..1) spent in compute-bound and in memory-bound work.
    """

    f_ref_mhz: float
    idle_w: float
    idle_slope_w: float = 0.0
    compute_w: float = 0.0
    memory_clock_w: float = 0.0
    memory_w: float = 0.0
    v_min: float = 0.7
    v_slope: float = 0.5

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"power law {item.name} = {value!r}: a finite number >= 0 is needed")
        if self.f_ref_mhz == 0:
            raise ValueError("power law f_ref_mhz = 0: a clock above 0 MHz is needed")

    def as_array(self) -> tuple[float, ...]:
        """Parameters in the order in which `csrc/law.c` reads them."""
        return tuple(float(getattr(self, item.name)) for item in fields(self))


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One simulated GPU. `supported_mhz` may be given in any order; it is kept ascending."""

    name: str
    uuid: str
    arch: str
    memory_total_bytes: int
    memory_clock_mhz: int
    supported_mhz: tuple[int, ...]
    boost_mhz: int
    idle_mhz: int
    power_law: PowerLaw
    default_cap_w: float
    min_cap_w: float
    max_cap_w: float
    power_cap_w: float | None = None
    parked_w: float = 0.0  # drawn while no process uses it; 0: as much as idle
    switch_latency_s: float = 0.05
    idle_after_s: float = 0.5  # the driver holds the load clock this long after the last work
    energy_update_s: float = 0.05
    mig: bool = False
    persistence: bool = True
    ambient_c: float = 30.0
    heat_rise_c: float = 45.0  # over ambient, once settled at the default cap
    thermal_tau_s: float = 20.0
    slowdown_c: float = 90.0
    driver_version: str = "570.124.06"
    cuda_version: int = 12080

    def __post_init__(self) -> None:
        object.__setattr__(self, "supported_mhz", tuple(sorted(set(self.supported_mhz))))
        self._check_names()
        self._check_clocks()
        self._check_power()

    @property
    def cap_w(self) -> float:
        """Power cap in force at creation."""
        return self.default_cap_w if self.power_cap_w is None else self.power_cap_w

    @property
    def arch_id(self) -> int:
        """nvmlDeviceArchitecture_t of `arch`."""
        return ARCHITECTURES[self.arch]

    def _check_names(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch = {self.arch!r}: one of {', '.join(ARCHITECTURES)} is needed")
        for key, value, limit in (
            ("name", self.name, 95),
            ("uuid", self.uuid, 79),
            ("driver_version", self.driver_version, 79),
        ):
            if not value or len(value.encode()) > limit:
                raise ValueError(f"{key} = {value!r}: 1 to {limit} bytes are needed")

    def _check_clocks(self) -> None:
        clocks = self.supported_mhz
        if not 1 <= len(clocks) <= MAX_CLOCKS or clocks[0] <= 0:
            raise ValueError(f"supported_mhz has {len(clocks)} clocks: 1 to {MAX_CLOCKS} above 0 are needed")
        for key, clock in (("boost_mhz", self.boost_mhz), ("idle_mhz", self.idle_mhz)):
            if clock not in clocks:
                raise ValueError(f"{key} = {clock}: one of the supported clocks is needed")

    def _check_power(self) -> None:
        if not 0 < self.min_cap_w <= self.default_cap_w <= self.max_cap_w:
            raise ValueError(
                f"caps {self.min_cap_w}, {self.default_cap_w}, {self.max_cap_w} W: "
                "0 < min_cap_w <= default_cap_w <= max_cap_w is needed"
            )
        if not self.min_cap_w <= self.cap_w <= self.max_cap_w:
            raise ValueError(
                f"power_cap_w = {self.cap_w}: {self.min_cap_w} to {self.max_cap_w} W is accepted"
            )
        for key in (
            "switch_latency_s",
            "idle_after_s",
            "energy_update_s",
            "thermal_tau_s",
            "heat_rise_c",
            "parked_w",
        ):
            value = float(getattr(self, key))
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{key} = {value}: a finite number >= 0 is needed")


def demo_uuid(index: int) -> str:
    """A stable, plainly artificial UUID for simulated GPU `index`."""
    return f"GPU-5100a7e0-0000-4000-8000-{index:012d}"
