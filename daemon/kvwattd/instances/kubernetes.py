"""Instances as Deployments, StatefulSets or LeaderWorkerSets of one replica or none (scale subresource).

A member is an object of its own. Of several replicas in one object Kubernetes takes away the last one, or of
a Deployment any, whichever member was drained: so two members in one object are refused, and an object whose
replicas somebody else raised is not scaled down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker
from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.kubernetes_api import KINDS, KubeApi, Target
from kvwattd.instances.kubernetes_state import Seen, see, state_of

T = TypeVar("T")
_TRIES = 4
_BACKOFF_S = 0.05


@dataclass(frozen=True, slots=True)
class Workload:
    """One member and its object.

    Args:
        kind: `Deployment`, `StatefulSet` or `LeaderWorkerSet`.
        namespace, name: of the object.
        member: whose only replica it is.
    """

    kind: str
    namespace: str
    name: str
    member: str

    @property
    def target(self) -> Target:
        return Target(self.kind, self.namespace, self.name)


class KubernetesBackend:
    """Members as objects.

    Args:
        workloads: one for each member.
        api: the calls.
        deadline_s: of the calls of one question or order.

    Raises ValueError for an unknown kind, and for a member or an object named twice.
    """

    name = "kubernetes"
    can_sleep = False

    def __init__(self, workloads: Sequence[Workload], api: KubeApi, *, deadline_s: float = 10.0) -> None:
        self._workloads: dict[str, Workload] = {}
        owners: dict[Target, str] = {}
        for workload in workloads:
            target, member = workload.target, workload.member
            if workload.kind not in KINDS:
                raise ValueError(f"kind = {workload.kind!r}: one of {', '.join(KINDS)} is accepted")
            if member in self._workloads:
                raise ValueError(f"instance {member!r} is {self._workloads[member].target} already")
            if owners.setdefault(target, member) != member:
                raise ValueError(f"instance {member!r}: {target} is {owners[target]!r}'s: each needs its own")
            self._workloads[member] = workload
        self._api = api
        self._deadline_s = deadline_s
        self._workers = {target: DeadlineWorker(str(target)) for target in owners}
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a member is FAILED or UNKNOWN, as of the last `states`."""
        return dict(self._reasons)

    async def states(self) -> Mapping[str, BackendState]:
        """UNKNOWN for a member whose object cannot be read; the others are told."""
        self._reasons = {}
        found = await asyncio.gather(*map(self._look, self._workloads.values()))
        return dict(zip(self._workloads, found, strict=True))

    async def start(self, member: str) -> None:
        """One replica, where there is none."""
        await self._change(self._workload(member), lambda replicas: 1 if replicas == 0 else None)

    async def stop(self, member: str) -> None:
        """No replica. Refused where there are several: the others were not emptied."""
        workload = self._workload(member)

        def wanted(replicas: int) -> int | None:
            if replicas > 1:
                told = f"{workload.target} has {replicas} replicas: only {member} was emptied"
                raise BackendError(Cause.STATE, told)
            return 0 if replicas == 1 else None

        await self._change(workload, wanted)

    async def sleep(self, member: str, withdrawn: Withdrawn) -> None:
        """Refused: a replica knows no sleep; `vllm-sleep` around this backend does."""
        raise BackendError(Cause.UNSUPPORTED, f"{member}: a replica cannot sleep")

    async def wake(self, member: str) -> None:
        """Refused, as `sleep`."""
        raise BackendError(Cause.UNSUPPORTED, f"{member}: a replica cannot be woken")

    async def close(self) -> None:
        """The replicas stay."""
        for worker in self._workers.values():
            worker.close()
        self._api.close()

    def _workload(self, member: str) -> Workload:
        try:
            return self._workloads[member]
        except KeyError:
            raise BackendError(
                Cause.UNKNOWN_MEMBER, f"{member!r} is none of {sorted(self._workloads)}"
            ) from None

    async def _look(self, workload: Workload) -> BackendState:
        try:
            seen = await self._call(workload, lambda: self._see(workload.target))
        except BackendError as error:
            self._reasons[workload.member] = error.detail
            return BackendState.UNKNOWN
        state = state_of(seen)
        if state is BackendState.FAILED:
            self._reasons[workload.member] = seen.stuck
        return state

    def _see(self, target: Target) -> Seen:
        scale = self._api.scale(target)
        return see(target, self._api.read(target), self._api.pods(target, scale.selector))

    async def _change(self, workload: Workload, wanted: Callable[[int], int | None]) -> None:
        """Looked at anew after each conflict: somebody else's change may have made ours needless."""
        for attempt in range(_TRIES):
            try:
                await self._call(workload, lambda: self._change_once(workload.target, wanted))
            except BackendError as error:
                if error.cause != Cause.CONFLICT or attempt == _TRIES - 1:
                    raise
                await asyncio.sleep(_BACKOFF_S * 2**attempt)
            else:
                return

    def _change_once(self, target: Target, wanted: Callable[[int], int | None]) -> None:
        scale = self._api.scale(target)
        replicas = wanted(scale.replicas)
        if replicas is not None:
            self._api.set_scale(target, replicas, scale.resource_version)

    async def _call(self, workload: Workload, function: Callable[[], T]) -> T:
        try:
            return await self._workers[workload.target].call(function, self._deadline_s)
        except CallTimeoutError as error:
            raise BackendError(Cause.DEADLINE, str(error)) from None
