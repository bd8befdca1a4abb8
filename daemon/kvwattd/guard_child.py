"""Keeps a guard running as a child of the daemon, for single-machine use without systemd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from kvwattd.config import Config
from kvwattd.guard.config import ANY_MHZ
from kvwattd.guard.protocol import GuardError
from kvwattd.guard.spawn import SpawnedGuard, spawn_guard

log = logging.getLogger(__name__)

RESTART_PAUSE_S, LONGEST_PAUSE_S = 0.2, 10.0
SOUND_AFTER_S = 10.0  # a guard that ended sooner is not started again at once
# A guard waits for nothing that could keep it from answering; one miss may be this process's own stall.
WATCHDOG_PERIOD_S, WATCHDOG_MISSES = 0.5, 3
# One that only cannot take a connection resets its clocks when told to end, and needs nothing open for it.
LAST_WORD_S = 0.5


class GuardChild:
    """Starts the guard, and starts it again when it ends; `run()` until cancelled."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._uuids: tuple[str, ...] = ()
        self._known = asyncio.Event()
        self._guard: SpawnedGuard | None = None
        self._failure: str | None = None

    async def allow(self, uuids: Sequence[str]) -> None:
        """The GPUs this daemon's instances run on: the guard's allow-list. A new one needs a new guard."""
        wider = not set(uuids) <= set(self._uuids)
        self._uuids = tuple(dict.fromkeys(uuids))
        self._known.set()
        if wider:
            await self._stop()

    async def configure(self, config: Config) -> None:
        """Bounds are given to a guard when it starts: other ones need a new guard."""
        changed = _bounds(config) != _bounds(self._config)
        self._config = config
        if changed:
            await self._stop()

    async def _stop(self) -> None:
        """End this guard, which resets its clocks; `run` starts the next."""
        if self._guard is not None:
            await self._guard.stop()

    async def run(self) -> None:
        """One guard after another."""
        await self._known.wait()
        try:
            pause_s, loop = RESTART_PAUSE_S, asyncio.get_running_loop()
            while True:
                started_s = loop.time()
                await self._one()
                soon = loop.time() - started_s < SOUND_AFTER_S
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S) if soon else RESTART_PAUSE_S
        finally:
            if self._guard is not None:
                await self._guard.stop()

    async def _one(self) -> None:
        uuids, given = self._uuids, self._config
        policy, own = given.policy, given.guard
        try:
            self._guard = await spawn_guard(
                own.socket,
                given.daemon.state_dir / "guard-state.json",
                uuids,
                min_mhz=policy.floor_mhz or 1,
                max_mhz=policy.ceiling_mhz or ANY_MHZ,
                lease_s=own.lease_s,
            )
        except (GuardError, OSError) as error:  # OSError: no descriptor, no memory, no room for its folder
            if self._failure != str(error):  # told once, tried for ever
                log.error("guard: cannot be started: %s", error)
            self._failure = str(error)
            return
        self._failure = None
        log.info("guard: started as process %d", self._guard.pid)
        if _bounds(given) != _bounds(self._config) or not set(self._uuids) <= set(uuids):
            await self._stop()  # asked for while this one started, when there was none to end
            return
        watching = asyncio.create_task(_watch(self._guard))
        try:
            log.info("guard: ended with status %d", await self._guard.wait())
        finally:
            watching.cancel()


async def _watch(guard: SpawnedGuard) -> None:
    """What a service manager's watchdog does: end a guard that no longer answers, so that another resets."""
    missed = 0
    while missed < WATCHDOG_MISSES:
        await asyncio.sleep(WATCHDOG_PERIOD_S)
        with contextlib.suppress(OSError):  # it could not be asked: the guard of one in need is not ended
            missed = 0 if await guard.answers(WATCHDOG_PERIOD_S) else missed + 1
    log.error("guard: process %d does not answer: ended, the next one undoes what it recorded", guard.pid)
    await guard.stop(LAST_WORD_S)


def _bounds(config: Config) -> tuple[int | None, int | None]:
    return config.policy.floor_mhz, config.policy.ceiling_mhz
