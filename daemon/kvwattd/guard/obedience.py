"""Whether a GPU runs at the clock it was told to. Pure: time is an argument (monotonic seconds).

A clock lock cannot be read back, only the clock it leads to, and that says something under load alone:

    clock above the lock's upper end                      -> this lock is not in force
    busy, no reason told by the driver, clock far below   -> not this lock's upper end holds it
    busy, no reason told, clock at the upper end          -> obeyed

NVML reports a reason whenever something other than the set clocks holds a busy GPU back ("none" means: clocks
are as high as possible), so a low clock without a reason is somebody's lock. A lock that was obeyed and is
not in force any more was replaced by another program; one that never was obeyed was not taken by the driver.
A driver reload drops the lock and begins the energy counter anew, which tells it from both.

Known weakness: a lock that another program sets on an idle GPU, or within a tenth of ours, is not noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# nvmlClocksEventReasons: what holds a clock back, beside what was set.
LIMITS = {
    0x04: "power_cap",
    0x08: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "power_brake",
    0x100: "display",
}
IDLE = 0x01
EXTERNAL = "external"  # not NVML's: another program's lock

SETTLE_S = 1.0  # a switch takes up to 0.5 s (arXiv 2502.20075), and utilisation is an average
STRIKES = 3  # consecutive judgements that something is wrong
BUSY = 0.5
ABOVE, BELOW = 1.03, 0.9  # of the upper end
BELOW_DEFAULT = 0.8  # of the clock that the GPU could reach: consumer parts boost less without saying why


class Verdict(StrEnum):
    UNKNOWN = "unknown"  # idle, just switched, or not often enough yet
    OBEYED = "obeyed"
    LIMITED = "limited"  # power cap, heat: the driver says so, and it is nobody's fault
    DISOBEYED = "disobeyed"
    FOREIGN = "foreign"  # another program's clock
    RELOADED = "reloaded"  # the driver began anew: the lock is gone


@dataclass(frozen=True, slots=True)
class Readback:
    """One reading. `counter_mj` None where the GPU has no energy counter."""

    clock_mhz: int
    busy: float  # 0..1
    reasons: int  # nvmlClocksEventReasons
    counter_mj: int | None
    default_mhz: int  # what a GPU without a lock can reach


def limited_by(reasons: int) -> tuple[str, ...]:
    """What holds the clock back, in words; empty when nothing does."""
    return tuple(word for bit, word in LIMITS.items() if reasons & bit)


class ClockWatch:
    """One GPU: told what is set, fed every reading."""

    def __init__(self) -> None:
        self._range_mhz: tuple[int, int] | None = None
        self._settled_s = 0.0
        self._obeyed = False
        self._strikes = 0
        self._counter_mj: int | None = None

    def on_change(self, range_mhz: tuple[int, int] | None, now_s: float) -> None:
        """A range was set (or is about to be), or the default (None)."""
        self._range_mhz = range_mhz
        self._settled_s = now_s + SETTLE_S
        self._obeyed = False
        self._strikes = 0

    def observe(self, reading: Readback, now_s: float) -> Verdict:
        """Judge one reading."""
        before, self._counter_mj = self._counter_mj, reading.counter_mj
        if before is not None and reading.counter_mj is not None and reading.counter_mj < before:
            return Verdict.RELOADED
        if now_s < self._settled_s:
            return Verdict.UNKNOWN
        suspected = self._suspect(reading)
        if suspected is None:
            return self._in_order(reading)
        self._strikes += 1
        return suspected if self._strikes >= STRIKES else Verdict.UNKNOWN

    def _suspect(self, reading: Readback) -> Verdict | None:
        """What this reading alone speaks for; None when it is in order or says nothing."""
        free = reading.busy >= BUSY and not reading.reasons & IDLE and not limited_by(reading.reasons)
        if self._range_mhz is None:
            low = reading.clock_mhz < BELOW_DEFAULT * reading.default_mhz
            return Verdict.FOREIGN if free and low else None
        upper_mhz = min(self._range_mhz[1], reading.default_mhz)
        above = reading.clock_mhz > ABOVE * upper_mhz
        below = free and reading.clock_mhz < BELOW * upper_mhz
        if not above and not below:
            return None
        return Verdict.FOREIGN if self._obeyed else Verdict.DISOBEYED

    def _in_order(self, reading: Readback) -> Verdict:
        if limited_by(reading.reasons):
            self._strikes = 0
            return Verdict.LIMITED
        if reading.busy < BUSY or reading.reasons & IDLE:
            return Verdict.UNKNOWN  # an idle GPU neither confirms nor denies
        self._strikes = 0
        self._obeyed = self._range_mhz is not None
        return Verdict.OBEYED
