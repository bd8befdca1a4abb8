"""The only file of kvwatt that calls a setter of AMD SMI (a test searches for others). UNTESTED ON HARDWARE.

A lock is a lower and an upper limit of the graphics clock in whole MHz; driver default is performance level
AUTO, which undoes both (AMD's guide to performance levels; docs/compatibility.md). The range that the driver
lists is the one in force, so the hardware's own is read while the level is AUTO and kept. Blocking.
"""

from __future__ import annotations

import ctypes
import time

from kvwattd.guard.amd_inferred import PowerByEnergy, reasons
from kvwattd.guard.amd_library import (
    CLK_GFX,
    DEAD,
    LEVEL_AUTO,
    LIMIT_MAX,
    LIMIT_MIN,
    NOT_SUPPORTED,
    AmdLibrary,
    AmdSmiError,
    Handle,
)
from kvwattd.guard.amd_session import AmdSession
from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.obedience import Readback
from kvwattd.guard.protocol import Code

WHOLE = "SPX"


class AmdClockSetter:
    """Limits and frees the graphics clock of one GPU; the guard's Setter, as setters.ClockSetter is."""

    def __init__(self, session: AmdSession, uuid: str) -> None:
        self._session = session
        self.uuid = uuid
        self._range: tuple[int, range] | None = None  # session generation, clocks
        self._limits: tuple[int, int] | None = None  # as set last
        self._power = PowerByEnergy()

    def check(self, floor_mhz: int, target_mhz: int) -> None:
        """Raises NvmlCallError unless this GPU can be limited to exactly this range."""
        self._session.run(self.uuid, "reading its partition", self._refuse_partitioned)
        supported = self.supported_mhz()
        for name, mhz in (("floor_mhz", floor_mhz), ("target_mhz", target_mhz)):
            if mhz not in supported:
                ends = f"{supported[0]} to {supported[-1]} MHz"
                text = f"{name} = {mhz}: GPU {self.uuid} supports whole MHz from {ends}"
                raise NvmlCallError(Code.REFUSED_CLOCK, text)

    def supported_mhz(self) -> range:
        """The hardware's range. Raises NvmlCallError, also while another program's limits hide it."""
        if self._range is None or self._range[0] != self._session.generation:
            clocks = self._session.run(self.uuid, "reading its clocks", self._read_range)
            self._range = (self._session.generation, clocks)
        return self._range[1]

    def set_range(self, floor_mhz: int, target_mhz: int) -> None:
        """Raises NvmlCallError; one limit of the two may then be set: the guard resets."""

        def limit(library: AmdLibrary, handle: Handle) -> None:
            self._refuse_partitioned(library, handle)  # it can change between two calls
            before, self._limits = self._limits, None  # unknown until both are set
            self._set_limits(library, handle, floor_mhz, target_mhz, before)
            self._limits = (floor_mhz, target_mhz)

        self._session.run(self.uuid, f"limiting clocks to {floor_mhz}-{target_mhz} MHz", limit)

    def reset(self) -> None:
        """Back to driver default. Raises NvmlCallError."""

        def free(library: AmdLibrary, handle: Handle) -> None:
            library.call("amdsmi_set_gpu_perf_level", handle, ctypes.c_uint32(LEVEL_AUTO))
            self._limits = None

        self._session.run(self.uuid, "resetting its clocks", free)

    def read(self) -> Readback:
        """What the clock does now. Raises NvmlCallError."""
        return self._session.run(self.uuid, "reading its clock back", self._read)

    @staticmethod
    def _set_limits(
        library: AmdLibrary, handle: Handle, floor_mhz: int, target_mhz: int, before: tuple[int, int] | None
    ) -> None:
        """In the order in which the lower limit never passes the upper one."""
        if library.function("amdsmi_set_gpu_clk_limit") is None:  # before 6.4; it is the other that goes
            ends = (ctypes.c_uint64(floor_mhz), ctypes.c_uint64(target_mhz))
            library.call("amdsmi_set_gpu_clk_range", handle, *ends, ctypes.c_uint32(CLK_GFX))
            return
        limits = [(LIMIT_MIN, floor_mhz), (LIMIT_MAX, target_mhz)]
        if before is not None and floor_mhz > before[1]:
            limits.reverse()
        _limit(library, handle, *limits[0])
        try:
            _limit(library, handle, *limits[1])
        except AmdSmiError as error:
            if error.status in DEAD:
                raise
            # Never as "refused before anything was done": one limit is set and must be undone.
            raise NvmlCallError(
                Code.AMDSMI, f"only one of two limits was set: {error}", error.status
            ) from None

    def _read_range(self, library: AmdLibrary, handle: Handle) -> range:
        if library.performance_level(handle) != LEVEL_AUTO and self._range is None:
            text = f"GPU {self.uuid}: its performance level is not AUTO: another program sets its clocks"
            raise NvmlCallError(Code.YIELDED, f"{text} (amd-smi reset --clocks)")
        if library.performance_level(handle) != LEVEL_AUTO and self._range is not None:
            return self._range[1]  # initialised again while limits of ours hide the hardware's ends
        info = library.clock(handle)
        if not 0 < info.min_clk < info.max_clk:
            text = f"GPU {self.uuid} lists the clocks {info.min_clk} to {info.max_clk} MHz"
            raise NvmlCallError(Code.NOT_SUPPORTED, text)
        return range(info.min_clk, info.max_clk + 1)

    def _read(self, library: AmdLibrary, handle: Handle) -> Readback:
        energy_uj = library.energy_uj(handle)
        power_w = self._power.update(time.monotonic(), energy_uj)
        return Readback(
            clock_mhz=int(library.clock(handle).clk),
            busy=library.busy(handle),
            reasons=reasons(library, handle, power_w),
            counter_mj=int(energy_uj / 1e3),
            default_mhz=self.supported_mhz()[-1],
        )

    def _refuse_partitioned(self, library: AmdLibrary, handle: Handle) -> None:
        try:
            partition = library.partition(handle)
        except AmdSmiError as error:
            if error.status in NOT_SUPPORTED:
                return  # GPUs that cannot be divided
            raise
        if partition != WHOLE:
            reason = f"it is divided ({partition}); its parts share one clock, so kvwatt does not control it"
            raise NvmlCallError(Code.MIG, f"GPU {self.uuid}: {reason} (amd-smi set -C SPX)")


def _limit(library: AmdLibrary, handle: Handle, which: int, mhz: int) -> None:
    kinds = (ctypes.c_uint32(CLK_GFX), ctypes.c_uint32(which))
    library.call("amdsmi_set_gpu_clk_limit", handle, *kinds, ctypes.c_uint64(mhz))
