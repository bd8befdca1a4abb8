"""The daemon's link to the guard over an expired lease: no instance believes in a clock that was reset."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from fault_stage import SET

from kvwatt_sim import cards
from kvwatt_sim.nvml.build import build
from kvwatt_sim.nvml.control import SimGpus, env_for
from kvwatt_sim.nvml.said import Fault
from kvwatt_sim.nvml.spec import demo_uuid
from kvwattd.guard.spawn import spawn_guard
from kvwattd.guard_link import RECONNECT_S, GuardLink, Wish

LEASE_S = 1.5
PATIENCE_S = 90.0


class Told:
    """What an instance was told last."""

    clock_mhz: int | None = None
    errors = 0

    def on_applied(self, clock_mhz: int | None, now_s: float) -> None:
        self.clock_mhz = clock_mhz

    def on_actuation_error(self, reason: str, now_s: float) -> None:
        self.errors += 1

    def on_alarm(self, reason: str | None) -> None:
        """Nobody else sets clocks here."""


async def test_after_a_stall_every_instance_gets_its_clock_again(tmp_path: Path) -> None:
    """After an expired lease nothing is set on a wish from before it; each new wish brings its clock."""
    libs, path = build(), tmp_path / "gpus"
    uuids = [demo_uuid(0), demo_uuid(1)]
    spec = cards.load("l20", 1).gpu_spec
    with SimGpus.create(path, [spec(uuid) for uuid in uuids], libs=libs) as gpus:
        guard = await spawn_guard(
            tmp_path / "s", tmp_path / "state.json", uuids, lease_s=LEASE_S, env=env_for(libs, path)
        )
        alive = [True]
        link = GuardLink(tmp_path / "s", 2.0, time.monotonic, lambda: alive[0])
        link.need(True)
        told = [Told(), Told()]
        running = asyncio.create_task(link.run())
        try:
            for i in range(2):
                link.wish(str(i), Wish((uuids[i],), 900, 1200), told[i])
            await _until(lambda: [gpus.lock_mhz(i) for i in range(2)] == [(900, 1200)] * 2)
            alive[0] = False  # the tick stalls: no renewal
            await _until(lambda: [gpus.lock_mhz(i) for i in range(2)] == [None, None])
            link.wish("0", Wish((uuids[0],), 900, 1350), told[0])
            await asyncio.sleep(LEASE_S)  # rounds in which what a stalled tick wished could be sent
            assert [call.call for call in gpus.setter_log()].count(SET) == 2
            link.wish("0", Wish((uuids[0],), 900, None), told[0])
            alive[0] = True
            await _until(lambda: [t.clock_mhz for t in told] == [None, None])
            await asyncio.sleep(2 * RECONNECT_S)  # rounds in which the wish from before could be sent
            assert [gpus.lock_mhz(i) for i in range(2)] == [None, None]
            assert [call.call for call in gpus.setter_log()].count(SET) == 2
            link.wish("0", Wish((uuids[0],), 900, 1500), told[0])
            link.wish("1", Wish((uuids[1],), 900, 1200), told[1])
            await _until(lambda: [gpus.lock_mhz(i) for i in range(2)] == [(900, 1500), (900, 1200)])
            await _until(lambda: [t.clock_mhz for t in told] == [1500, 1200])
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert await guard.stop() == 0
        await _until(lambda: [gpus.lock_mhz(i) for i in range(2)] == [None, None])


async def test_a_refused_clock_does_not_leave_the_one_before_it(tmp_path: Path) -> None:
    """After a set that failed before it began, a wish for driver default still reaches the GPU."""
    libs, path, uuid = build(), tmp_path / "gpus", demo_uuid(0)
    with SimGpus.create(path, [cards.load("l20", 1).gpu_spec(uuid)], libs=libs) as gpus:
        guard = await spawn_guard(tmp_path / "s", tmp_path / "state.json", [uuid], env=env_for(libs, path))
        link, told = GuardLink(tmp_path / "s", 2.0, time.monotonic, lambda: True), Told()
        link.need(True)
        running = asyncio.create_task(link.run())
        try:
            link.wish("a", Wish((uuid,), 900, 1200), told)
            await _until(lambda: gpus.lock_mhz(0) == (900, 1200))
            gpus.inject(0, Fault("nvmlDeviceGetMigMode", error="UNKNOWN"))
            link.wish("a", Wish((uuid,), 900, 1500), told)
            await _until(lambda: told.errors > 0)
            assert gpus.lock_mhz(0) == (900, 1200)
            link.wish("a", Wish((uuid,), 900, None), told)
            await _until(lambda: gpus.lock_mhz(0) is None)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert await guard.stop() == 0


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  # other processes
            await asyncio.sleep(0.02)
