"""Instances as systemd template units `vllm@NAME.service`.

They are systemd's children, so adoption costs nothing, and kvwatt needs the right to start, stop and reset
exactly those units (systemd/50-kvwatt.rules, a polkit rule) and no privilege.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker
from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.systemd_call import blocks, systemctl

TEMPLATE = "vllm@{name}.service"
# As in the polkit rule; all of these stand for themselves in the name of a unit.
INSTANCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PROPERTIES = "Id,LoadState,ActiveState,SubState,Result,Job,ControlGroup,NRestarts,ExecMainStatus"
_STATES = {
    "active": BackendState.RUNNING,
    "reloading": BackendState.RUNNING,
    "refreshing": BackendState.RUNNING,
    "activating": BackendState.STARTING,
    "deactivating": BackendState.STOPPING,
    "inactive": BackendState.STOPPED,
    "failed": BackendState.FAILED,
    "maintenance": BackendState.FAILED,
}
# Where systemd's hierarchy is: the only one, or beside the controllers of version 1.
_CGROUPS = tuple(map(Path, ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")))


class SystemdBackend:
    """Members as units.

    Args:
        members: their names; the unit of `a` is `vllm@a.service`.
        place: asked before each start whether the member's GPUs are free; raises BackendError(placement).
            Which GPUs they are, the unit's own environment file says.
        deadline_s: of each call of systemctl. A start that is still under way then was accepted.
        command: how to call systemctl.

    Raises ValueError for a name that is no unit's.
    """

    name = "systemd"
    can_sleep = False

    def __init__(
        self,
        members: Iterable[str],
        *,
        place: Callable[[str], Awaitable[Sequence[str]]] | None = None,
        deadline_s: float = 10.0,
        command: Sequence[str] = ("systemctl",),
    ) -> None:
        self._units = {member: TEMPLATE.format(name=member) for member in members}
        for member in self._units:
            if not INSTANCE_NAME.fullmatch(member):
                raise ValueError(f"instance {member!r}: letters, digits, '_', '.' and '-' are accepted")
        self._place = place
        self._deadline_s = deadline_s
        self._command = tuple(command)
        self._worker = DeadlineWorker("cgroups")
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a member is FAILED or UNKNOWN, as of the last `states`."""
        return dict(self._reasons)

    async def states(self) -> Mapping[str, BackendState]:
        """One call for all; UNKNOWN for all where systemd does not answer."""
        try:
            found = await self._show()
        except BackendError as error:
            self._reasons = dict.fromkeys(self._units, error.detail)
            return dict.fromkeys(self._units, BackendState.UNKNOWN)
        judged = {member: judge(found.get(unit, {})) for member, unit in self._units.items()}
        self._reasons = {member: reason for member, (_, reason) in judged.items() if reason}
        return {member: state for member, (state, _) in judged.items()}

    async def start(self, member: str) -> None:
        """Returns when systemd has carried the start out, or has begun to; refused while it stops."""
        unit = self._unit(member)
        state = await self._state(member)
        if state in (BackendState.RUNNING, BackendState.STARTING):
            return
        if state is BackendState.STOPPING:
            raise BackendError(Cause.STATE, f"{unit} is stopping: it can be started when it has stopped")
        if self._place is not None:
            await self._place(member)
        try:
            await systemctl(self._command, ["start", unit], self._deadline_s)
        except BackendError as error:
            if error.cause != Cause.DEADLINE or await self._state(member) not in _UP:
                raise

    async def stop(self, member: str) -> None:
        """Asked, not waited for: `states` follows it. A unit that failed is reset, so that it is stopped."""
        unit = self._unit(member)
        state = await self._state(member)
        if state is BackendState.STOPPED:
            return
        if state is not BackendState.STOPPING:
            await systemctl(self._command, ["--no-block", "stop", unit], self._deadline_s)
        if await self._state(member) is BackendState.FAILED:
            await systemctl(self._command, ["reset-failed", unit], self._deadline_s)

    async def sleep(self, member: str, withdrawn: Withdrawn) -> None:
        """Refused: a unit knows no sleep; `vllm-sleep` around this backend does."""
        raise BackendError(Cause.UNSUPPORTED, f"{member}: a unit cannot sleep")

    async def wake(self, member: str) -> None:
        """Refused, as `sleep`."""
        raise BackendError(Cause.UNSUPPORTED, f"{member}: a unit cannot be woken")

    async def processes(self) -> Mapping[str, frozenset[int]]:
        """Process ids in each unit's control group, workers included. Raises BackendError."""
        found = await self._show()
        groups = {member: found.get(unit, {}).get("ControlGroup", "") for member, unit in self._units.items()}
        try:
            return await self._worker.call(
                lambda: {member: _pids(group) for member, group in groups.items()}, self._deadline_s
            )
        except CallTimeoutError as error:
            raise BackendError(Cause.DEADLINE, str(error)) from None
        except (OSError, ValueError) as error:
            raise BackendError(Cause.FAILED, f"control groups: {error}") from None

    async def close(self) -> None:
        """The units go on."""
        self._worker.close()
        await asyncio.sleep(0)

    def _unit(self, member: str) -> str:
        try:
            return self._units[member]
        except KeyError:
            raise BackendError(Cause.UNKNOWN_MEMBER, f"{member!r} is none of {sorted(self._units)}") from None

    async def _state(self, member: str) -> BackendState:
        """Raises BackendError."""
        found = await self._show(self._units[member])
        return judge(found.get(self._units[member], {}))[0]

    async def _show(self, *units: str) -> dict[str, Mapping[str, str]]:
        asked = units or tuple(self._units.values())
        if not asked:
            return {}
        arguments = ["show", f"--property={_PROPERTIES}", "--", *asked]
        found = blocks(await systemctl(self._command, arguments, self._deadline_s))
        return {block.get("Id", ""): block for block in found}


_UP = (BackendState.STARTING, BackendState.RUNNING)


def judge(unit: Mapping[str, str]) -> tuple[BackendState, str]:
    """State and, for FAILED and UNKNOWN, the reason, from the properties of one unit."""
    active, load = unit.get("ActiveState", ""), unit.get("LoadState", "")
    state = _STATES.get(active)
    if state is None or not load:
        return BackendState.UNKNOWN, f"systemd says ActiveState={active!r}, LoadState={load!r}"
    if state is BackendState.STOPPED:
        if load != "loaded":
            return BackendState.FAILED, f"the unit is {load}: install vllm@.service, or unmask it"
        if unit.get("Job", "0") not in ("", "0"):  # queued: for a unit that is down, a start
            return BackendState.STARTING, ""
    # Between a failure and systemd's next try nothing runs, and the next may fail the same way for ever.
    trying = unit.get("SubState", "").startswith("auto-restart")
    if state is BackendState.FAILED or trying:
        told = f"the unit failed: {unit.get('Result', '?')}, exit status {unit.get('ExecMainStatus', '?')}"
        return BackendState.FAILED, told + (", and systemd is to try again" if trying else "")
    return state, ""


def _pids(group: str) -> frozenset[int]:
    """Of the group and all below it; none where the unit has no group (it does not run). Raises OSError."""
    if not group:
        return frozenset()
    places = [root / group.lstrip("/") for root in _CGROUPS]
    folder = next((place for place in places if (place / "cgroup.procs").exists()), None)
    if folder is None:
        raise FileNotFoundError(f"{group} is in none of {', '.join(map(str, _CGROUPS))}")
    return frozenset(int(line) for path in folder.rglob("cgroup.procs") for line in path.read_text().split())
