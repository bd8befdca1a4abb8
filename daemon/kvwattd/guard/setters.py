"""The only file of kvwatt that calls an NVML setter (a test searches for others). Blocking."""

from __future__ import annotations

import pynvml

from kvwattd.guard.nvml_session import (
    Handle,
    NvmlCallError,
    NvmlSession,
    energy_mj,
    mig_enabled,
    supported_clocks_mhz,
)
from kvwattd.guard.obedience import Readback
from kvwattd.guard.protocol import Code


class ClockSetter:
    """Sets and resets the locked SM clocks of one GPU."""

    def __init__(self, session: NvmlSession, uuid: str) -> None:
        self._session = session
        self.uuid = uuid
        self._supported: tuple[int, tuple[int, ...]] | None = None  # session generation, clocks

    def check(self, floor_mhz: int, target_mhz: int) -> None:
        """Raises NvmlCallError unless this GPU can be locked to exactly this range."""
        self._session.run(self.uuid, "reading its MIG mode", self._refuse_mig)
        supported = self.supported_mhz()
        for name, mhz in (("floor_mhz", floor_mhz), ("target_mhz", target_mhz)):
            if mhz not in supported:
                raise NvmlCallError(Code.REFUSED_CLOCK, self._unsupported(name, mhz, supported))

    def supported_mhz(self) -> tuple[int, ...]:
        """Ascending. Raises NvmlCallError when the GPU lists none."""
        if self._supported is not None and self._supported[0] == self._session.generation:
            return self._supported[1]
        clocks = self._session.run(self.uuid, "reading its supported clocks", supported_clocks_mhz)
        if not clocks:
            raise NvmlCallError(Code.NOT_SUPPORTED, f"GPU {self.uuid} lists no supported clocks")
        self._supported = (self._session.generation, clocks)
        return clocks

    def set_range(self, floor_mhz: int, target_mhz: int) -> None:
        """A range, not one clock: an exact lock would hold the idle clock up. Raises NvmlCallError."""

        def locked(handle: Handle) -> None:
            self._refuse_mig(handle)  # MIG can be switched on between two calls
            pynvml.nvmlDeviceSetGpuLockedClocks(handle, floor_mhz, target_mhz)

        self._session.run(self.uuid, f"locking clocks to {floor_mhz}-{target_mhz} MHz", locked)

    def reset(self) -> None:
        """Back to driver default. Raises NvmlCallError."""
        self._session.run(self.uuid, "resetting its clocks", pynvml.nvmlDeviceResetGpuLockedClocks)

    def read(self) -> Readback:
        """What the clock does now. Raises NvmlCallError."""
        return self._session.run(self.uuid, "reading its clock back", self._read)

    def _read(self, handle: Handle) -> Readback:
        supported = self.supported_mhz()
        boost_mhz = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
        return Readback(
            clock_mhz=int(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            busy=pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0,
            reasons=int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            counter_mj=energy_mj(handle),
            default_mhz=max((clock for clock in supported if clock <= boost_mhz), default=supported[-1]),
        )

    def _refuse_mig(self, handle: Handle) -> None:
        if mig_enabled(handle):
            reason = "MIG is on; its slices share one clock, so kvwatt does not control it"
            raise NvmlCallError(Code.MIG, f"GPU {self.uuid}: {reason} (nvidia-smi -i {self.uuid} -mig 0)")

    def _unsupported(self, name: str, mhz: int, supported: tuple[int, ...]) -> str:
        nearest = min(supported, key=lambda clock: abs(clock - mhz))
        return (
            f"{name} = {mhz}: GPU {self.uuid} supports {len(supported)} clocks from {supported[0]} to "
            f"{supported[-1]} MHz, nearest {nearest}"
        )
