"""Keeps a guard running as a child of the daemon, for single-machine use without systemd."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from kvwattd.config import Config
from kvwattd.guard.config import ANY_MHZ
from kvwattd.guard.protocol import GuardError
from kvwattd.guard.spawn import SpawnedGuard, spawn_guard

log = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0


class GuardChild:
    """Starts the guard, and starts it again when it ends; `run()` until cancelled."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._uuids: tuple[str, ...] = ()
        self._known = asyncio.Event()
        self._guard: SpawnedGuard | None = None

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
            while True:
                await self._one()
                await asyncio.sleep(RESTART_PAUSE_S)
        finally:
            if self._guard is not None:
                await self._guard.stop()

    async def _one(self) -> None:
        policy, own = self._config.policy, self._config.guard
        try:
            self._guard = await spawn_guard(
                own.socket,
                self._config.daemon.state_dir / "guard-state.json",
                self._uuids,
                min_mhz=policy.floor_mhz or 1,
                max_mhz=policy.ceiling_mhz or ANY_MHZ,
                lease_s=own.lease_s,
            )
        except GuardError as error:
            log.error("guard: cannot be started: %s", error)
            return
        log.info("guard: started as process %d", self._guard.pid)
        log.info("guard: ended with status %d", await self._guard.wait())


def _bounds(config: Config) -> tuple[int | None, int | None]:
    return config.policy.floor_mhz, config.policy.ceiling_mhz
