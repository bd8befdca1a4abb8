"""Whose GPU is it? One session per vendor's library, begun with the first GPU that needs it."""

from __future__ import annotations

from kvwattd.guard.amd_session import AmdSession, is_amd
from kvwattd.guard.amd_setters import AmdClockSetter
from kvwattd.guard.guarded_gpu import Setter
from kvwattd.guard.nvml_session import NvmlSession
from kvwattd.guard.setters import ClockSetter


class Drivers:
    """The sessions of one process."""

    def __init__(self) -> None:
        self._nvml = NvmlSession()
        self._amd = AmdSession()

    def setter(self, uuid: str) -> Setter:
        """Access to one GPU's clocks; its name says whose it is."""
        if is_amd(uuid):
            return AmdClockSetter(self._amd, uuid)
        return ClockSetter(self._nvml, uuid)

    def close(self) -> None:
        """Raises pynvml.NVMLError, NvmlCallError."""
        self._amd.close()
        self._nvml.close()
