"""SIGKILL of the scaler in every phase of a start, a wake and a drain, under load.

The scaler runs in a child that is killed before or after a chosen call, or while it writes its journal; the
next child gets no order, only what the dead one left. As a program this file is the nursery: it has imported
everything once and forks a child per line on its standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from kvwatt.pool import ActionKind, PoolAction
from kvwattd.instances import journal
from scaling_stage import PARAMS, STEP_S, parts, scaler_of

GIVE_UP_S = 300.0


@dataclass(frozen=True)
class Task:
    """One child's life: orders, when it dies ("withdraw:before:1"; None: not), and what it waits for."""

    fleet: str
    urls: dict[str, str]
    proxy: str
    journal: str
    orders: list[tuple[str, str]] = field(default_factory=list)
    kill: str | None = None
    until: dict[str, str] = field(default_factory=dict)


class Deadly:
    """Passes calls on and dies at the chosen one."""

    def __init__(self, inner: object, at: Callable[[str, str], None]) -> None:
        self._inner = inner
        self._at = at

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the inner one has
        found = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*given: object) -> object:
            self._at(name, "before")
            answer = await found(*given)
            self._at(name, "after")
            return answer

        return call


def reaper(kill: str | None) -> Callable[[str, str], None]:
    """Counts calls; at the chosen one the process is gone."""
    counts: Counter[str] = Counter()

    def at(name: str, when: str) -> None:
        counts[f"{name}:{when}"] += 1
        if kill == f"{name}:{when}:{counts[f'{name}:{when}']}":
            os.kill(os.getpid(), signal.SIGKILL)

    return at


async def live(task: Task) -> None:
    """Adopt, take the orders once everything was looked at, and step until it is as wanted."""
    at = reaper(task.kill)
    _deadly_journal(at)
    backend, router, probe = parts(Path(task.fleet), task.urls, Path(task.proxy))
    scaler = scaler_of(
        Deadly(backend, at),
        Deadly(router, at),
        Deadly(probe, at),
        "".join(task.urls),
        Path(task.journal),
        PARAMS,
    )
    async with asyncio.timeout(GIVE_UP_S):
        orders = list(task.orders)
        for _ in range(3):
            await scaler.step()
        while True:
            left = await scaler.apply([PoolAction(m, ActionKind(a), "a test") for m, a in orders])
            orders = [(refused.action.member, refused.action.action) for refused in left]
            status = {member.name: str(member.status) for member in scaler.members()}
            if not orders and task.until.items() <= status.items():
                break
            await scaler.step()
            await asyncio.sleep(STEP_S)
    await scaler.close()
    await backend.close()
    await probe.close()


def _deadly_journal(at: Callable[[str, str], None]) -> None:
    write = journal.write_whole

    def deadly(path: Path, content: bytes) -> None:
        at("journal", "before")
        path.with_name(f".{path.name}.half.tmp").write_bytes(content[: len(content) // 2])
        at("journal", "half")
        write(path, content)
        at("journal", "after")

    journal.write_whole = deadly


class Nursery:
    """The process that forks the children."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    async def child(self, task: Task) -> int:
        """Its exit status; negative: the signal that ended it."""
        return await asyncio.to_thread(self._child, task)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _child(self, task: Task) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(task)) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


# What may be interrupted in each transition: (call, when, which time).
DRAIN = ["journal:before:1", "journal:half:1", "journal:after:1", "withdraw:before:1", "withdraw:after:1"]
DRAIN += [
    "sessions:before:1",
    "sessions:after:2",
    "withdraw:before:2",
    "withdraw:after:2",
    "journal:before:2",
]
SLEEP = [*DRAIN, "journal:after:2", "sleep:before:1", "sleep:after:1"]
STOP = [*DRAIN, "journal:after:2", "stop:before:1", "stop:after:1"]
UP = [
    "journal:before:1",
    "journal:after:1",
    "warm_up:before:1",
    "warm_up:after:1",
    "admit:before:1",
    "admit:after:1",
]
WAKE = [*UP, "wake:before:1", "wake:after:1"]
START = [*UP, "start:before:1", "start:after:1"]
NOT_DURABLE = ("journal:before:1", "journal:half:1")
Transition = tuple[ActionKind, str, list[str]]
CYCLE: list[Transition] = [
    (ActionKind.DRAIN_TO_SLEEP, "asleep", SLEEP),
    (ActionKind.WAKE, "ready", WAKE),
    (ActionKind.DRAIN_TO_STOP, "stopped", STOP),
    (ActionKind.START, "ready", START),
]


QUICK: list[Transition] = [
    (ActionKind.DRAIN_TO_SLEEP, "asleep", ["withdraw:after:1", "sleep:after:1", "journal:half:1"]),
    (ActionKind.WAKE, "ready", ["wake:after:1", "warm_up:after:1", "admit:after:1"]),
    (ActionKind.DRAIN_TO_STOP, "stopped", ["sessions:after:1", "stop:before:1", "stop:after:1"]),
    (ActionKind.START, "ready", ["start:before:1", "start:after:1", "admit:before:1"]),
]


@dataclass
class Killed:
    """What came of it. `wrong`: phases after which something was not as it must be."""

    killed: int = 0
    asked: int = 0
    wrong: list[str] = field(default_factory=list)


async def kill_all(
    nursery: Nursery,
    base: Task,
    member: str,
    told: Callable[[], Coroutine[Any, Any, Mapping[str, Any]]],
    cycle: Sequence[Transition] = CYCLE,
    budget_s: float = inf,
) -> Killed:
    """Every phase of every transition of the cycle once; the cycle ends where it began. No round begins after
    `budget_s`."""
    found, end_s = Killed(), time.monotonic() + budget_s
    rounds = max(len(phases) for _, _, phases in cycle)
    for number in range(rounds):
        if time.monotonic() > end_s:
            break
        for action, reached, phases in cycle:
            kill = phases[number * len(phases) // rounds]
            found.asked += 1
            before = (await told())[member]["starts"]
            died = await nursery.child(_with(base, [(member, action)], kill, {member: reached}))
            if died == -signal.SIGKILL:
                found.killed += 1
                # Killed before the order was durable: it is as it was, and the order is given again.
                orders = [(member, action)] if kill in NOT_DURABLE else []
                died = await nursery.child(_with(base, orders, None, {member: reached}))
            started = (await told())[member]["starts"] - before
            told_so = f"{action} {kill}: killed {found.killed}, wrong {len(found.wrong)}"
            print(told_so, file=sys.stderr, flush=True)
            if died != 0 or started != (action is ActionKind.START):
                found.wrong.append(f"{action} {kill}: status {died}, started {started} times")
    return found


def _with(base: Task, orders: list[tuple[str, ActionKind]], kill: str | None, until: dict[str, str]) -> Task:
    given = [(member, str(action)) for member, action in orders]
    return Task(base.fleet, base.urls, base.proxy, base.journal, given, kill, until)


def main() -> None:
    """Fork a child per line, print how it ended."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                asyncio.run(live(Task(**json.loads(line))))
                status = 0
            except TimeoutError:
                status = 2
            finally:
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
