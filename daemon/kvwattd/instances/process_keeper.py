"""The processes of a host's instances: looked at, started, signalled. Blocking: runs in one thread."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from kvwattd.instances import process_child
from kvwattd.instances.backend import BackendError, BackendState, Cause
from kvwattd.instances.process_facts import RecordError, Start, Stop
from kvwattd.instances.process_launch import Launch, environment, expand, spawn
from kvwattd.instances.process_record import Records
from kvwattd.instances.process_scan import marked, marker_of, send
from kvwattd.instances.process_state import Judged, StopLimits, Todo, judge

_RESCAN_S = 30.0  # how often to look for processes without a record
_GONE = {BackendState.STOPPED, BackendState.FAILED}


class ProcessKeeper:
    """All state is in `folder` but for who our own children are.

    Args:
        folder: records and logs; made where it is missing.
        members: their names.
        limits: how long a stop may take, and whether it ends in SIGKILL.
        now: seconds of a clock that all processes of one boot share.
    """

    def __init__(
        self, folder: Path, members: Iterable[str], limits: StopLimits, now: Callable[[], float]
    ) -> None:
        self._folder = folder.resolve()
        self._records = {member: Records(self._folder, member) for member in members}
        self._limits = limits
        self._now = now
        self._children: dict[str, tuple[int, str]] = {}  # process id and nonce of its start
        self._ends: dict[str, str] = {}  # how a child of ours ended
        self._strays: frozenset[str] = frozenset()
        self._scanned_s: float | None = None

    def log(self, member: str) -> Path:
        """Where the member's output goes, appended."""
        return self._folder / f"{member}.log"

    def processes(self) -> dict[str, frozenset[int]]:
        """Process ids of each member, workers included."""
        found = list(marked())
        processes = {}
        for member, records in self._records.items():
            facts = records.facts()  # its environment cannot be read for the moment of an exec
            leader = {facts.running.pid} if facts.alive and facts.running is not None else set()
            workers = {pid for pid, who in found if who == self._marker(member)}
            processes[member] = frozenset(leader | workers)
        return processes

    def look(self) -> dict[str, Judged]:
        """Every member; also moves stops on: signals that are due are sent from here."""
        self._reap()
        now_s = self._now()
        if self._scanned_s is None or now_s - self._scanned_s >= _RESCAN_S:
            mine = {self._marker(member): member for member in self._records}
            self._strays = frozenset(mine[found] for _, found in marked() if found in mine)
            self._scanned_s = now_s
        return {member: self._look(member) for member in self._records}

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

    def is_up(self, member: str) -> bool:
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

    def start(self, member: str, launch: Launch, gpus: Sequence[str]) -> None:
        """A process on these GPUs, unless one has got there meanwhile."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._records[member].starting():
            self._start(member, launch, gpus)

    def _start(self, member: str, launch: Launch, gpus: Sequence[str]) -> None:
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
            pid = spawn(command, self.log(member), environment(launch, self._marker(member), gpus))
        except OSError as error:
            records.fail(f"cannot start a process: {error.strerror}")
            raise
        self._children[member] = (pid, start.nonce)
        self._ends.pop(member, None)

    def stop(self, member: str) -> None:
        """SIGTERM, followed to its end by `look`; forgets a failure."""
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
