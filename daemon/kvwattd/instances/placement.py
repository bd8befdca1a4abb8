"""Looks at GPUs before something is started on them, and refuses with the reason.

What is on a GPU is read anew for each start. Between the order to start and the first byte that the new
process takes a GPU looks free; so it is claimed for the member, for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from kvwattd.guard.nvml_session import NvmlCallError, NvmlSession
from kvwattd.guard.protocol import Code
from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker
from kvwattd.instances.backend import BackendError, Cause
from kvwattd.instances.placement_reading import Use, XidWatch, read_use
from kvwattd.instances.placement_state import GpuState, GpuUse, choose, judge
from kvwattd.telemetry.nvml_reading import identify

Owners = Callable[[], Awaitable[Mapping[str, Collection[int]]]]


@dataclass(frozen=True, slots=True)
class Need:
    """What a member runs on.

    Args:
        gpus: exactly these (UUID or index).
        count, pool: any `count` of these, where `gpus` is empty.
    """

    gpus: tuple[str, ...] = ()
    count: int = 0
    pool: tuple[str, ...] = ()

    @property
    def candidates(self) -> tuple[str, ...]:
        return self.gpus or self.pool


@dataclass(frozen=True, slots=True)
class _Claim:
    member: str
    until_s: float


class Placement:
    """GPUs of the members.

    Args:
        needs: member -> what it runs on.
        owners: member -> process ids, from the backend (`processes`).
        deadline_s: of each reading.
        claim_s: how long a start may take until its processes show on the GPU.
        now: monotonic seconds.

    Raises ValueError for a need that nothing can fill.
    """

    def __init__(
        self,
        needs: Mapping[str, Need],
        owners: Owners,
        *,
        deadline_s: float = 2.0,
        claim_s: float = 600.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        for member, need in needs.items():
            if not need.gpus and not 0 < need.count <= len(need.pool):
                accepted = f"1 to {len(need.pool)}, the size of its pool"
                raise ValueError(
                    f"instance {member!r}: gpu count = {need.count}: {accepted}, or a list of GPUs"
                )
        self._needs = dict(needs)
        self._owners = owners
        self._deadline_s = deadline_s
        self._claim_s = claim_s
        self._now = now
        self._session = NvmlSession()
        self._workers: dict[str, DeadlineWorker] = {}
        self._watch = XidWatch(self._session)
        self._watcher = DeadlineWorker("xid")
        self._uuids: dict[str, str] = {}  # selector -> UUID, once found
        self._claims: dict[str, _Claim] = {}
        self._placing = asyncio.Lock()

    async def look(self) -> Mapping[str, GpuUse]:
        """Every GPU that a member may run on, by UUID (by selector where there is none). Never raises."""
        selectors = dict.fromkeys(gpu for need in self._needs.values() for gpu in need.candidates)
        uses = await self._look(selectors)
        self._forget_claims(uses)
        return {
            uuid: replace(use, claimed=self._claims[uuid].member) if uuid in self._claims else use
            for uuid, use in uses.items()
        }

    async def place(self, member: str) -> tuple[str, ...]:
        """UUIDs to start it on, claimed for it. Raises BackendError(placement) with what is in the way."""
        need = self._needs.get(member)
        if need is None:
            raise BackendError(Cause.UNKNOWN_MEMBER, f"{member!r} is none of {sorted(self._needs)}")
        async with self._placing:
            uses = await self._look(need.candidates)
            self._forget_claims(uses)
            refused = {uuid: told for uuid, use in uses.items() if (told := self._against(member, uuid, use))}
            order = tuple(self._uuids.get(gpu, gpu) for gpu in need.candidates)
            usable = uses.keys() - refused.keys()
            chosen = choose(need.count or len(order), order, usable)
            if not chosen:
                told = "; ".join(f"{uuid} {why}" for uuid, why in refused.items())
                raise BackendError(Cause.PLACEMENT, f"{member} is not started: {told}")
            claim = _Claim(member, self._now() + self._claim_s)
            self._claims.update(dict.fromkeys(chosen, claim))
            return chosen

    def release(self, member: str) -> None:
        """Its start was given up: what was claimed for it is free for others."""
        self._claims = {gpu: claim for gpu, claim in self._claims.items() if claim.member != member}

    def close(self) -> None:
        """Let the threads end; never waits for them."""
        for worker in (*self._workers.values(), self._watcher):
            worker.close()

    def _against(self, member: str, uuid: str, use: GpuUse) -> str:
        claim = self._claims.get(uuid)
        if claim is not None and claim.member != member:
            return f"is claimed by {claim.member}, which is starting"
        if use.state is GpuState.FREE:
            return ""
        by = f" ({', '.join(use.members)})" if use.members else ""
        return f"is {use.state}{by}{': ' if use.reason else ''}{use.reason}"

    def _forget_claims(self, uses: Mapping[str, GpuUse]) -> None:
        now_s = self._now()
        for uuid, claim in list(self._claims.items()):
            arrived = uuid in uses and claim.member in uses[uuid].members
            if arrived or now_s >= claim.until_s:
                del self._claims[uuid]

    async def _look(self, selectors: Iterable[str]) -> dict[str, GpuUse]:
        asked = list(selectors)
        try:
            owners: Mapping[str, Collection[int]] | None = await self._owners()
        except BackendError:
            owners = None
        found = await asyncio.gather(*map(self._read, asked))
        xids = await self._xids([use.uuid for use in found if isinstance(use, Use)])
        uses = {}
        for selector, use in zip(asked, found, strict=True):
            if isinstance(use, Use):
                uses[use.uuid] = judge(use, owners, xids.get(use.uuid, ""))
            else:
                uses[self._uuids.get(selector, selector)] = use
        return uses

    async def _read(self, selector: str) -> Use | GpuUse:
        """What cannot be read is lost for certain, or UNKNOWN."""
        worker = self._workers.setdefault(selector, DeadlineWorker(f"use-{selector}"))
        try:
            return await worker.call(lambda: self._read_now(selector), self._deadline_s)
        except NvmlCallError as error:
            state = GpuState.BROKEN if error.code == Code.GPU_LOST else GpuState.UNKNOWN
            return GpuUse(state, reason=error.message)
        except CallTimeoutError as error:
            return GpuUse(GpuState.UNKNOWN, reason=str(error))

    def _read_now(self, selector: str) -> Use:
        uuid = identify(self._session, selector)
        self._uuids[selector] = uuid
        return self._session.run(uuid, "reading who uses it", read_use)

    async def _xids(self, uuids: list[str]) -> dict[str, str]:
        """Nothing where they cannot be heard: the readings above say the rest."""
        try:
            return await self._watcher.call(lambda: self._watch.look(uuids), self._deadline_s)
        except (NvmlCallError, CallTimeoutError):
            return {}
