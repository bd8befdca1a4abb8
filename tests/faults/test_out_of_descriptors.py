"""Processes that can open nothing more: clients wait, the journal does not fill, and then all is answered."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import psutil
from daemon_process import eventually
from damage import give_descriptors, take_descriptors
from fault_stage import Stage

SAID = "nobody new can connect"
TRIES_S = 3.5  # asyncio tries once a second
CLIENTS = 3


def _clients(stage: Stage, stack: ExitStack) -> list[socket.socket]:
    """Connected as far as the kernel goes: to the API and to the guard."""
    api = stage.daemon.url.removeprefix("http://").split(":")
    made = [stack.enter_context(socket.create_connection((api[0], int(api[1])))) for _ in range(CLIENTS)]
    for _ in range(CLIENTS):
        made.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
        made[-1].connect(str(stage.daemon.folder / "guard.sock"))
    return made


def test_clients_that_cannot_be_taken_cost_one_line_each_process(stage: Stage) -> None:
    """Not a traceback for each attempt; who waited is answered when descriptors are back."""
    pids = (stage.daemon.process.pid, stage.daemon.guard_pid)
    before = stage.moment()
    with ExitStack() as stack:
        for pid in pids:
            stack.callback(give_descriptors, pid)
            take_descriptors(pid)
        waiting = _clients(stage, stack)
        eventually(lambda: stage.said_since(before).count(SAID) >= len(pids), stage.daemon.log)
        time.sleep(TRIES_S)
        said = stage.said_since(before)
        assert said.count(SAID) == len(pids), said[-3000:]
        assert "Traceback" not in said
        assert psutil.pid_exists(pids[1]), "a guard that cannot be asked is not ended"
        for pid in pids:
            give_descriptors(pid)
        waiting[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: kvwatt\r\n\r\n")
        waiting[0].settimeout(90.0)
        assert waiting[0].recv(4096).startswith(b"HTTP/1.1 200")
    stage.control()


def test_a_guard_that_takes_nobody_resets_before_it_is_ended(stage: Stage) -> None:
    """It needs nothing open for a reset; killed at once, the clock would stay until the next one starts."""
    before, pid = stage.moment(), stage.daemon.guard_pid
    take_descriptors(pid)
    eventually(lambda: "guard: ended with status" in stage.said_since(before), stage.daemon.log)
    assert [c for c in stage.resets_since(before.t_s) if c.pid == pid and c.result == "SUCCESS"]
    stage.control()
