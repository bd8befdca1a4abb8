"""The interface of everything that can start, stop, sleep and wake vLLM instances.

A member is one vLLM server (an engine) under a name that stays the same over restarts of kvwatt. A
backend is asked, not waited for: `start` returns once the start was accepted, and `states` tells how it
goes on. What runs already is found by name, whoever started it: nothing is started twice.

The one rule for states: what cannot be told is UNKNOWN, never STOPPED. A member that is taken for stopped
may be started again, or its GPU given away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class BackendState(StrEnum):
    """What a backend sees of one member. RUNNING says that its process is up, not that vLLM serves yet."""

    STOPPED = "stopped"  # no process of it is left; its GPUs are given back
    STARTING = "starting"  # asked to start or wake, not up yet
    RUNNING = "running"  # the process is up (for Kubernetes: the pod is ready)
    ASLEEP = "asleep"  # the process is up, its weights are off the GPU
    STOPPING = "stopping"  # asked to stop or to fall asleep, not done yet
    FAILED = "failed"  # it ended by itself, or a start, stop, sleep or wake did not come
    UNKNOWN = "unknown"  # the backend cannot tell


class BackendError(Exception):
    """A call of a backend that was refused or did not come through.

    Args:
        cause: one word for metrics and for deciding what to do next, see `Cause`.
        detail: a sentence for the log: what was asked, of whom, and what it said.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


class Cause(StrEnum):
    """Why a call of a backend failed. Only the first three may be better at the next try."""

    UNREACHABLE = "unreachable"  # no answer, or cut off
    DEADLINE = "deadline"  # no answer in time; whether it was carried out is not known
    CONFLICT = "conflict"  # somebody else changed the same thing meanwhile
    FORBIDDEN = "forbidden"  # not permitted: polkit, RBAC, file permissions
    UNKNOWN_MEMBER = "unknown-member"  # no such member, or no such unit or workload
    BUSY = "busy"  # it has running or waiting requests, or this cannot be excluded
    IN_ROUTER = "in-router"  # nobody has shown that the router sends it nothing any more
    STATE = "state"  # the call does not fit the member's state (to wake what is stopped)
    UNSUPPORTED = "unsupported"  # this backend or this server cannot do it
    PLACEMENT = "placement"  # its GPUs are not free, foreign or broken
    FAILED = "failed"  # carried out and it went wrong


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Proof that a member is out of its router: made by whoever saw the router confirm it.

    Requests to a sleeping vLLM hang, so there is no `sleep` without one. It is void once the member was
    woken or started again: routers admit it then.

    Args:
        member: the member that was withdrawn.
        by: which router confirmed it ("haproxy"), for the log.
        at_s: when, monotonic seconds.
    """

    member: str
    by: str
    at_s: float


class Backend(Protocol):
    """Instances of one host or cluster. Every call has its own deadline and may be repeated after a crash.

    A call that is already true succeeds without doing anything. `BackendError` is the only exception.
    """

    @property
    def name(self) -> str:
        """`process`, `systemd`, `vllm-sleep` or `kubernetes`."""

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` and `wake` do something else than refuse."""

    async def states(self) -> Mapping[str, BackendState]:
        """The state of every member it manages; never raises, a member it cannot ask for is UNKNOWN."""

    async def start(self, member: str) -> None:
        """Ask for a start; not waited for."""

    async def wake(self, member: str) -> None:
        """Ask a sleeping member to load its weights again; not waited for."""

    async def sleep(self, member: str, withdrawn: Withdrawn) -> None:
        """Ask for sleep. Refused while requests run or wait, or when the proof is not for this member."""

    async def stop(self, member: str) -> None:
        """Ask for an orderly end. Refused while requests are known to run."""

    async def close(self) -> None:
        """Free our handles, never the instances."""


@runtime_checkable
class Cuts(Protocol):
    """A backend whose `stop` looks for requests itself, and can be told to stop all the same."""

    async def cut(self, member: str) -> None:
        """Ask for an orderly end of this one though requests run, as the operator chose for late drains."""
