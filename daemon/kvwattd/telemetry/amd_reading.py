"""One AMD GPU's figures through AMD SMI: read, never written. Blocking. UNTESTED ON HARDWARE."""

from __future__ import annotations

import time
from functools import partial

from kvwattd.guard.amd_inferred import PowerByEnergy, reasons
from kvwattd.guard.amd_library import LEVEL_AUTO, NOT_SUPPORTED, AmdLibrary, AmdSmiError, Handle
from kvwattd.guard.amd_session import AmdSession
from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.protocol import Code
from kvwattd.telemetry.nvml_reading import GpuInfo, RawSample, refuse_nonsense

FIRST_LOOK_S = 0.1
STEP_MHZ = 25  # of the clocks that are chosen among: any whole MHz may be set


class AmdSource:
    """Finds and reads AMD GPUs, named "AMD-" and their UUID. Methods raise NvmlCallError."""

    def __init__(self) -> None:
        self._session = AmdSession()
        self._ends: dict[str, tuple[int, int]] = {}
        self._power: dict[str, PowerByEnergy] = {}

    def find(self, selector: str) -> GpuInfo:
        """What it is."""
        return self._session.run(selector, "reading what it is", partial(self._describe, selector))

    def read(self, info: GpuInfo) -> RawSample:
        """What it does now."""
        return self._session.run(info.uuid, "reading it", partial(self._sample, info))

    def _describe(self, uuid: str, library: AmdLibrary, handle: Handle) -> GpuInfo:
        low, high = self._hardware_ends(library, handle, uuid)
        clocks = tuple(sorted({low, *range(high, low, -STEP_MHZ)}))
        index = [found.value for found in library.handles()].index(handle.value)
        return GpuInfo(
            uuid=uuid,
            index=index,
            name=library.name(handle),
            supported_mhz=clocks,
            default_mhz=high,
            power_limit_w=library.power_cap_w(handle),
            mig=_divided(library, handle),
            persistence=True,  # NVIDIA's word: AMD's driver stays
            driver_version=library.driver(handle),
        )

    def _hardware_ends(self, library: AmdLibrary, handle: Handle, uuid: str) -> tuple[int, int]:
        """What the driver lists may be the limits in force: the hardware's ends are read at level AUTO."""
        if library.performance_level(handle) == LEVEL_AUTO or uuid not in self._ends:
            if library.performance_level(handle) != LEVEL_AUTO:
                text = f"GPU {uuid}: clock limits are set and hide its range; known once they are reset"
                raise NvmlCallError(Code.YIELDED, text)
            info = library.clock(handle)
            if not 0 < info.min_clk < info.max_clk:
                text = f"GPU {uuid} lists the clocks {info.min_clk} to {info.max_clk} MHz"
                raise NvmlCallError(Code.NOT_SUPPORTED, text)
            self._ends[uuid] = (info.min_clk, info.max_clk)
        return self._ends[uuid]

    def _sample(self, info: GpuInfo, library: AmdLibrary, handle: Handle) -> RawSample:
        power_w, energy_uj = self._power_w(library, handle, info.uuid)
        reading = RawSample(
            clock_mhz=int(library.clock(handle).clk),
            power_w=power_w,
            energy_mj=int(energy_uj / 1e3),
            temperature_c=float(library.temperature_c(handle)),
            utilization=library.busy(handle),
            event_reasons=reasons(library, handle, power_w),
        )
        refuse_nonsense(reading, info)
        return reading

    def _power_w(self, library: AmdLibrary, handle: Handle, uuid: str) -> tuple[float, float]:
        """Watts and the counter. The first figure takes two looks at it."""
        meter = self._power.setdefault(uuid, PowerByEnergy(least_s=FIRST_LOOK_S))
        for _ in range(2):
            energy_uj = library.energy_uj(handle)
            power_w = meter.update(time.monotonic(), energy_uj)
            if power_w is not None:
                return power_w, energy_uj
            time.sleep(1.1 * FIRST_LOOK_S)
        raise NvmlCallError(Code.AMDSMI, f"GPU {uuid}: its energy counter began anew while it was read")


def _divided(library: AmdLibrary, handle: Handle) -> bool:
    try:
        return library.partition(handle) != "SPX"
    except AmdSmiError as error:
        if error.status in NOT_SUPPORTED:
            return False
        raise
