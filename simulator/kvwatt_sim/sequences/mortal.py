"""A guard inside this process that can die as by SIGKILL: then it touches neither driver nor disk."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path

from kvwattd.guard.clocks import ClockKeeper
from kvwattd.guard.config import GuardConfig
from kvwattd.guard.gpulocks import GpuLocks
from kvwattd.guard.nvml_session import NvmlCallError, NvmlSession
from kvwattd.guard.obedience import Readback
from kvwattd.guard.protocol import Code
from kvwattd.guard.recorder import Recorder
from kvwattd.guard.server import GuardServer
from kvwattd.guard.setters import ClockSetter
from kvwattd.guard.statefile import StateFile, StateFileError

START_DEADLINE_S = 2.0


class Life:
    """Shared by all parts of one guard. A process is gone only when its calls into the driver have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self.over = False

    @property
    def gone(self) -> bool:
        with self._lock:
            return self.over and not self._calls

    def __enter__(self) -> None:
        with self._lock:
            if self.over:
                raise NvmlCallError(Code.NVML, "this guard is dead")
            self._calls += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1


class MortalSetter:
    """The real setter, until the guard is dead."""

    def __init__(self, life: Life, setter: ClockSetter) -> None:
        self._life = life
        self._setter = setter

    def check(self, floor_mhz: int, target_mhz: int) -> None:
        with self._life:
            self._setter.check(floor_mhz, target_mhz)

    def set_range(self, floor_mhz: int, target_mhz: int) -> None:
        with self._life:
            self._setter.set_range(floor_mhz, target_mhz)

    def reset(self) -> None:
        with self._life:
            self._setter.reset()

    def read(self) -> Readback:
        with self._life:
            return self._setter.read()


class MortalStateFile(StateFile):
    """The real record, until the guard is dead."""

    def __init__(self, life: Life, path: Path) -> None:
        super().__init__(path)
        self._life = life

    def save(self, uuids: Iterable[str]) -> None:
        try:
            with self._life:
                super().save(uuids)
        except NvmlCallError as error:
            raise StateFileError(str(error)) from None


class MortalGuard:
    """One guard, as `kvwattd.guard.main` puts it together."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._life = Life()
        session = NvmlSession()
        self._state = MortalStateFile(self._life, config.state_file)
        recorder = Recorder(self._state, on_disk=None)
        self.keeper = ClockKeeper(
            setters=lambda uuid: MortalSetter(self._life, ClockSetter(session, uuid)),
            allowed=config.gpus,
            persist=recorder.persist,
            deadline_s=config.nvml_deadline_s,
        )
        self.server = GuardServer(config, self.keeper, recorder, asyncio.Event())
        self._recorder = recorder
        self._locks = GpuLocks(config.lock_dir)
        self._tick: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Undo what the record names, then serve: the order of the real guard."""
        self._locks.take(self._config.gpus)
        try:
            recorded = self._state.load()
        except StateFileError:
            recorded = frozenset(self._config.gpus)
        await self.keeper.recover(recorded, START_DEADLINE_S)
        await self.server.listen()
        self._tick = asyncio.create_task(self.server.tick())

    async def stop(self) -> None:
        """As by SIGTERM: what it set is reset, as far as the driver lets it."""
        await self.keeper.reset_all("the guard ends")
        await self.die()

    async def die(self) -> None:
        """As by SIGKILL."""
        self._life.over = True
        self.server.stopping.set()
        while not self._life.gone:  # noqa: ASYNC110  # threads end it
            await asyncio.sleep(0.002)
        if self._tick is not None:
            self._tick.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tick
        await self.server.close()
        await self.keeper.close()
        self._recorder.close()
        self._locks.release()
