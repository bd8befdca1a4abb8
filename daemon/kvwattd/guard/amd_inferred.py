"""What AMD SMI does not tell in calls of the same layout in every version: power, and why a clock is low.

Power is the growth of the energy counter. A GPU near its power cap or its critical temperature is taken to be
held back by it; reasons are numbered as NVML's. UNTESTED ON HARDWARE.
"""

from __future__ import annotations

from collections import deque

from kvwattd.guard.amd_library import NOT_SUPPORTED, TEMP_CRITICAL, AmdLibrary, AmdSmiError, Handle

POWER_CAP, SW_THERMAL = 0x04, 0x20  # as in obedience.LIMITS
NEAR_CAP = 0.95
NEAR_CRITICAL_C = 2
WINDOW_S = 1.0


class PowerByEnergy:
    """Mean power of about the last second. Pure: times are arguments."""

    def __init__(self, least_s: float = 0.5) -> None:
        self._least_s = least_s
        self._seen: deque[tuple[float, float]] = deque()

    def update(self, now_s: float, energy_uj: float) -> float | None:
        """Watts; None before `least_s` seconds were seen."""
        if self._seen and energy_uj < self._seen[-1][1]:
            self._seen.clear()  # the counter began anew
        self._seen.append((now_s, energy_uj))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        then_s, then_uj = self._seen[0]
        if now_s - then_s < self._least_s:
            return None
        return (energy_uj - then_uj) / 1e6 / (now_s - then_s)


def reasons(library: AmdLibrary, handle: Handle, power_w: float | None) -> int:
    """What may hold the clock back. Raises AmdSmiError."""
    found, cap_w = 0, library.power_cap_w(handle)
    if power_w is not None and 0.0 < NEAR_CAP * cap_w <= power_w:
        found |= POWER_CAP
    try:
        critical_c = library.temperature_c(handle, TEMP_CRITICAL)
        if 0 < critical_c - NEAR_CRITICAL_C <= library.temperature_c(handle):
            found |= SW_THERMAL
    except AmdSmiError as error:
        if error.status not in NOT_SUPPORTED:
            raise
    return found
