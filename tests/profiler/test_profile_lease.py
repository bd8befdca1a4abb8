"""A machine that stands still for longer than the lease loses the clock, and not the sweep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvwatt_sim import cards
from kvwatt_sim.nvml.build import build
from kvwatt_sim.nvml.control import SimGpus, env_for
from kvwatt_sim.nvml.spec import demo_uuid
from kvwattd.guard.protocol import Code, GuardError
from kvwattd.guard.spawn import spawn_guard
from kvwattd.profiler.lease import ClockLease
from kvwattd.profiler.points import Point
from kvwattd.profiler.sweep import Sweep

UUID = demo_uuid(0)
LEASE_S, PATIENCE_S = 1.5, 90.0
POINT = Point((), 0.02)


@asynccontextmanager
async def leased(folder: Path) -> AsyncIterator[tuple[ClockLease, SimGpus]]:
    """A short lease at a real guard."""
    libs, path = build(), folder / "gpus"
    with SimGpus.create(path, [cards.load("l20", 1).gpu_spec(UUID)], libs=libs) as gpus:
        guard = await spawn_guard(
            folder / "s", folder / "state.json", [UUID], lease_s=LEASE_S, env=env_for(libs, path)
        )
        try:
            async with ClockLease(folder / "s", [UUID], timeout_s=PATIENCE_S) as lease:
                yield lease, gpus
        finally:
            assert await guard.stop() == 0


async def test_a_lease_that_ran_out_is_told_and_taken_up_again(tmp_path: Path) -> None:
    """The loop stands still: the guard resets, `check` says so, and the next clock is set and kept."""
    async with leased(tmp_path) as (lease, gpus):
        await lease.set(1200)
        await lease.check()
        await _until_locked(gpus, 1200)
        until_s = time.monotonic() + PATIENCE_S
        while gpus.lock_mhz(0) is not None:
            assert time.monotonic() < until_s
            time.sleep(0.02)  # noqa: ASYNC251  # the stall
        with pytest.raises(GuardError) as told:
            await lease.check()
        assert told.value.code == Code.LEASE_EXPIRED
        await lease.set(1500)
        await lease.check()
        await _until_locked(gpus, 1500)


async def _until_locked(gpus: SimGpus, clock_mhz: int) -> None:
    """A switch takes its time."""
    async with asyncio.timeout(PATIENCE_S):
        while gpus.lock_mhz(0) != (clock_mhz, clock_mhz):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.02)


class Lease:
    """Runs out in the first `stalls` measurements."""

    def __init__(self, stalls: int, code: Code = Code.LEASE_EXPIRED) -> None:
        self.stalls, self.code = stalls, code
        self.asked: list[int] = []

    async def set(self, clock_mhz: int) -> None:
        self.asked.append(clock_mhz)

    async def measure(self) -> Point:
        self.stalls -= 1
        if self.stalls >= 0:
            raise GuardError(self.code, "told")
        return POINT


async def measured(lease: Lease) -> Point:
    """A point of a sweep under this lease."""
    sweep: Any = SimpleNamespace(_lease=lease, _options=SimpleNamespace(settle_s=0.0))
    sweep._settled = lambda *given: Sweep._settled(sweep, *given)
    return await Sweep._at(sweep, 900, lease.measure)


async def test_a_point_is_measured_again_at_its_clock() -> None:
    """Once; a machine that stands still all the time, and any other refusal, ends the sweep."""
    again = Lease(1)
    assert await measured(again) is POINT
    assert again.asked == [900, 900]
    for ends in (Lease(2), Lease(1, Code.YIELDED)):
        with pytest.raises(GuardError):
            await measured(ends)
