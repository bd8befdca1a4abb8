"""Instances as child processes of kvwatt that outlive it.

Each is a session of its own with a log file. What is known of it lies in a folder (see process_record), so
kvwatt may be killed at any line: the next one adopts what runs by name, starts nothing twice and sees what is
left. Not for the shipped `kvwatt.service`: children would share its sandbox, its memory limit and its end;
there the `systemd` backend is right.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from kvwattd.guard.worker import CallTimeoutError, DeadlineWorker
from kvwattd.instances import process_child
from kvwattd.instances.backend import BackendError, BackendState, Cause, Withdrawn
from kvwattd.instances.process_record import (
    FOLDER_VARIABLE,
    MEMBER_VARIABLE,
    RecordError,
    Records,
    Start,
    Stop,
    marked,
    marker_of,
    send,
)
from kvwattd.instances.process_state import Judged, StopLimits, Todo, judge

T = TypeVar("T")
Place = Callable[[str], Awaitable[Sequence[str]]]
MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
PLACEHOLDER = re.compile(r"\{(name|gpus|gpu_count)\}")
_RESCAN_S = 30.0  # how often to look for processes without a record
_GONE = {BackendState.STOPPED, BackendState.FAILED}


@dataclass(frozen=True, slots=True)
class Launch:
    """How one member is run.

    Args:
        command: program and arguments, no shell. `{name}`, `{gpus}` (UUIDs, comma-separated) and
            `{gpu_count}` are replaced; other braces stay.
        gpus: UUIDs for CUDA_VISIBLE_DEVICES where no `place` is given; empty: the variable is left alone.
        environment: added to kvwatt's own.
        folder: working folder.
    """

    command: tuple[str, ...]
    gpus: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


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
        self._folder = folder.resolve()
        self._members = dict(members)
        self._records = {member: Records(self._folder, member) for member in members}
        self._place = place
        self._limits = limits or StopLimits()
        self._deadline_s = deadline_s
        self._now = now
        self._worker = DeadlineWorker("instances")
        self._children: dict[str, tuple[int, str]] = {}  # process id and nonce of its start
        self._ends: dict[str, str] = {}  # how a child of ours ended
        self._strays: frozenset[str] = frozenset()
        self._scanned_s: float | None = None
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why a member is FAILED or UNKNOWN, as of the last `states`."""
        return dict(self._reasons)

    async def states(self) -> Mapping[str, BackendState]:
        """Also moves stops on: signals that are due are sent from here."""
        try:
            judged = await self._worker.call(self._look_at_all, self._deadline_s)
        except CallTimeoutError as error:
            judged = {member: Judged(BackendState.UNKNOWN, str(error)) for member in self._members}
        self._reasons = {member: found.reason for member, found in judged.items() if found.reason}
        return {member: found.state for member, found in judged.items()}

    async def start(self, member: str) -> None:
        """Nothing happens where it runs or starts already; refused while it stops."""
        launch = self._known(member)
        if await self._call(lambda: self._is_up(member)):
            return
        gpus = launch.gpus if self._place is None else tuple(await self._place(member))
        await self._call(lambda: self._start(member, launch, gpus))

    async def stop(self, member: str) -> None:
        """SIGTERM; `states` follows it to its end. Also cancels a start, and forgets a failure."""
        self._known(member)
        await self._call(lambda: self._stop(member))

    async def sleep(self, member: str, withdrawn: Withdrawn) -> None:
        """Refused: a process knows no sleep; `vllm-sleep` around this backend does."""
        raise BackendError(Cause.UNSUPPORTED, f"{member}: a process cannot sleep")

    async def wake(self, member: str) -> None:
        """Refused, as `sleep`."""
        raise BackendError(Cause.UNSUPPORTED, f"{member}: a process cannot be woken")

    async def processes(self) -> Mapping[str, frozenset[int]]:
        """Process ids of each member, workers included. Raises BackendError."""
        return await self._call(self._all_processes)

    async def close(self) -> None:
        """The instances go on."""
        self._worker.close()

    def log(self, member: str) -> Path:
        """Where the member's output goes, appended."""
        return self._folder / f"{member}.log"

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

    # What follows runs in the worker's thread.

    def _all_processes(self) -> dict[str, frozenset[int]]:
        found = list(marked())
        processes = {}
        for member, records in self._records.items():
            facts = records.facts()  # its environment cannot be read for the moment of an exec
            leader = {facts.running.pid} if facts.alive and facts.running is not None else set()
            workers = {pid for pid, who in found if who == self._marker(member)}
            processes[member] = frozenset(leader | workers)
        return processes

    def _look_at_all(self) -> dict[str, Judged]:
        self._reap()
        now_s = self._now()
        if self._scanned_s is None or now_s - self._scanned_s >= _RESCAN_S:
            mine = {self._marker(member): member for member in self._members}
            self._strays = frozenset(mine[found] for _, found in marked() if found in mine)
            self._scanned_s = now_s
        return {member: self._look(member) for member in self._members}

    def _look(self, member: str) -> Judged:
        try:
            judged = self._judge(member)
            self._do(member, judged)
        except (RecordError, OSError) as error:
            return Judged(BackendState.UNKNOWN, str(error))
        return judged

    def _judge(self, member: str) -> Judged:
        records = self._records[member]
        facts = records.facts()
        if member in self._strays and facts.running is None and not facts.leftovers:
            facts = replace(facts, leftovers=records.processes())
        return judge(facts, self._now(), process_child.boot_id(), self._limits)

    def _do(self, member: str, judged: Judged) -> None:
        records = self._records[member]
        match judged.todo:
            case Todo.TERMINATE:
                self._signal(member, signal.SIGTERM)
                stop = records.facts().stop
                if stop is not None and not stop.terminated:
                    records.ask_stop(replace(stop, terminated=True))
            case Todo.KILL:
                self._signal(member, signal.SIGKILL)
            case Todo.SETTLE_STOPPED:
                records.clear()
            case Todo.SETTLE_FAILED:
                self._reap()  # it may have ended since this look began
                how = f": {self._ends.pop(member)}" if member in self._ends else ""
                records.fail(judged.reason + how)
            case Todo.NOTHING:
                pass

    def _is_up(self, member: str) -> bool:
        """Whether there is nothing to start. Raises BackendError where it cannot be started now."""
        self._reap()
        judged = self._look(member)
        if judged.state is BackendState.STARTING:
            return member in self._children  # else an intent of a kvwatt that is gone: take it over
        if judged.state is BackendState.RUNNING:
            return True
        facts = self._records[member].facts()
        if judged.state not in _GONE or facts.alive or facts.locked or self._records[member].processes():
            reason = judged.reason or f"it is {judged.state}"
            raise BackendError(Cause.STATE, f"{member} cannot be started: {reason}")
        return False

    def _start(self, member: str, launch: Launch, gpus: Sequence[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        records = self._records[member]
        records.remove("start")  # a start of an earlier kvwatt's that has not got to its lock now never will
        facts = records.facts()
        if facts.alive or facts.locked:
            return  # it has
        start = Start(secrets.token_hex(8), self._now(), process_child.boot_id())
        records.intend(start)
        child = (sys.executable, "-I", "-S", process_child.__file__, str(self._folder), member, start.nonce)
        folder = str(launch.folder or Path.cwd())
        command = (*child, folder, "--", *expand(launch.command, member, gpus))
        try:
            pid = self._spawn(command, self.log(member), self._environment(member, launch, gpus))
        except OSError as error:
            records.fail(f"cannot start a process: {error.strerror}")
            raise
        self._children[member] = (pid, start.nonce)
        self._ends.pop(member, None)

    @staticmethod
    def _spawn(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """In a session of its own: what is typed at kvwatt's terminal does not reach it."""
        appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        files = (
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), appended, 0o640),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        )
        return os.posix_spawn(
            command[0], tuple(command), environment, file_actions=files, setsid=True, setsigmask=()
        )

    def _environment(self, member: str, launch: Launch, gpus: Sequence[str]) -> dict[str, str]:
        folder, name = self._marker(member)
        inherited = {key: value for key, value in os.environ.items() if key not in _OURS_ALONE}
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        return (
            inherited | visible | dict(launch.environment) | {FOLDER_VARIABLE: folder, MEMBER_VARIABLE: name}
        )

    def _stop(self, member: str) -> None:
        self._reap()
        judged = self._look(member)
        if judged.state is BackendState.UNKNOWN:
            raise BackendError(Cause.STATE, f"{member} cannot be stopped: {judged.reason}")
        records = self._records[member]
        facts = records.facts()
        if facts.stop is None and (facts.start or facts.running or facts.locked):
            records.ask_stop(Stop(self._now(), process_child.boot_id()))
        elif facts.failed is not None and facts.stop is None:
            records.clear()
        self._look(member)

    def _signal(self, member: str, number: signal.Signals) -> None:
        records = self._records[member]
        facts = records.facts()
        if facts.alive and facts.running is not None:
            send(facts.running, number)
        if number is signal.SIGKILL or not facts.alive:
            for pid in records.processes():
                _send_marked(pid, number, self._marker(member))

    def _marker(self, member: str) -> tuple[str, str]:
        return str(self._folder), member

    def _reap(self) -> None:
        """Ended children of ours would stay as zombies."""
        for member, (pid, nonce) in list(self._children.items()):
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # somebody waits for every child
                found, status = pid, 0
            if found == pid:
                del self._children[member]
                code = os.waitstatus_to_exitcode(status)
                self._ends[member] = f"status {code}" if code >= 0 else f"signal {-code}"
                self._settle_start(member, nonce)

    def _settle_start(self, member: str, nonce: str) -> None:
        """A child that ended before it was anything: no need to wait until its start is overdue."""
        with contextlib.suppress(RecordError):  # told by the next look
            facts = self._records[member].facts()
            begun = facts.start is not None and facts.start.nonce == nonce
            if begun and not (facts.running or facts.stop or facts.locked or facts.failed):
                self._records[member].fail(f"its start ended early: {self._ends[member]}")


# kvwatt's own talk with systemd: an instance that inherits it would speak for kvwatt.
_OURS_ALONE = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "INVOCATION_ID"}
)


def expand(command: Sequence[str], member: str, gpus: Sequence[str]) -> tuple[str, ...]:
    """The command with its placeholders filled in."""
    values = {"name": member, "gpus": ",".join(gpus), "gpu_count": str(len(gpus))}
    return tuple(PLACEHOLDER.sub(lambda found: values[found[1]], part) for part in command)


def _send_marked(pid: int, number: signal.Signals, wanted: tuple[str, str]) -> None:
    """To a process of that member: looked at again once its number cannot be given to another."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if marker_of(pid) == wanted:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
