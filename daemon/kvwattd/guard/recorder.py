"""Keeps the state file true, from the event loop, without ever waiting on the disk beyond a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from kvwattd.guard.protocol import Code, GuardError
from kvwattd.guard.statefile import StateFile, StateFileError
from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker

log = logging.getLogger(__name__)

WRITE_DEADLINE_S = 1.0
RETRY_S = 1.0


class Recorder:
    """Writes the record when it differs from what is on disk."""

    def __init__(self, state: StateFile, on_disk: frozenset[str] | None) -> None:
        self._state = state
        self._on_disk = on_disk  # None: unknown
        self._lock = asyncio.Lock()
        self._worker = DeadlineWorker("state-file")
        self._stale = False
        self._retry_at_s = 0.0
        self._failure: str | None = None  # told once, not at every attempt

    def needs_rewrite(self, now_s: float) -> bool:
        """A write failed or came back late: the file may not say what it should, and a try is due."""
        return self._stale and now_s >= self._retry_at_s

    @property
    def busy(self) -> bool:
        return self._lock.locked()

    async def persist(self, wanted: Callable[[], frozenset[str]]) -> None:
        """On disk when this returns. Raises GuardError(state_file)."""
        async with self._lock:
            uuids = wanted()  # read under the lock: the last writer writes the truth
            if uuids == self._on_disk and not self._stale:
                return
            self._on_disk, self._stale = None, True
            try:
                await self._worker.call(
                    lambda: self._state.save(uuids), WRITE_DEADLINE_S, on_late=self._came_back
                )
            except (StateFileError, CallTimeoutError) as error:
                self._failed(str(error))
                raise GuardError(Code.STATE_FILE, f"clocks are not set without a record: {error}") from None
            self._on_disk, self._stale, self._failure = uuids, False, None

    def _failed(self, told: str) -> None:
        self._retry_at_s = asyncio.get_running_loop().time() + RETRY_S
        if told != self._failure:
            log.error("clocks are not set without a record: %s", told)
        self._failure = told

    def close(self) -> None:
        self._worker.close()

    def _came_back(self) -> None:
        log.warning("a hung write of the state file came back; writing it again")
        self._stale = True
