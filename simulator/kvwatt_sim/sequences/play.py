"""One random sequence: commands of a daemon, faults of the driver, kills, other programs; and what must hold.

Checked after every step: a clock in force that the guard set is on record on disk. Checked at the end, once
the faults are taken away: every GPU of a group has the same lock, control returns, a daemon that is gone
leaves driver default, and every call in the setters' log was one of the two the guard may make, with
supported clocks inside the bounds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvwatt_sim.nvml.control import SimGpus
from kvwatt_sim.nvml.said import Fault, SetterCall
from kvwatt_sim.sequences.mortal import MortalGuard
from kvwattd.guard.client import GuardClient
from kvwattd.guard.config import GuardConfig
from kvwattd.guard.protocol import GuardError
from kvwattd.guard.statefile import StateFile
from kvwattd.guard_link import GuardLink, Wish

SET, RESET = "nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks"
LEASE_S, DEADLINE_S, HOLD_OFF_S, TICK_S = 0.4, 0.05, 0.3, 0.05
MIN_MHZ, MAX_MHZ = 600, 2400
PATIENCE_S = 60.0
GROUPS = {"a": (0, 1), "b": (2,)}
CALLS = (SET, SET, SET, RESET, RESET, "nvmlDeviceGet*", "nvmlDeviceGetMigMode", "nvmlDeviceGetClockInfo", "*")
ERRORS = ("GPU_IS_LOST", "RESET_REQUIRED", "UNKNOWN", "NO_PERMISSION", "TIMEOUT", "NOT_SUPPORTED")
STEPS = (
    *("wish", "wish", "wish", "wish", "wish", "default", "nonsense", "intruder"),
    *("fault", "fault", "fault", "cure", "cure", "reload", "foreign", "forbid", "load"),
    *("stall", "daemon dies", "guard dies", "guard ends", "wait"),
)


class ViolationError(AssertionError):
    """An invariant did not hold."""


@dataclass
class Told:
    """What the daemon's instance was told last."""

    clock_mhz: int | None = None
    alarm: str | None = None

    def on_applied(self, clock_mhz: int | None, now_s: float) -> None:
        self.clock_mhz = clock_mhz

    def on_actuation_error(self, reason: str, now_s: float) -> None:
        self.clock_mhz = None

    def on_alarm(self, reason: str | None) -> None:
        self.alarm = reason


@dataclass
class Stage:
    """Three GPUs, a guard, a daemon's link; everything that a step may change."""

    gpus: SimGpus
    config: GuardConfig
    rng: random.Random
    guard: MortalGuard
    uuids: tuple[str, ...]
    supported: tuple[int, ...]
    told: dict[str, Told] = field(default_factory=lambda: {name: Told() for name in GROUPS})
    foreign: set[int] = field(default_factory=set)  # another program's lock may be on it
    alive: bool = True
    link: GuardLink | None = None
    linking: asyncio.Task[None] | None = None
    wishes: dict[str, Wish] = field(default_factory=dict)  # of the daemon that lives now
    done: list[str] = field(default_factory=list)

    def connect(self) -> None:
        """Another daemon."""
        loop = asyncio.get_running_loop()
        self.link = GuardLink(self.config.socket, 1.0, loop.time, lambda: self.alive)
        self.link.need(True)
        self.wishes.clear()
        self.linking = asyncio.create_task(self._daemon(self.link))

    async def _daemon(self, link: GuardLink) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(link.run())
            tasks.create_task(self._ticks(link))

    async def _ticks(self, link: GuardLink) -> None:
        """Wishes are told again at every tick, for the link forgets them with what it held."""
        while True:
            if self.alive:
                for name, wish in self.wishes.items():
                    link.wish(name, wish, self.told[name])
            await asyncio.sleep(TICK_S)

    async def disconnect(self) -> None:
        if self.linking is not None:
            self.linking.cancel()
            await asyncio.gather(self.linking, return_exceptions=True)

    def wish(self, name: str, floor_mhz: int, target_mhz: int | None) -> None:
        if self.link is not None:
            uuids = tuple(self.uuids[i] for i in GROUPS[name])
            self.wishes[name] = Wish(uuids, floor_mhz, target_mhz)
            self.link.wish(name, self.wishes[name], self.told[name])

    async def another_guard(self) -> None:
        self.guard = MortalGuard(self.config)
        await self.guard.start()


