"""Clocks of the allow-listed GPUs: set as a group, rolled back as a group, reset until it succeeds.

Order per GPU is the order of submission (one worker queue each), and the record is on disk before a set is
submitted. So a reset submitted after a set always lands after it, except when the set hangs: then the GPU is
reset now, and once more when the hung call comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

from kvwattd.guard.guarded_gpu import RETRY_FIRST_S, GuardedGpu, Setter
from kvwattd.guard.nvml_session import NvmlCallError
from kvwattd.guard.protocol import Code, GuardError, GuardGpu
from kvwattd.guard.worker import CallTimeoutError

log = logging.getLogger(__name__)

RETRY_MAX_S = 5.0
_NEVER_SET = frozenset({Code.NO_PERMISSION, Code.NOT_SUPPORTED, Code.MIG})


class ClockKeeper:
    """Sets and resets; `persist(uuids)` must have the record on disk when it returns, or raise GuardError."""

    def __init__(
        self,
        setters: Callable[[str], Setter],
        allowed: Sequence[str],
        persist: Callable[[Callable[[], frozenset[str]]], Awaitable[None]],
        deadline_s: float,
    ) -> None:
        self._make_setter = setters
        self._allowed = tuple(allowed)
        self._persist = persist
        self._deadline_s = deadline_s
        self._gpus = {uuid: GuardedGpu(uuid, setters(uuid)) for uuid in allowed}
        self._epoch = 0  # counts reset_all: a set that began before one must not land after it
        self._background: set[asyncio.Task[None]] = set()
        self.rollbacks = 0

    @property
    def touched(self) -> frozenset[str]:
        """GPUs that may carry a clock of ours."""
        return frozenset(gpu.uuid for gpu in self._gpus.values() if gpu.touched)

    @property
    def clocks_set(self) -> bool:
        return any(gpu.range_mhz is not None for gpu in self._gpus.values())

    @property
    def gpus(self) -> tuple[GuardedGpu, ...]:
        return tuple(self._gpus.values())

    def views(self) -> tuple[GuardGpu, ...]:
        now_s = asyncio.get_running_loop().time()
        return tuple(gpu.view(now_s) for gpu in self._gpus.values())

    async def warm_up(self, deadline_s: float) -> None:
        """Initialise NVML and read the supported clocks, to make the first set quick; failures are logged."""
        await asyncio.gather(*(self._probe(gpu, deadline_s) for gpu in self._gpus.values()))

    async def recover(self, recorded: Iterable[str], deadline_s: float) -> None:
        """Undo what an earlier guard left behind, whether still allowed or not."""
        for uuid in recorded:
            gpu = self._gpus.setdefault(uuid, GuardedGpu(uuid, self._make_setter(uuid)))
            gpu.touched = True
        left = self.touched
        if left:
            log.warning("resetting the clocks an earlier guard set on %s", ", ".join(sorted(left)))
            await self._reset_gpus([self._gpus[uuid] for uuid in left], deadline_s)

    async def set_group(self, uuids: Sequence[str], floor_mhz: int, target_mhz: int) -> None:
        """Lock all or none. Raises GuardError; a partial failure leaves the whole group at driver default."""
        gpus = [self._known(uuid) for uuid in uuids]
        for gpu in gpus:
            gpu.refuse_unless_ready()
        epoch = self._epoch
        await self._all(gpus, lambda gpu: self._call(gpu, lambda: gpu.setter.check(floor_mhz, target_mhz)))
        self._still(epoch)
        for gpu in gpus:
            gpu.refuse_unless_ready()
        await self._record(gpus)
        self._still(epoch)
        try:
            await self._all(gpus, lambda gpu: self._set_one(gpu, floor_mhz, target_mhz))
        except GuardError:
            self.rollbacks += 1
            await self._roll_back(gpus)
            raise
        for gpu in gpus:
            gpu.group = tuple(uuids)
        self._still(epoch)

    async def reset(self, uuids: Sequence[str]) -> None:
        """Undo our clocks on these GPUs and leave those we did not set. Raises GuardError on failure."""
        gpus = [self._known(uuid) for uuid in uuids]
        await self._reset_gpus([gpu for gpu in gpus if gpu.touched], self._deadline_s)
        for gpu in gpus:
            if gpu.touched:
                code = Code.HUNG if gpu.worker.hung_calls else Code.RESETTING
                raise GuardError(code, f"GPU {gpu.uuid}: {gpu.fault or 'a call hangs'}; the reset is retried")

    async def reset_all(self, why: str) -> None:
        """Undo everything we set. Failures stay recorded and are retried by `retry_due`."""
        self._epoch += 1
        gpus = [gpu for gpu in self._gpus.values() if gpu.touched]
        if gpus:
            log.warning("%s: resetting clocks of %s", why, ", ".join(gpu.uuid for gpu in gpus))
            await self._reset_gpus(gpus, self._deadline_s)

    def leave(self, gpu: GuardedGpu) -> None:
        """Another program's clock is on it: ours is gone, so nothing is left to undo and nothing is written.

        The rest of its group goes to driver default.
        """
        rest = [uuid for uuid in gpu.group if uuid != gpu.uuid]
        self._release(gpu)
        gpu.touched, gpu.retry_at_s = False, None
        self._start(self.undo(rest))

    async def undo(self, uuids: Iterable[str]) -> None:
        """Driver default on those we set, whoever asks; failures are retried. Never raises GuardError."""
        gpus = [self._gpus[uuid] for uuid in uuids if self._gpus[uuid].touched]
        for gpu in gpus:
            self._release(gpu)
        await self._reset_gpus(gpus, self._deadline_s)

    def undo_group(self, gpu: GuardedGpu) -> None:
        """The same for a GPU and all that were set with it, in the background."""
        self._start(self.undo({gpu.uuid, *gpu.group}))

    def _release(self, gpu: GuardedGpu) -> None:
        gpu.range_mhz, gpu.group = None, ()
        gpu.watch.on_change(None, asyncio.get_running_loop().time())

    def retry_due(self, now_s: float) -> None:
        """Start another attempt for each GPU whose reset failed and is due; never waits."""
        for gpu in self._gpus.values():
            if gpu.retry_at_s is not None and now_s >= gpu.retry_at_s:
                gpu.retry_at_s = None
                self._start(self._reset_gpus([gpu], self._deadline_s))

    async def close(self) -> None:
        """Stop background work and let the workers end; hung ones are left behind."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for gpu in self._gpus.values():
            gpu.close()

    def _known(self, uuid: str) -> GuardedGpu:
        if uuid not in self._allowed:
            allowed = ", ".join(self._allowed)
            raise GuardError(Code.UNKNOWN_GPU, f"gpus: {uuid!r} is not on this guard's list ({allowed})")
        return self._gpus[uuid]

    def _still(self, epoch: int) -> None:
        if epoch != self._epoch:
            raise GuardError(
                Code.LEASE_EXPIRED, "the lease ended while the clocks were being set; they were reset"
            )

    async def _record(self, gpus: Sequence[GuardedGpu]) -> None:
        fresh = [gpu for gpu in gpus if not gpu.touched]
        now_s = asyncio.get_running_loop().time()
        for gpu in gpus:
            gpu.touched = True
            gpu.order += 1
            gpu.watch.on_change(gpu.range_mhz, now_s)  # what is read until the set lands says nothing
        try:
            await self._persist(lambda: self.touched)
        except GuardError:
            for gpu in fresh:
                gpu.touched = False
            raise

    async def _set_one(self, gpu: GuardedGpu, floor_mhz: int, target_mhz: int) -> None:
        order = gpu.order
        was_set = gpu.range_mhz is not None
        gpu.range_mhz = (floor_mhz, target_mhz)
        gpu.watch.on_change(gpu.range_mhz, asyncio.get_running_loop().time())
        try:
            await self._call(gpu, lambda: gpu.setter.set_range(floor_mhz, target_mhz))
        except GuardError as error:
            if gpu.order == order:
                gpu.range_mhz = None
                gpu.watch.on_change(None, asyncio.get_running_loop().time())
                # The driver refused before doing anything, and nothing of ours was there: nothing to undo.
                gpu.touched = gpu.touched and (was_set or error.code not in _NEVER_SET)
            raise

    async def _roll_back(self, gpus: Sequence[GuardedGpu]) -> None:
        """A hung GPU is reset in the background: the others' default must not wait for it."""
        stuck = [gpu for gpu in gpus if gpu.touched and gpu.worker.hung_calls]
        rest = [gpu for gpu in gpus if gpu.touched and not gpu.worker.hung_calls]
        log.warning("set failed on part of a group: resetting %s", ", ".join(gpu.uuid for gpu in gpus))
        if stuck:
            self._start(self._reset_gpus(stuck, self._deadline_s))
        await self._reset_gpus(rest, self._deadline_s)

    async def _reset_gpus(self, gpus: Sequence[GuardedGpu], deadline_s: float) -> None:
        await asyncio.gather(*(self._reset_one(gpu, deadline_s) for gpu in gpus))
        await self.save_record()

    async def save_record(self) -> None:
        """Best effort: a failure is told, leaves a record of more GPUs than needed, and is tried again."""
        with contextlib.suppress(GuardError):
            await self._persist(lambda: self.touched)

    async def _reset_one(self, gpu: GuardedGpu, deadline_s: float) -> None:
        order = gpu.order
        gpu.range_mhz = None
        gpu.watch.on_change(None, asyncio.get_running_loop().time())
        try:
            await self._call(gpu, gpu.setter.reset, deadline_s)
        except GuardError as error:
            log.error("reset failed, will be retried: %s", error)
            self._retry_later(gpu)
            return
        gpu.retry_at_s, gpu.retry_delay_s = None, RETRY_FIRST_S
        if gpu.order == order and not gpu.worker.hung_calls:
            gpu.touched = False

    def _retry_later(self, gpu: GuardedGpu) -> None:
        gpu.retry_at_s = asyncio.get_running_loop().time() + gpu.retry_delay_s
        gpu.retry_delay_s = min(2 * gpu.retry_delay_s, RETRY_MAX_S)

    def _came_back(self, gpu: GuardedGpu) -> None:
        """A hung call returned: whatever it did late is undone."""
        log.warning("GPU %s: a hung NVML call came back", gpu.uuid)
        if gpu.touched:
            self._start(self._reset_gpus([gpu], self._deadline_s))

    async def _call(
        self, gpu: GuardedGpu, function: Callable[[], None], deadline_s: float | None = None
    ) -> None:
        """Run in the GPU's worker; every failure becomes a GuardError and the GPU's `fault`."""
        limit_s = self._deadline_s if deadline_s is None else deadline_s
        try:
            await gpu.worker.call(function, limit_s, on_late=lambda: self._came_back(gpu))
        except CallTimeoutError as error:
            gpu.fault = f"GPU {gpu.uuid}: {error}"
            raise GuardError(Code.HUNG, gpu.fault) from None
        except NvmlCallError as error:
            if error.code is not Code.REFUSED_CLOCK:  # a wrong request is not the GPU's fault
                gpu.fault = error.message
            raise GuardError(error.code, error.message) from None
        gpu.fault = None

    async def _probe(self, gpu: GuardedGpu, deadline_s: float) -> None:
        try:
            await self._call(gpu, lambda: gpu.setter.check(0, 0), deadline_s)
        except GuardError as error:
            if error.code != Code.REFUSED_CLOCK:
                log.error("%s", error)

    async def _all(self, gpus: Sequence[GuardedGpu], each: Callable[[GuardedGpu], Awaitable[None]]) -> None:
        """On all at once, to the end; then the first failure, if any."""
        results = await asyncio.gather(*(each(gpu) for gpu in gpus), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
