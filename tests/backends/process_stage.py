"""Child processes as instances for tests: a backend, its records, and waiting for what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvwattd.instances.backend import BackendError, BackendState
from kvwattd.instances.process import Launch, ProcessBackend
from kvwattd.instances.process_record import Records

DEADLINE_S = 90.0
SLEEP = Launch(("sleep", "1000"))
# A server that hangs.
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(1, flush=True)
time.sleep(999)
"""
# A server whose worker outlives it.
PARENT = "import subprocess, sys; subprocess.Popen(['sleep', '1000']); sys.exit(3)"


def records_of_another(folder: Path) -> Records:
    """The records as another kvwatt of the same host has them."""
    folder.mkdir(parents=True, exist_ok=True)
    return Records(folder.resolve(), "a")


def backend_of(folder: Path, members: Mapping[str, Launch], **more: Any) -> ProcessBackend:
    """A kvwatt whose disk may be busy with other tests."""
    return ProcessBackend(folder, members, deadline_s=DEADLINE_S, **more)


async def until(backend: ProcessBackend, member: str, wanted: BackendState) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while (state := (await backend.states())[member]) is not wanted:
        assert time.monotonic() < until_s, (state, wanted, backend.reasons)
        await asyncio.sleep(0.005)


async def killed(backend: ProcessBackend, member: str) -> int:
    """Started, and killed by somebody else; the process id that it had."""
    await backend.start(member)
    await until(backend, member, BackendState.RUNNING)
    (pid,) = (await backend.processes())[member]
    os.kill(pid, signal.SIGKILL)
    await until(backend, member, BackendState.FAILED)
    return pid


async def refused(call: object) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def python(program: str) -> Launch:
    return Launch((sys.executable, "-c", program))
