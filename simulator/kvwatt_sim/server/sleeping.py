"""vLLM's sleep: the routes of its development mode, with the time that they take and the ways they fail.

As in vLLM (docs/features/sleep_mode): a sleeping server takes requests and never answers them; it counts as
sleeping until every tag is awake; level 2 forgets the weights, and waking does not bring them back: that is
`/collective_rpc` with `reload_weights`. Calls to the engine stand in one queue, so `/is_sleeping` is silent
while weights are moved; `/health` and `/metrics` answer throughout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict

from kvwatt_sim.server.plant import EnginePlant, PauseMode

TAGS = frozenset({"weights", "kv_cache"})
ASLEEP_MEMORY_SHARE = 0.05  # CUDA context and graphs stay


@dataclass(frozen=True, slots=True)
class SleepTimes:
    """Seconds that the moving of weights takes. `reload_s`: from disk, after level 2."""

    sleep_s: float = 0.0
    wake_s: float = 0.0
    reload_s: float = 0.0


class SleepFault(StrEnum):
    """How a call goes wrong."""

    OK = "ok"
    REFUSED = "refused"  # 500 before anything was done
    HALF = "half"  # 500 with requests held already and the memory kept
    LOST = "lost"  # carried out, and the connection answers 500
    HANG = "hang"  # no answer, nothing done, until the fault is changed


class SleepFaults(BaseModel):
    """Body of `POST /_sim/sleep`."""

    model_config = ConfigDict(extra="forbid")

    sleep: SleepFault = SleepFault.OK
    wake_up: SleepFault = SleepFault.OK
    reload_weights: SleepFault = SleepFault.OK


class Rpc(BaseModel):
    """Body of `POST /collective_rpc`."""

    method: str


class Sleeper:
    """What is asleep, and the queue before the engine. `pause_counts`: paused is told as asleep."""

    def __init__(
        self,
        plant: EnginePlant,
        times: SleepTimes,
        on_memory: Callable[[float], None],
        pause_counts: bool = True,
    ) -> None:
        self._plant = plant
        self._pause_counts = pause_counts
        self._times = times
        self._on_memory = on_memory
        self._queue = asyncio.Lock()
        self._asleep: set[str] = set()
        self.faults = SleepFaults()
        self.weights_loaded = True

    async def sleep(self, level: int, mode: PauseMode) -> None:
        """Level 0 only pauses."""
        async with self._queue:
            await self._misbehave(self.faults.sleep, HTTPStatus.INTERNAL_SERVER_ERROR)
            if self.faults.sleep is SleepFault.HALF:
                await self._plant.pause(mode)
                raise HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, "out of CPU memory")
            await self._plant.sleep(level, mode)
            if level > 0:
                await asyncio.sleep(self._times.sleep_s)
                self._asleep |= TAGS
                self.weights_loaded = self.weights_loaded and level == 1
                self._on_memory(ASLEEP_MEMORY_SHARE)
            _lose(self.faults.sleep)

    async def wake_up(self, tags: list[str] | None) -> None:
        """Requests are answered again when nothing is asleep any more."""
        if unknown := set(tags or ()) - TAGS:
            raise HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, f"unknown tags {sorted(unknown)}")
        async with self._queue:
            await self._misbehave(self.faults.wake_up, HTTPStatus.INTERNAL_SERVER_ERROR)
            if self._asleep & set(tags or TAGS):
                await asyncio.sleep(self._times.wake_s)
                self._asleep -= set(tags or TAGS)
                self._on_memory(ASLEEP_MEMORY_SHARE if self._asleep else 1.0)
            if self.faults.wake_up is SleepFault.HALF:
                raise HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, "out of GPU memory")
            if not self._asleep:
                self._plant.wake_up()
            _lose(self.faults.wake_up)

    async def is_sleeping(self) -> bool:
        """Waits its turn behind a sleep or a wake-up."""
        async with self._queue:
            return bool(self._asleep) or self._plant.asleep or (self._pause_counts and self._plant.paused)

    async def collective_rpc(self, method: str) -> list[None]:
        """Only `reload_weights` is known."""
        async with self._queue:
            if method != "reload_weights":
                raise HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, f"no method {method!r}")
            await self._misbehave(self.faults.reload_weights, HTTPStatus.INTERNAL_SERVER_ERROR)
            await asyncio.sleep(self._times.reload_s)
            self.weights_loaded = True
            _lose(self.faults.reload_weights)
        return [None]

    async def _misbehave(self, fault: SleepFault, status: HTTPStatus) -> None:
        if fault is SleepFault.REFUSED:
            raise HTTPException(status, "refused")
        while fault is SleepFault.HANG and SleepFault.HANG in self.faults.model_dump().values():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _lose(fault: SleepFault) -> None:
    if fault is SleepFault.LOST:
        raise HTTPException(HTTPStatus.INTERNAL_SERVER_ERROR, "lost")


def attach_sleep(app: FastAPI, sleeper: Sleeper) -> None:
    """vLLM has these routes with VLLM_SERVER_DEV_MODE=1 only."""

    @app.post("/sleep")
    async def sleep(
        level: Annotated[int, Query(ge=0, le=2)] = 1, mode: PauseMode = PauseMode.ABORT
    ) -> dict[str, object]:
        await sleeper.sleep(level, mode)
        return {"status": "sleeping", "level": level}

    @app.post("/wake_up")
    async def wake_up(tags: Annotated[list[str] | None, Query()] = None) -> dict[str, object]:
        await sleeper.wake_up(tags)
        return {"status": "awake", "tags": tags}

    @app.get("/is_sleeping")
    async def is_sleeping() -> dict[str, bool]:
        return {"is_sleeping": await sleeper.is_sleeping()}

    @app.post("/collective_rpc")
    async def collective_rpc(rpc: Rpc) -> dict[str, list[None]]:
        return {"results": await sleeper.collective_rpc(rpc.method)}

    @app.post("/_sim/sleep")
    async def misbehave(faults: SleepFaults) -> dict[Literal["status"], str]:
        sleeper.faults = faults
        return {"status": "ok"}
