"""Instances as child processes of kvwatt that outlive it.

Each is a session of its own with a log file. What is known of it lies in a folder (see process_record), so
kvwatt may be killed at any line: the next one adopts what runs by name, starts nothing twice and sees what is
left. Not for the shipped `kvwatt.service`: children would share its sandbox, its memory limit and its end;
there the `systemd` backend is right.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker
from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.process_facts import RecordError
from kvwattd.instances.process_keeper import ProcessKeeper
from kvwattd.instances.process_launch import Launch
from kvwattd.instances.process_state import Judged, StopLimits

__all__ = ["Launch", "ProcessBackend"]

T = TypeVar("T")
Place = Callable[[str], Awaitable[Sequence[str]]]
MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class ProcessBackend:
    """Members as child processes.

    Args:
        folder: records and logs, on a local disk, this user's alone; made where it is missing.
        members: name -> how to run it.
        place: asked for the GPUs at each start; raises BackendError(placement).
        limits: how long a stop may take, and whether it ends in SIGKILL.
        deadline_s: of each call.
        now: seconds of a clock that all processes of one boot share.

    Raises ValueError for a member name that is no file name.
    """

    name = "process"
    can_sleep = False

    def __init__(
        self,
        folder: Path,
        members: Mapping[str, Launch],
        *,
        place: Place | None = None,
        limits: StopLimits | None = None,
        deadline_s: float = 5.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        for member, launch in members.items():
            if not MEMBER_NAME.fullmatch(member):
                raise ValueError(f"instance {member!r}: letters, digits, '_', '.' and '-' are accepted")
            if not launch.command:
                raise ValueError(f"instance {member!r}: command = []: a program is expected")
        self._members = dict(members)
        self._keeper = ProcessKeeper(folder, members, limits or StopLimits(), now)
        self._place = place
        self._deadline_s = deadline_s
        self._worker = DeadlineWorker("instances")
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a member is FAILED or UNKNOWN, as of the last `states`."""
        return dict(self._reasons)

    async def states(self) -> Mapping[str, BackendState]:
        """Also moves stops on: signals that are due are sent from here."""
        try:
            judged = await self._worker.call(self._keeper.look, self._deadline_s)
        except CallTimeoutError as error:
            judged = {member: Judged(BackendState.UNKNOWN, str(error)) for member in self._members}
        self._reasons = {member: found.reason for member, found in judged.items() if found.reason}
        return {member: found.state for member, found in judged.items()}

    async def start(self, member: str) -> None:
        """Nothing happens where it runs or starts already; refused while it stops."""
        launch = self._known(member)
        if await self._call(lambda: self._keeper.is_up(member)):
            return
        gpus = launch.gpus if self._place is None else tuple(await self._place(member))
        await self._call(lambda: self._keeper.start(member, launch, gpus))

    async def stop(self, member: str) -> None:
        """SIGTERM; `states` follows it to its end. Also cancels a start, and forgets a failure."""
        self._known(member)
        await self._call(lambda: self._keeper.stop(member))

    async def sleep(self, member: str, withdrawn: Withdrawn) -> None:
        """Refused: a process knows no sleep; `vllm-sleep` around this backend does."""
        raise BackendError(Cause.UNSUPPORTED, f"{member}: a process cannot sleep")

    async def wake(self, member: str) -> None:
        """Refused, as `sleep`."""
        raise BackendError(Cause.UNSUPPORTED, f"{member}: a process cannot be woken")

    async def processes(self) -> Mapping[str, frozenset[int]]:
        """Process ids of each member, workers included. Raises BackendError."""
        return await self._call(self._keeper.processes)

    async def close(self) -> None:
        """The instances go on."""
        self._worker.close()

    def log(self, member: str) -> Path:
        """Where the member's output goes, appended."""
        return self._keeper.log(member)

    def _known(self, member: str) -> Launch:
        try:
            return self._members[member]
        except KeyError:
            raise BackendError(
                Cause.UNKNOWN_MEMBER, f"{member!r} is none of {sorted(self._members)}"
            ) from None

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await self._worker.call(function, self._deadline_s)
        except CallTimeoutError as error:
            raise BackendError(Cause.DEADLINE, str(error)) from None
        except RecordError as error:
            raise BackendError(Cause.FAILED, str(error)) from None
        except OSError as error:
            raise BackendError(Cause.FAILED, f"{error.filename or 'process'}: {error.strerror}") from None
