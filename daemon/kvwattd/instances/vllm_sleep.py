"""vLLM's sleep mode on top of another backend, which starts and stops.

A request that reaches a sleeping vLLM hangs. So a sleep needs the router's word that the member is out, and
a server that holds no request; after it fell asleep it is asked again, and woken at once if one came in
between. What sleeps is the server's knowledge, not ours: after a restart of kvwatt it is asked, and while it
cannot be asked it is UNKNOWN.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass

import httpx

from kvwattd.instances.backend import Backend, BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.vllm_sleep_api import SleepApi
from kvwattd.telemetry.poller import new_client

_WAKE_TRIES = 3
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class SleepParams:
    """How to sleep, and how long it may take; durations in seconds.

    Args:
        level: 1 keeps the weights in main memory; 2 forgets them, and waking loads them from disk.
        look_s: of each question.
        sleep_s: from the call to its answer.
        wake_s: of each step of waking.
    """

    level: int = 1
    look_s: float = 2.0
    sleep_s: float = 120.0
    wake_s: float = 300.0


@dataclass(slots=True)
class _Move:
    """A sleep or a wake-up under way."""

    towards: BackendState
    task: asyncio.Task[None]


class SleepBackend:
    """Members that can sleep.

    Args:
        inner: starts and stops the same members.
        servers: member -> base URL of its vLLM server; members without one cannot sleep.
        params: level and deadlines.
        client: makes the HTTP client of one server.
        now: monotonic seconds, of the same clock as `Withdrawn.at_s`.

    Raises ValueError for a level other than 1 or 2.
    """

    name = "vllm-sleep"
    can_sleep = True

    def __init__(
        self,
        inner: Backend,
        servers: Mapping[str, str],
        params: SleepParams | None = None,
        *,
        client: Callable[[], httpx.AsyncClient] = new_client,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._params = params or SleepParams()
        if self._params.level not in (1, 2):
            raise ValueError(f"sleep level = {self._params.level}: 1 or 2 is accepted")
        self._inner = inner
        self._apis = {name: SleepApi(url, client(), self._params.look_s) for name, url in servers.items()}
        self._now = now
        self._moves: dict[str, _Move] = {}
        self._failed: dict[str, str] = {}
        self._given_up: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        # A shutdown of vLLM 0.32 hung, it seems because a question to its engine came in meanwhile: none is
        # in flight when a stop is given, and none is asked after it.
        self._asking = {name: asyncio.Lock() for name in self._apis}
        self._stopped: set[str] = set()
        self._in_service_s: dict[str, float] = {}  # proofs from before are void

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a member is FAILED or UNKNOWN as of the last `states`, or why its last sleep was given up."""
        inner: Mapping[str, str] = getattr(self._inner, "reasons", {})
        return {**inner, **self._given_up, **self._reasons}

    async def states(self) -> Mapping[str, BackendState]:
        """What the inner backend says, and of those that run, what they say themselves."""
        states = dict(await self._inner.states())
        self._reasons = {}
        asked = [member for member in self._apis if states.get(member) is BackendState.RUNNING]
        for member in self._failed.keys() - set(asked):
            del self._failed[member]
        self._stopped &= set(asked)  # the others are seen to be on their way, or gone
        states.update(zip(asked, await asyncio.gather(*map(self._look, asked)), strict=True))
        return states

    async def start(self, member: str) -> None:
        """The inner backend's."""
        self._in_service_s[member] = self._now()
        await self._inner.start(member)
        self._stopped.discard(member)

    async def sleep(self, member: str, withdrawn: Withdrawn) -> None:
        """Refused without the router's word for this member since it was last woken, or with requests."""
        api = self._api(member)
        if withdrawn.member != member or withdrawn.at_s < self._in_service_s.get(member, withdrawn.at_s):
            raise BackendError(
                Cause.IN_ROUTER, f"{member}: the proof is of {withdrawn.member} at {withdrawn.at_s:.1f} s"
            )
        if self._moving(member, BackendState.ASLEEP) or await api.asleep():
            return
        await self._refuse_busy(member, api, "cannot sleep")
        self._begin(member, BackendState.ASLEEP, self._fall_asleep(member, api))

    async def wake(self, member: str) -> None:
        """Nothing to do where it is awake; refused where it does not run or is falling asleep."""
        api = self._api(member)
        if self._moving(member, BackendState.RUNNING):
            return
        state = (await self._inner.states()).get(member, BackendState.UNKNOWN)
        if state is not BackendState.RUNNING:
            raise BackendError(Cause.STATE, f"{member} is {state}: it cannot be woken")
        self._in_service_s[member] = self._now()
        if member in self._failed or await api.asleep() or await api.paused():
            self._begin(member, BackendState.RUNNING, self._wake(member, api))

    async def stop(self, member: str) -> None:
        """The inner backend's, unless requests are known to run. A server that cannot be asked is stopped."""
        if member in self._apis:
            try:
                count = await self._apis[member].requests()
            except BackendError:
                count = 0
            if count > 0:
                raise BackendError(Cause.BUSY, f"{member} has {count} requests: it is not stopped")
        await self.cut(member)

    async def cut(self, member: str) -> None:
        """Stopped whatever runs: for the one member whose drain was late and whose operator chose so."""
        if (move := self._moves.pop(member, None)) is not None:
            move.task.cancel()
        if member not in self._asking:
            await self._inner.stop(member)
            return
        async with self._asking[member]:
            self._stopped.add(member)
            try:
                await self._inner.stop(member)
            except BackendError:
                self._stopped.discard(member)
                raise

    async def close(self) -> None:
        """What is under way in the servers goes on there."""
        moves = [move.task for move in self._moves.values()]
        for task in moves:
            task.cancel()
        await asyncio.gather(*moves, return_exceptions=True)
        for api in self._apis.values():
            await api.close()
        await self._inner.close()

    def _api(self, member: str) -> SleepApi:
        try:
            return self._apis[member]
        except KeyError:
            raise BackendError(Cause.UNKNOWN_MEMBER, f"{member!r} is none of {sorted(self._apis)}") from None

    def _moving(self, member: str, towards: BackendState) -> bool:
        """Whether it is on its way there. Raises BackendError where it is on its way elsewhere."""
        move = self._moves.get(member)
        if move is None or move.task.done():
            return False
        if move.towards is not towards:
            raise BackendError(Cause.STATE, f"{member} is on its way to {move.towards}")
        return True

    def _begin(self, member: str, towards: BackendState, moving: Coroutine[None, None, None]) -> None:
        self._failed.pop(member, None)
        self._given_up.pop(member, None)
        self._moves[member] = _Move(towards, asyncio.create_task(moving, name=f"{member}-{towards}"))

    async def _look(self, member: str) -> BackendState:
        move = self._moves.get(member)
        if move is not None and not move.task.done():
            return BackendState.STOPPING if move.towards is BackendState.ASLEEP else BackendState.STARTING
        if member in self._failed:
            self._reasons[member] = self._failed[member]
            return BackendState.FAILED
        async with self._asking[member]:
            return BackendState.STOPPING if member in self._stopped else await self._ask(member)

    async def _ask(self, member: str) -> BackendState:
        try:
            if await self._apis[member].asleep():
                return BackendState.ASLEEP
            if not await self._apis[member].paused():
                return BackendState.RUNNING
        except BackendError as error:
            if error.cause in (Cause.UNREACHABLE, Cause.UNSUPPORTED):
                return (
                    BackendState.RUNNING
                )  # it does not listen yet, or knows no sleep: nothing can hang in it
            self._reasons[member] = error.detail
            return BackendState.UNKNOWN
        self._reasons[member] = "it holds requests (paused) though nothing sleeps; wake it"
        return BackendState.FAILED

    async def _refuse_busy(self, member: str, api: SleepApi, what: str) -> None:
        try:
            count = await api.requests()
        except BackendError as error:
            raise BackendError(
                Cause.BUSY, f"{member} {what}: whether requests run is unknown: {error}"
            ) from None
        if count > 0:
            raise BackendError(Cause.BUSY, f"{member} {what}: it has {count} requests")

    async def _fall_asleep(self, member: str, api: SleepApi) -> None:
        """Ends with the server asleep and empty, or awake, or in `_failed`."""
        problem = ""
        try:
            await api.sleep(self._params.level, self._params.sleep_s)
        except BackendError as error:
            problem = error.detail
        try:
            if await api.fell_asleep() and await api.requests() == 0:
                return  # also where the call was carried out and its answer got lost
            problem = problem or "a request came in while it fell asleep"
        except BackendError as error:
            problem = problem or error.detail
        self._given_up[member] = f"its sleep failed and it was woken: {problem}"
        await self._wake(member, api, f"its sleep failed ({problem}) and ")

    async def _wake(self, member: str, api: SleepApi, before: str = "") -> None:
        problem = ""
        for attempt in range(_WAKE_TRIES):
            try:
                await self._wake_once(api)
            except BackendError as error:
                problem = error.detail
                await asyncio.sleep(_RETRY_S * 2**attempt)
            else:
                return
        self._failed[member] = f"{before}it cannot be woken: {problem}"

    async def _wake_once(self, api: SleepApi) -> None:
        if await api.asleep() and not await api.weights_kept(otherwise=self._params.level == 1):
            await api.wake_and_reload(self._params.wake_s)
        else:  # also where nothing sleeps: it lets requests run again that a failed sleep holds
            await api.wake_up(self._params.wake_s)
        if await api.paused():
            await api.resume()
        if await api.asleep() or await api.paused():
            raise BackendError(Cause.FAILED, "it still sleeps after it was woken")