async def play(seed: int, gpus: SimGpus, folder: Path) -> list[str]:
    """Raises ViolationError; else the steps that were taken."""
    rng = random.Random(seed)
    began_s = gpus.now_s()
    uuids = tuple(gpus.spec(i).uuid for i in range(gpus.count))
    config = GuardConfig(
        socket=folder / "guard.sock",
        state_file=folder / "state.json",
        gpus=uuids,
        min_mhz=MIN_MHZ,
        max_mhz=MAX_MHZ,
        lease_s=LEASE_S,
        nvml_deadline_s=DEADLINE_S,
        hold_off_s=HOLD_OFF_S,
        lock_dir=folder / "locks",
    )
    supported = gpus.spec(0).supported_mhz
    stage = Stage(gpus, config, rng, MortalGuard(config), uuids, supported)
    await stage.guard.start()
    stage.connect()
    try:
        for _ in range(rng.randint(4, 14)):
            await _step(stage)
            _recorded(stage)
        await _settle(stage)
        _log_in_order([call for call in gpus.setter_log() if call.t_s >= began_s], stage)
    except ViolationError as error:
        raise ViolationError(f"seed {seed}: {error}; after {', '.join(stage.done)}") from None
    finally:
        _cure(stage)
        await stage.disconnect()
        await stage.guard.stop()
        for i in range(gpus.count):
            gpus.request_lock(i, None)
    return stage.done


async def _step(stage: Stage) -> None:
    kind = stage.rng.choice(STEPS)
    stage.done.append(kind)
    await _TAKE[kind](stage)
    await asyncio.sleep(stage.rng.choice((0.0, 0.0, 0.005, 0.02)))


async def _wish(stage: Stage) -> None:
    permitted = [mhz for mhz in stage.supported if MIN_MHZ <= mhz <= MAX_MHZ]
    low, high = sorted(stage.rng.choices(permitted, k=2))
    stage.wish(stage.rng.choice(list(GROUPS)), low, high)


async def _default(stage: Stage) -> None:
    stage.wish(stage.rng.choice(list(GROUPS)), MIN_MHZ, None)


async def _nonsense(stage: Stage) -> None:
    """A daemon gone mad: the guard has the last word."""
    odd = (-1, 0, 1, MIN_MHZ - 15, MAX_MHZ + 15, 1201, 2520, 10**9)
    name, target = stage.rng.choice(list(GROUPS)), stage.rng.choice(odd)
    stage.wish(name, stage.rng.choice((MIN_MHZ, 1201, target)), target)


async def _intruder(stage: Stage) -> None:
    """A second daemon on the same guard; it gets the lease only where nobody has it."""
    client = GuardClient(stage.config.socket, 1.0)
    try:
        await client.connect()
        await client.set_clocks(stage.uuids[:2], 900, 1500)
    except GuardError:
        pass  # who has the lease keeps it: what was set wrongly would be in the GPUs' log
    finally:
        await client.close()


async def _fault(stage: Stage) -> None:
    rng = stage.rng
    kind = rng.choice(("error", "error", "hang", "slow", "disobey"))
    call = SET if kind == "disobey" else rng.choice(CALLS)
    stage.gpus.inject(
        rng.randrange(stage.gpus.count),
        Fault(
            call,
            error=rng.choice(ERRORS) if kind == "error" else None,
            hang_s=rng.choice((0.1, 5.0)) if kind == "hang" else 0.0,
            slow_s=0.02 if kind == "slow" else 0.0,
            obedience=rng.choice(("wrong", "ignore")) if kind == "disobey" else "obey",
            count=rng.choice((1, 2, 5)),
        ),
    )


async def _cured(stage: Stage) -> None:
    stage.gpus.clear_faults(stage.rng.randrange(stage.gpus.count))


async def _reload(stage: Stage) -> None:
    stage.gpus.reload_driver(stage.rng.randrange(stage.gpus.count))


async def _foreign(stage: Stage) -> None:
    """Another program sets a clock, or takes its own away."""
    index = stage.rng.randrange(stage.gpus.count)
    stage.foreign.add(index)
    mhz = stage.rng.choice(stage.supported)
    stage.gpus.request_lock(index, stage.rng.choice((None, (mhz, mhz))))


