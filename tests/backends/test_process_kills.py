"""kvwatt killed at any line of a start or a stop of a process: what is found afterwards, and what is done."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_owner import LAUNCH, MEMBER

from kvwattd.instances.backend import BackendState
from kvwattd.instances.process import ProcessBackend
from kvwattd.instances.process_record import Records

# A share of the lines in the default suite, all of them with KVWATT_EVERY_LINE=1 (about a minute).
STRIDE = 1 if os.environ.get("KVWATT_EVERY_LINE") else 7
DEADLINE_S = 90.0


class Owners:
    """Asks the program in process_owner."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("process_owner.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def act(self, folder: Path, what: str, at: int = 0) -> tuple[int, bool]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), what, at]) + "\n")
        self._process.stdin.flush()
        seen, killed = json.loads(self._process.stdout.readline())
        return seen, killed

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def owners() -> Iterator[Owners]:
    made = Owners()
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Nothing of it is left running, whatever a test did."""
    yield tmp_path
    for pid in Records(tmp_path, MEMBER).processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def until(backend: ProcessBackend, wanted: BackendState, *, again: str) -> None:
    """As the scaler does: ask again until it is so."""
    until_s = time.monotonic() + DEADLINE_S
    while (state := (await backend.states())[MEMBER]) is not wanted:
        assert time.monotonic() < until_s, (state, backend.reasons)
        if again == "start" and state in (BackendState.STOPPED, BackendState.FAILED, BackendState.STARTING):
            await backend.start(MEMBER)
        if again == "stop" and state is BackendState.FAILED:
            await backend.stop(MEMBER)
        await asyncio.sleep(0.005)


def servers(folder: Path) -> list[int]:
    """Processes of the member that have become its program."""
    found = []
    for pid in Records(folder, MEMBER).processes():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"):
                found.append(pid)
        except OSError:
            continue
    return found


async def test_killed_while_starting(owners: Owners, folder: Path) -> None:
    """Wherever it dies, the next kvwatt brings up exactly one, and takes down exactly that one."""
    lines, _ = owners.act(folder, "start")
    backend = ProcessBackend(folder, {MEMBER: LAUNCH})
    await until(backend, BackendState.RUNNING, again="")
    died = 0
    for at in range(1, lines + 1, STRIDE):
        await backend.stop(MEMBER)
        await until(backend, BackendState.STOPPED, again="stop")
        died += owners.act(folder, "start", at)[1]
        backend = ProcessBackend(folder, {MEMBER: LAUNCH})
        await until(backend, BackendState.RUNNING, again="start")
        async with asyncio.timeout(DEADLINE_S):
            while not servers(folder):  # noqa: ASYNC110  # until it has become its program
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.03)  # for whatever else may still come
        assert len(servers(folder)) == 1, f"line event {at}"
    assert died >= lines // STRIDE - 3, "the count of lines differs a little from run to run, no more"


async def test_killed_while_stopping(owners: Owners, folder: Path) -> None:
    """Wherever it dies, the instance is either as before, and can be stopped, or on its way out."""
    backend = ProcessBackend(folder, {MEMBER: LAUNCH})
    await backend.start(MEMBER)
    await until(backend, BackendState.RUNNING, again="")
    lines, _ = owners.act(folder, "stop")
    died = 0
    for at in range(1, lines + 1, STRIDE):
        await until(backend, BackendState.STOPPED, again="stop")
        await backend.start(MEMBER)
        await until(backend, BackendState.RUNNING, again="")
        died += owners.act(folder, "stop", at)[1]
        backend = ProcessBackend(folder, {MEMBER: LAUNCH})
        found = (await backend.states())[MEMBER]
        assert found in (BackendState.RUNNING, BackendState.STOPPING, BackendState.STOPPED), (
            f"line event {at}"
        )
        await backend.stop(MEMBER)
        await until(backend, BackendState.STOPPED, again="")
        assert not Records(folder, MEMBER).processes(), f"line event {at}"
    assert died >= lines // STRIDE - 3
