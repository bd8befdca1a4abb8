"""Random sequences of commands and driver faults against the clock keeper, over a driver made of memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvwattd.guard.clocks import ClockKeeper
from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.protocol import ClockState, Code, GuardError

UUIDS = ("GPU-a", "GPU-b", "GPU-c")
SUPPORTED_MHZ = (300, 600, 900, 1200)
DEADLINE_S = 0.03


@dataclass
class Driver:
    """One GPU: refuses unsupported clocks, obeys its next fault, remembers what was done to it."""

    uuid: str
    recorded: Callable[[], frozenset[str]]
    lock_mhz: tuple[int, int] | None = None
    faults: list[str] = field(default_factory=list)
    answering: threading.Event = field(default_factory=threading.Event)
    breaches: list[str] = field(default_factory=list)

    def check(self, floor_mhz: int, target_mhz: int) -> None:
        if floor_mhz not in SUPPORTED_MHZ or target_mhz not in SUPPORTED_MHZ:
            raise NvmlCallError(Code.REFUSED_CLOCK, f"{floor_mhz}-{target_mhz}")

    def set_range(self, floor_mhz: int, target_mhz: int) -> None:
        if self.uuid not in self.recorded():
            self.breaches.append("set before it was recorded")
        if not {floor_mhz, target_mhz} <= set(SUPPORTED_MHZ) or floor_mhz > target_mhz:
            self.breaches.append(f"wrong clock {floor_mhz}-{target_mhz}")
        self._apply((floor_mhz, target_mhz))

    def reset(self) -> None:
        self._apply(None)

    def _apply(self, lock_mhz: tuple[int, int] | None) -> None:
        fault = self.faults.pop(0) if self.faults else "none"
        if fault == "hang":
            self.answering.wait(30)
        if fault == "refuse":
            raise NvmlCallError(Code.NO_PERMISSION, "refused")
        if fault == "fail":
            raise NvmlCallError(Code.NVML, "failed before it took effect")
        self.lock_mhz = lock_mhz
        if fault == "lie":
            raise NvmlCallError(Code.NVML, "failed after it took effect")


class Bench:
    """A keeper over three drivers, with a record in memory."""

    def __init__(self) -> None:
        self.record: frozenset[str] = frozenset()
        self.drivers = {uuid: Driver(uuid, lambda: self.record) for uuid in UUIDS}
        self.keeper = ClockKeeper(lambda uuid: self.drivers[uuid], UUIDS, self.persist, DEADLINE_S)

    async def persist(self, wanted: Callable[[], frozenset[str]]) -> None:
        await asyncio.sleep(0)
        self.record = wanted()

    def locked(self) -> set[str]:
        return {driver.uuid for driver in self.drivers.values() if driver.lock_mhz is not None}

    async def settle(self) -> None:
        """The driver recovers; then the keeper retries until nothing is left to undo."""
        for driver in self.drivers.values():
            driver.faults.clear()
            driver.answering.set()
        loop = asyncio.get_running_loop()
        for _ in range(12_000):
            if not self.keeper.touched and all(v.state is ClockState.DEFAULT for v in self.keeper.views()):
                return
            self.keeper.retry_due(loop.time() + 60.0)
            await asyncio.sleep(0.005)
        raise AssertionError(f"never undone: {self.keeper.touched}")


clocks = st.sampled_from([*SUPPORTED_MHZ, 301, 0])
groups = st.lists(st.sampled_from(UUIDS), min_size=1, max_size=3, unique=True)
kinds = st.sampled_from(["refuse", "fail", "lie", "fail", "lie", "hang"])
commands = st.one_of(
    st.tuples(st.just("set"), groups, clocks, clocks),
    st.tuples(st.just("reset"), groups),
    st.tuples(st.just("end of lease")),
    st.tuples(st.just("set as the lease ends"), groups),
    st.tuples(st.just("fault"), st.sampled_from(UUIDS), kinds),
)


async def obey(bench: Bench, command: tuple[object, ...]) -> None:
    match command:
        case ("set", list(uuids), int(floor_mhz), int(target_mhz)):
            if floor_mhz <= target_mhz:  # the server refuses the rest before it comes here
                await bench.keeper.set_group(uuids, floor_mhz, target_mhz)
                assert all(bench.drivers[uuid].lock_mhz == (floor_mhz, target_mhz) for uuid in uuids)
        case ("reset", list(uuids)):
            await bench.keeper.reset(uuids)
            assert not bench.locked() & set(uuids)
        case ("set as the lease ends", list(uuids)):
            setting = asyncio.ensure_future(bench.keeper.set_group(uuids, 300, 600))
            await asyncio.sleep(0)
            await bench.keeper.reset_all("test")
            await setting
        case ("fault", str(uuid), str(kind)):
            bench.drivers[uuid].faults.append(kind)
        case _:
            await bench.keeper.reset_all("test")


async def play(sequence: list[tuple[object, ...]]) -> None:
    bench = Bench()
    for command in sequence:
        try:
            await obey(bench, command)
        except GuardError:
            pass
        else:
            if command[0] == "end of lease":
                hung = {view.uuid for view in bench.keeper.views() if view.fault is not None}
                assert bench.locked() <= hung  # what is still locked is known and retried
        assert bench.locked() <= bench.record
    await bench.keeper.reset_all("the end")
    await bench.settle()
    await bench.keeper.close()
    assert not bench.locked()
    assert bench.record == frozenset()
    assert all(driver.breaches == [] for driver in bench.drivers.values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(commands, min_size=1, max_size=12))
def test_any_sequence_ends_at_default(sequence: list[tuple[object, ...]]) -> None:
    """Whatever is asked and whatever fails: no clock unrecorded or wrong, and at the end none left."""
    asyncio.run(play(sequence))
