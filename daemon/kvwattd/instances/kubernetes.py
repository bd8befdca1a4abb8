"""Instances as replicas of a Deployment, StatefulSet or LeaderWorkerSet, through the scale subresource.

A member is one replica: the first of `members` is the first replica, and so on. Kubernetes takes the last
replica away first (of a Deployment it chooses the pod itself), so only the last may be stopped. Where kvwatt
must choose which member goes, and drain it first, give every member an object of its own, with one replica or
none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker
from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.kubernetes_api import KINDS, KubeApi, Target
from kvwattd.instances.kubernetes_state import Seen, see, slot_states

T = TypeVar("T")
_TRIES = 4
_BACKOFF_S = 0.05


@dataclass(frozen=True, slots=True)
class Workload:
    """One object and the members that are its replicas.

    Args:
        kind: `Deployment`, `StatefulSet` or `LeaderWorkerSet`.
        namespace, name: of the object.
        members: in the order in which replicas come; as many as there may be.
        minimum: replicas that are never taken away.
    """

    kind: str
    namespace: str
    name: str
    members: tuple[str, ...]
    minimum: int = 0

    @property
    def target(self) -> Target:
        return Target(self.kind, self.namespace, self.name)


class KubernetesBackend:
    """Members as replicas.

    Args:
        workloads: each member in exactly one of them.
        api: the calls.
        deadline_s: of each call on all its objects together.

    Raises ValueError for an unknown kind, a member named twice, or a minimum that cannot be.
    """

    name = "kubernetes"
    can_sleep = False

    def __init__(self, workloads: Sequence[Workload], api: KubeApi, *, deadline_s: float = 10.0) -> None:
        self._slots: dict[str, tuple[Workload, int]] = {}
        for workload in workloads:
            if workload.kind not in KINDS:
                raise ValueError(f"kind = {workload.kind!r}: one of {', '.join(KINDS)} is accepted")
            if not 0 <= workload.minimum <= len(workload.members):
                raise ValueError(
                    f"{workload.target}: minimum = {workload.minimum}: 0 to {len(workload.members)}"
                )
            for index, member in enumerate(workload.members):
                if member in self._slots:
                    raise ValueError(f"instance {member!r} is in {self._slots[member][0].target} already")
                self._slots[member] = (workload, index)
        self._workloads = tuple(workloads)
        self._api = api
        self._deadline_s = deadline_s
        self._workers = {workload.target: DeadlineWorker(str(workload.target)) for workload in workloads}
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a member is FAILED or UNKNOWN, as of the last `states`."""
        return dict(self._reasons)

    async def states(self) -> Mapping[str, BackendState]:
        """UNKNOWN for the members of an object that cannot be read; the others are told."""
        self._reasons = {}
        found = await asyncio.gather(*map(self._look, self._workloads))
        return {member: state for part in found for member, state in part.items()}

    async def start(self, member: str) -> None:
        """Raise the number of replicas to include it; refused while the one before it is not wanted."""
        workload, index = self._slot(member)

        def wanted(replicas: int) -> int | None:
            if replicas > index:
                return None
            if replicas < index:
                before = workload.members[replicas]
                raise BackendError(
                    Cause.STATE, f"{member} cannot be started before {before}: {workload.target}"
                )
            return index + 1

        await self._change(workload, wanted)

    async def stop(self, member: str) -> None:
        """Lower the number of replicas so that it goes; refused while one behind it is wanted."""
        workload, index = self._slot(member)

        def wanted(replicas: int) -> int | None:
            if replicas <= index:
                return None
            if index < workload.minimum:
                raise BackendError(
                    Cause.STATE, f"{workload.target} keeps at least {workload.minimum} replicas"
                )
            if replicas > index + 1:
                last = (
                    workload.members[replicas - 1] if replicas <= len(workload.members) else "one of nobody's"
                )
                raise BackendError(
                    Cause.STATE, f"{member} cannot be stopped before {last}: {workload.target}"
                )
            return index

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

    def _slot(self, member: str) -> tuple[Workload, int]:
        try:
            return self._slots[member]
        except KeyError:
            raise BackendError(Cause.UNKNOWN_MEMBER, f"{member!r} is none of {sorted(self._slots)}") from None

    async def _look(self, workload: Workload) -> dict[str, BackendState]:
        try:
            seen = await self._call(workload, lambda: self._see(workload.target))
        except BackendError as error:
            self._reasons.update(dict.fromkeys(workload.members, error.detail))
            return dict.fromkeys(workload.members, BackendState.UNKNOWN)
        states = dict(zip(workload.members, slot_states(seen, len(workload.members)), strict=True))
        failed = [member for member, state in states.items() if state is BackendState.FAILED]
        self._reasons.update(dict.fromkeys(failed, seen.stuck))
        return states

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
