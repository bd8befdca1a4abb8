"""What the facts about a process instance mean, and what is to be done next. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto

from kvwattd.instances.backend import BackendState
from kvwattd.instances.process_facts import Facts

# From the intent to the record of the process: the interpreter of the last lines has to start.
START_GRACE_S = 10.0


class Todo(StrEnum):
    """What a look found to do."""

    NOTHING = auto()
    TERMINATE = auto()  # SIGTERM, once
    KILL = auto()  # SIGKILL to everything of the member; the operator has chosen that
    SETTLE_STOPPED = auto()  # it is gone as was asked: forget it
    SETTLE_FAILED = auto()  # it is gone and was not asked to go: write that down


@dataclass(frozen=True, slots=True)
class Judged:
    """The state, why (for FAILED and UNKNOWN), and what to do."""

    state: BackendState
    reason: str = ""
    todo: Todo = Todo.NOTHING


@dataclass(frozen=True, slots=True)
class StopLimits:
    """How long a stop may take, in seconds from the asking.

    Args:
        deadline_s: then it is told as FAILED, with the process still there.
        kill_after_s: then SIGKILL; None: never.
    """

    deadline_s: float = 120.0
    kill_after_s: float | None = None


def judge(facts: Facts, now_s: float, boot_id: str, limits: StopLimits) -> Judged:
    """What is there comes first, then what was asked, then what was written down."""
    if facts.alive or facts.locked or facts.leftovers:
        return _present(facts, now_s, boot_id, limits)
    if facts.stop is not None:
        return Judged(BackendState.STOPPED, todo=Todo.SETTLE_STOPPED)
    if facts.failed is not None:
        return Judged(BackendState.FAILED, facts.failed)
    if facts.running is not None:
        if _other_boot(facts.running.boot_id, boot_id):
            return Judged(BackendState.STOPPED, todo=Todo.SETTLE_STOPPED)
        return Judged(BackendState.FAILED, "it ended by itself (see its log)", Todo.SETTLE_FAILED)
    if facts.start is not None:
        return _intended(facts.start.at_s, facts.start.boot_id, now_s, boot_id)
    return Judged(BackendState.STOPPED)


def _present(facts: Facts, now_s: float, boot_id: str, limits: StopLimits) -> Judged:
    if facts.stop is not None:
        since_s = now_s - facts.stop.at_s if facts.stop.boot_id == boot_id else limits.deadline_s
        return _stopping(facts, since_s, limits)
    if facts.alive:
        return Judged(BackendState.RUNNING)
    if facts.running is not None:
        held = ", ".join(map(str, sorted(facts.leftovers))) or "somebody who holds its lock"
        return Judged(BackendState.FAILED, f"it ended and left processes behind: {held}")
    if facts.start is not None and now_s - facts.start.at_s < START_GRACE_S:
        return Judged(BackendState.STARTING)
    who = f"processes {sorted(facts.leftovers)} run" if facts.leftovers else "its lock is held"
    return Judged(BackendState.UNKNOWN, f"{who} without a record of ours")


def _stopping(facts: Facts, since_s: float, limits: StopLimits) -> Judged:
    todo = Todo.NOTHING
    if facts.alive and facts.stop is not None and not facts.stop.terminated:
        todo = Todo.TERMINATE
    elif limits.kill_after_s is not None and since_s >= limits.kill_after_s:
        todo = Todo.KILL
    elif facts.leftovers and not facts.alive:
        todo = Todo.TERMINATE  # the server has ended and its workers have not
    if since_s < limits.deadline_s:
        return Judged(BackendState.STOPPING, todo=todo)
    return Judged(BackendState.FAILED, f"still there {since_s:.0f} s after it was asked to stop", todo)


def _intended(at_s: float, of_boot: str, now_s: float, boot_id: str) -> Judged:
    if _other_boot(of_boot, boot_id):
        return Judged(BackendState.STOPPED, todo=Todo.SETTLE_STOPPED)
    if now_s - at_s < START_GRACE_S:
        return Judged(BackendState.STARTING)
    return Judged(BackendState.FAILED, "its start was asked for and did not come", Todo.SETTLE_FAILED)


def _other_boot(one: str, other: str) -> bool:
    """An id that a sandbox hides tells nothing."""
    return bool(one and other and one != other)
