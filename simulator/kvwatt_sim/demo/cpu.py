"""Whether the host kept up: CPU time of each process, lateness of the event loop."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

LAG_PERIOD_S = 0.02
LAG_WARN_S = 0.05  # p99; a token that is noticed this late bends a TBT of 30 ms only in single gaps


def cpu_s(pid: int) -> float | None:
    """User and system time of a process and its ended children; None where /proc does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> tuple[int, ...]:
    """Processes started by `pid`; empty where /proc does not tell."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return ()
    return tuple(int(word) for word in text.split())


class CpuMeter:
    """CPU use of named processes, as shares of one core since construction."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._start_s = time.monotonic()
        self._before = {name: cpu_s(pid) for name, pid in pids.items()}

    def shares(self) -> dict[str, float]:
        """CPU seconds per second; processes that are gone or unknown are left out."""
        elapsed_s = max(time.monotonic() - self._start_s, 1e-9)
        now = {name: cpu_s(pid) for name, pid in self._pids.items()}
        return {
            name: (after - before) / elapsed_s
            for name, before in self._before.items()
            if before is not None and (after := now[name]) is not None
        }


class LagMeter:
    """How late the event loop serves a timer; `run` until cancelled."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(LAG_PERIOD_S)
            self._lags_s.append(time.monotonic() - before_s - LAG_PERIOD_S)

    def quantile_s(self, level: float) -> float:
        """0 before the first sample."""
        if not self._lags_s:
            return 0.0
        ordered = sorted(self._lags_s)
        return ordered[min(int(level * len(ordered)), len(ordered) - 1)]