async def _forbid(stage: Stage) -> None:
    stage.gpus.set_permission(stage.rng.choice(("deny", "allow", "allow")))


async def _load(stage: Stage) -> None:
    stage.gpus.publish(stage.rng.randrange(stage.gpus.count), *stage.rng.choice(((0.6, 0.3), (0.0, 0.0))))


async def _stall(stage: Stage) -> None:
    """The daemon's tick stops: no renewal."""
    stage.alive = False
    await asyncio.sleep(stage.rng.choice((0.3, 1.3)) * LEASE_S)
    stage.alive = True


async def _daemon_dies(stage: Stage) -> None:
    await stage.disconnect()
    stage.connect()


async def _guard_dies(stage: Stage) -> None:
    """What hangs in the driver comes back before: its thread would outlive the guard in this process."""
    for i in range(stage.gpus.count):
        stage.gpus.clear_faults(i)
    await _until(
        lambda: not any(g.worker.hung_calls for g in stage.guard.keeper.gpus), "hung calls come back"
    )
    await stage.guard.die()
    await stage.another_guard()


async def _guard_ends(stage: Stage) -> None:
    for i in range(stage.gpus.count):
        stage.gpus.clear_faults(i)
    await stage.guard.stop()
    await stage.another_guard()


async def _wait(stage: Stage) -> None:
    await asyncio.sleep(stage.rng.choice((0.1, 0.1, 0.5, 2.2)))


_TAKE = {
    "wish": _wish,
    "default": _default,
    "nonsense": _nonsense,
    "intruder": _intruder,
    "fault": _fault,
    "cure": _cured,
    "reload": _reload,
    "foreign": _foreign,
    "forbid": _forbid,
    "load": _load,
    "stall": _stall,
    "daemon dies": _daemon_dies,
    "guard dies": _guard_dies,
    "guard ends": _guard_ends,
    "wait": _wait,
}


def _recorded(stage: Stage) -> None:
    """A lock in force is on record, unless another program may have set it."""
    locked = {i for i in range(stage.gpus.count) if stage.gpus.lock_mhz(i) is not None}
    record = StateFile(stage.config.state_file).load()
    for i in locked - stage.foreign:
        if stage.uuids[i] not in record and stage.gpus.lock_mhz(i) is not None:
            raise ViolationError(f"GPU {i} has a lock that is not on record")


async def _settle(stage: Stage) -> None:
    """Take the faults away: groups agree, control works, and without a daemon nothing stays set."""
    _cure(stage)
    stage.foreign.clear()
    for i in range(stage.gpus.count):
        stage.gpus.request_lock(i, None)
    await _until(lambda: _agree(stage), "the GPUs of a group have the same lock")
    stage.wish("a", 900, 1200)
    await _until(lambda: stage.gpus.lock_mhz(0) == stage.gpus.lock_mhz(1) == (900, 1200), "control returns")
    await stage.disconnect()
    await _until(lambda: _all_default(stage), "driver default without a daemon")
    await _until(lambda: not StateFile(stage.config.state_file).load(), "an empty record")


def _cure(stage: Stage) -> None:
    stage.alive = True
    stage.gpus.set_permission("allow")
    for i in range(stage.gpus.count):
        stage.gpus.clear_faults(i)
        stage.gpus.publish(i, 0.0, 0.0)


def _agree(stage: Stage) -> bool:
    return all(len({stage.gpus.lock_mhz(i) for i in group}) == 1 for group in GROUPS.values())


def _all_default(stage: Stage) -> bool:
    return all(stage.gpus.lock_mhz(i) is None for i in range(stage.gpus.count))


def _log_in_order(calls: list[SetterCall], stage: Stage) -> None:
    supported = set(stage.supported)
    for call in calls:
        if call.call == RESET:
            continue
        if call.call != SET:
            raise ViolationError(f"a call the guard may not make: {call}")
        low, high = (int(part) for part in call.args.split(","))
        if not (MIN_MHZ <= low <= high <= MAX_MHZ and {low, high} <= supported):
            raise ViolationError(f"a clock that may not be set: {call}")


async def _until(holds: Callable[[], bool], what: str) -> None:
    until_s = asyncio.get_running_loop().time() + PATIENCE_S
    while not holds():
        if asyncio.get_running_loop().time() > until_s:
            raise ViolationError(f"never: {what}")
        await asyncio.sleep(0.01)
