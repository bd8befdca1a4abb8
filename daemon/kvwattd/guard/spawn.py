"""Starts a guard as a child of the daemon, for single-machine use without systemd.

The child has a session of its own (a Ctrl-C meant for the daemon does not reach it) and no parent-death
signal: it must outlive a killed daemon for as long as it takes to reset the clocks. Then it ends by itself.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvwattd.guard.client import GuardClient
from kvwattd.guard.config import ANY_MHZ
from kvwattd.guard.protocol import Code, GuardError, Role
from kvwattd.shortages import is_shortage

_POLL_S = 0.05
_STOP_TIMEOUT_S = 10.0


class SpawnedGuard:
    """A running child guard."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path) -> None:
        self._process = process
        self.socket = socket

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        return await self._process.wait()

    async def answers(self, within_s: float) -> bool:
        """Whether it does, to a connection of its own.

        Raises OSError where this process cannot make one: that says nothing of the guard.
        """
        client = GuardClient(self.socket, timeout_s=within_s)
        try:
            await client.connect(Role.STATUS)
        except GuardError as error:
            if is_shortage(cause := error.__cause__):
                raise cause from None
            return False
        finally:
            await client.close()
        return True

    def kill(self) -> None:
        """SIGKILL."""
        if self.running:
            self._process.kill()

    async def stop(self, within_s: float = _STOP_TIMEOUT_S) -> int:
        """Ask it to reset its clocks and end; its exit status. Killed when it does not answer."""
        if self.running:
            self._process.terminate()
        try:
            async with asyncio.timeout(within_s):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()


async def spawn_guard(
    socket: Path,
    state_file: Path,
    gpus: Sequence[str],
    *,
    min_mhz: int = 1,
    max_mhz: int = ANY_MHZ,
    lease_s: float = 2.0,
    ready_within_s: float = 15.0,
    env: Mapping[str, str] | None = None,
) -> SpawnedGuard:
    """Start a guard and wait until it answers. Raises GuardError(unreachable) when it does not.

    `gpus` are UUIDs. `env` is added to this process's environment. Missing folders are made.
    """
    for folder in {socket.parent, state_file.parent}:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    arguments = ["--socket", str(socket), "--state-file", str(state_file), "--lease-s", str(lease_s)]
    arguments += ["--min-mhz", str(min_mhz), "--max-mhz", str(max_mhz), "--exit-on-disconnect"]
    for uuid in gpus:
        arguments += ["--gpu", uuid]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kvwattd.guard", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **(env or {})},
    )
    guard = SpawnedGuard(process, socket)
    try:
        await _wait_ready(guard, ready_within_s)
    except BaseException:
        await guard.stop()
        raise
    return guard


async def _wait_ready(guard: SpawnedGuard, within_s: float) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + within_s
    while guard.running and loop.time() < until_s:
        if await guard.answers(1.0):
            return
        await asyncio.sleep(_POLL_S)
    why = "it ended at once; its log says why" if not guard.running else f"not ready within {within_s:g} s"
    raise GuardError(Code.UNREACHABLE, f"guard started by this process: {why}")
